"""Grades reference answers with the verifier: an answer must verify however it is written, a changed one must not.

Also grades a right and a wrong response with the run's reward.
"""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from cepo.answers.extract import reference_of
from cepo.answers.perturb import changes, perturbed, rewrites
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


MAX_FORMS = 200
"""Forms of answers that are varied in every way; a form takes about 20 verdicts."""
_ITSELF = "itself"
_DIGIT = re.compile(r"\d", re.ASCII)
_WORD = re.compile(r"(?<![\\a-zA-Z])[a-zA-Z]{2,}")


class GoldCheck(NamedTuple):
    """What the grades of a data set's reference answers show."""

    ungradable: dict[str, str]
    """The answers that do not verify against themselves, or that a wrong answer passes for, with the reason."""
    narrow: dict[str, str]
    """The answers that are refused in another spelling, with the pair."""
    forms: int
    """Forms of answers of which one was changed and rewritten in every way."""


def check_gold(answers: Iterable[str], kind: str) -> GoldCheck:
    """Grades every answer against itself and against one change, and one answer of each form against all variants.

    The form of an answer is its text with every digit replaced by 0 and every word by a letter. If a variant of one
    answer gets the wrong verdict, all answers of its form are graded. At most MAX_FORMS forms are varied.
    """
    distinct = list(dict.fromkeys(answers))
    forms: dict[str, list[str]] = {}
    for answer in distinct:
        forms.setdefault(_form(answer), []).append(answer)
    varied = list(forms.values())[:MAX_FORMS]
    first = [variant for answer in distinct for variant in (_itself(answer), _changed(answer))]
    mistakes = _mistakes([*first, *(variant for alike in varied for variant in _variants(alike[0], kind))], kind)
    wrong = {mistake.answer for mistake, _ in mistakes}
    rest = [answer for alike in varied if alike[0] in wrong for answer in alike[1:]]
    mistakes += _mistakes([variant for answer in rest for variant in _variants(answer, kind)], kind)
    reasons: dict[str, str] = {}
    narrow: dict[str, str] = {}
    for mistake, reason in mistakes:
        (narrow if mistake.right and mistake.name != _ITSELF else reasons).setdefault(mistake.answer, reason)
    return GoldCheck(reasons, {answer: narrow[answer] for answer in narrow if answer not in reasons}, len(varied))


class _Graded(NamedTuple):
    """A response to grade against a reference answer."""

    answer: str
    response: str
    name: str
    right: bool

    def mistake(self, verdict: dict[str, str]) -> str:
        """What is wrong with a verdict; empty if it is right."""
        if (verdict["outcome"] == "correct") is self.right:
            return ""
        if self.name == _ITSELF:
            return (
                f"reference answer {self.answer!r} does not verify against itself: "
                f"{verdict['outcome']}, {verdict['reason']}"
            )
        if self.right:
            return f"reference answer {self.answer!r} is refused as {self.response!r} ({self.name})"
        return f"reference answer {self.answer!r} verifies against {self.response!r}, which is another answer"


def _itself(answer: str) -> _Graded:
    return _Graded(answer, answer, _ITSELF, right=True)


def _changed(answer: str) -> _Graded:
    return _Graded(answer, perturbed(answer), "changed", right=False)


def _form(answer: str) -> str:
    return _WORD.sub("a", _DIGIT.sub("0", answer))


def _variants(answer: str, kind: str) -> list[_Graded]:
    reference = reference_of(answer)
    return [
        *(_Graded(answer, text, name, right=False) for name, text in changes(reference, kind)),
        *(_Graded(answer, text, name, right=True) for name, text in rewrites(reference, kind)),
    ]


def _mistakes(variants: Sequence[_Graded], kind: str) -> list[tuple[_Graded, str]]:
    """The variants whose verdict is wrong, in order, with the reason."""
    from services.verifier.files import verify_lines

    lines = [
        json.dumps({"response": f"\\boxed{{{variant.response}}}", "answer": variant.answer, "kind": kind})
        for variant in variants
    ]
    graded = zip(variants, map(json.loads, verify_lines(lines)) if lines else (), strict=True)
    return [(variant, reason) for variant, verdict in graded if (reason := variant.mistake(verdict))]


def example_verdicts(config: RunConfig, problem: Problem, renderer: Renderer) -> tuple[Verdict, Verdict]:
    """The verdicts of a right and a wrong response to a problem, with its reward.

    Raises:
        UserError: a reward function cannot be loaded, or a reward function or the step scorer fails.
    """
    texts = [f"\\boxed{{{answer}}}" for answer in (problem.answer, perturbed(problem.answer))]
    right, wrong = asyncio.run(_scored(_group(config, problem, texts, renderer))).verdicts
    for verdict in (right, wrong):
        if verdict.failed:
            if (rule := config.reward_of(problem.source)).scorer and "step scorer" in verdict.reason:
                raise UserError(f"reward.scorer={rule.scorer}: {verdict.reason}; start it, or fix it")
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
        answer_kind=config.data.of(problem.source).answer_kind,
        hint=config.data.hint,
        samples=len(texts),
        sampling=Sampling(max_tokens=config.sampling.max_tokens),
        seed=0,
        route=(Stage.ROLLOUT, Stage.VERIFY),
        reward=config.reward_of(problem.source),
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
