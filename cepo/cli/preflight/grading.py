"""Grades reference answers with the verifier: an answer must verify against itself, and a changed one must not.

Also grades a right and a wrong response with the run's reward.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from cepo.answers.perturb import perturbed
from cepo.data.problems import Problem
from cepo.errors import UserError
from cepo.messages.arrays import Float32Array, Int32Array
from cepo.messages.groups import (
    BASE_POLICY,
    Completion,
    FinishReason,
    PolicyProof,
    PromptTask,
    Purpose,
    RolloutGroup,
    Sampling,
    ScoredGroup,
    Stage,
    Verdict,
)
from cepo.prompts.renderer import Renderer

if TYPE_CHECKING:
    from cepo.run.config import RunConfig


def ungradable(answers: Iterable[str], kind: str) -> dict[str, str]:
    """The reference answers that cannot be graded as answers of a kind, with the reason.

    Example: `ungradable(["7", "\\\\frac{1}{2"], "")` holds the second answer alone.
    """
    from services.verifier.files import verify_lines

    distinct = list(dict.fromkeys(answers))
    lines = [_line(response, answer, kind) for answer in distinct for response in (answer, perturbed(answer))]
    verdicts = [json.loads(line) for line in verify_lines(lines)]
    reasons = {
        answer: _reason(answer, same, changed)
        for answer, same, changed in zip(distinct, verdicts[::2], verdicts[1::2], strict=True)
    }
    return {answer: reason for answer, reason in reasons.items() if reason}


def _line(response: str, answer: str, kind: str) -> str:
    return json.dumps({"response": f"\\boxed{{{response}}}", "answer": answer, "kind": kind})


def _reason(answer: str, same: dict[str, str], changed: dict[str, str]) -> str:
    if same["outcome"] != "correct":
        return f"reference answer {answer!r} does not verify against itself: {same['outcome']}, {same['reason']}"
    if changed["outcome"] == "correct":
        return f"reference answer {answer!r} verifies against {perturbed(answer)!r}, which is another answer"
    return ""


def example_verdicts(config: RunConfig, problem: Problem, renderer: Renderer) -> tuple[Verdict, Verdict]:
    """The verdicts of a right and a wrong response to a problem, with the run's reward.

    Raises:
        UserError: a reward function cannot be loaded, or a reward function or the step scorer fails.
    """
    texts = [f"\\boxed{{{answer}}}" for answer in (problem.answer, perturbed(problem.answer))]
    right, wrong = asyncio.run(_scored(_group(config, problem, texts, renderer))).verdicts
    for verdict in (right, wrong):
        if verdict.failed:
            if config.reward.scorer and "step scorer" in verdict.reason:
                raise UserError(f"reward.scorer={config.reward.scorer}: {verdict.reason}; start it, or fix it")
            raise UserError(f"reward.functions: {verdict.reason}; fix the function")
    return right, wrong


async def _scored(group: RolloutGroup) -> ScoredGroup:
    from services.verifier.handler import Verifier
    from services.verifier.pool import GraderPool
    from services.verifier.scorers import StepScorers

    rule = group.task.reward
    async with GraderPool(1, functions=rule.functions) as pool:
        return await Verifier(pool, StepScorers([rule.scorer])).verify(group)


def _group(config: RunConfig, problem: Problem, texts: Sequence[str], renderer: Renderer) -> RolloutGroup:
    task = PromptTask(
        run="check",
        step=0,
        index=0,
        purpose=Purpose.TRAIN,
        messages=problem.messages,
        reference_answer=problem.answer,
        answer_kind=config.data.answer_kind,
        hint=config.data.hint,
        samples=len(texts),
        sampling=Sampling(max_tokens=config.sampling.max_tokens),
        seed=0,
        route=(Stage.ROLLOUT, Stage.VERIFY),
        reward=config.reward,
        step_delimiter=config.algorithm.reasoning_delimiter,
    )
    proof = PolicyProof(policy=BASE_POLICY, bound_modules=0, canary_logp=0.0, tokenizer_sha256="", engine="check")
    completions = tuple(_completion(text, renderer, task.step_delimiter) for text in texts)
    return RolloutGroup(task=task, prompt_token_ids=Int32Array.of([0]), completions=completions, proof=proof)


def _completion(text: str, renderer: Renderer, delimiter: str) -> Completion:
    token_ids = tuple(renderer.tokenizer.encode(text))
    return Completion(
        token_ids=Int32Array.of(token_ids),
        logps=Float32Array.of([0.0] * len(token_ids)),
        text=text,
        finish_reason=FinishReason.STOP,
        step_ends=renderer.step_ends(token_ids, delimiter) if delimiter else (),
    )
