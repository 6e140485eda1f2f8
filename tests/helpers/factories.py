"""Builds valid messages with short defaults. Floats are exact in single precision, so they survive the wire."""

from __future__ import annotations

import random
from collections.abc import Sequence
from itertools import chain
from pathlib import Path
from typing import Any

from cepo.messages.arrays import Float32Array, Int32Array
from cepo.messages.groups import (
    BASE_POLICY,
    Ask,
    Completion,
    ContextName,
    Evidence,
    EvidencedGroup,
    EvidenceReason,
    EvidenceRow,
    FinishReason,
    GroupFailed,
    Message,
    Outcome,
    PolicyProof,
    PolicyRef,
    PromptTask,
    Purpose,
    RolloutGroup,
    Sampling,
    ScoredGroup,
    Stage,
    Verdict,
)
from cepo.run.config import RunConfig
from cepo.run.file import load
from cepo.testing import ToyEngine

RUNS = Path(__file__).parents[2] / "deploy" / "runs"
PINNED = (
    "model.max_length=160",
    "lora.rank=8",
    "engine.max_lora_rank=8",
    "sampling.prompts=32",
    "sampling.max_tokens=48",
    "optim.lr=2e-3",
    "optim.weight_decay=0.01",
)
ASKS = (
    Ask(context=ContextName.ANSWER),
    Ask(context=ContextName.REJECTED, otherwise=ContextName.PLAIN, exclude_self=True),
)
POLICY = PolicyRef(version=3, sha256="ab" * 32)


def make_task(**changes: Any) -> PromptTask:
    """Two samples of `3 + 4 = ?` for every stage."""
    defaults: dict[str, Any] = {
        "run": "run",
        "step": 0,
        "index": 0,
        "purpose": Purpose.TRAIN,
        "messages": (Message(role="user", content="3 + 4 = ?"),),
        "reference_answer": "7",
        "hint": "The answer is {answer}.",
        "samples": 2,
        "sampling": Sampling(max_tokens=16),
        "seed": 1,
        "asks": ASKS,
        "route": (Stage.ROLLOUT, Stage.VERIFY, Stage.TEACH),
    }
    return PromptTask(**defaults | changes)


def make_proof(policy: PolicyRef = BASE_POLICY) -> PolicyProof:
    """The proof that a toy engine gives of a policy."""
    return ToyEngine().proof(policy)


def make_completion(
    text: str = "\\boxed{7}", length: int = 3, finish_reason: FinishReason = FinishReason.STOP
) -> Completion:
    """A response of `length` tokens."""
    logps = tuple(-0.25 * (i + 1) for i in range(length))
    return Completion(
        token_ids=Int32Array.of(range(10, 10 + length)),
        logps=Float32Array.of(logps),
        text=text,
        finish_reason=finish_reason,
    )


def make_group(texts: Sequence[str] | None = None, task: PromptTask | None = None) -> RolloutGroup:
    """A group with these responses; without texts, with as many right responses as the task samples."""
    if texts is None:
        texts = ["\\boxed{7}"] * (task.samples if task else 2)
    task = task or make_task(samples=len(texts))
    completions = tuple(make_completion(text, length=3 + i % 2) for i, text in enumerate(texts))
    return RolloutGroup(
        task=task, prompt_token_ids=Int32Array.of((1, 2)), completions=completions, proof=make_proof(task.policy)
    )


def make_verdict(reward: float = 1.0, answer: str | None = None) -> Verdict:
    """A correct verdict if the reward is positive, otherwise a wrong one."""
    answer = answer if answer is not None else ("7" if reward > 0 else "5")
    outcome = Outcome.CORRECT if reward > 0 else Outcome.WRONG
    return Verdict(outcome=outcome, reward=reward, accuracy=float(reward > 0), extracted=answer, normalised=answer)


def make_scored(
    rewards: Sequence[float] = (1.0, 0.0),
    task: PromptTask | None = None,
    verdicts: Sequence[Verdict] | None = None,
) -> ScoredGroup:
    """A group with these rewards, or with these verdicts."""
    verdicts = tuple(verdicts) if verdicts is not None else tuple(make_verdict(reward) for reward in rewards)
    group = make_group([f"\\boxed{{{verdict.extracted}}}" for verdict in verdicts], task)
    return ScoredGroup(rollout=group, verdicts=verdicts)


def make_evidenced(rewards: Sequence[float] = (1.0, 0.0), task: PromptTask | None = None) -> EvidencedGroup:
    """A scored group with evidence for every ask of its task."""
    scored = make_scored(rewards, task)
    evidence = tuple(
        Evidence(ask=ask, rows=tuple(make_row(c, ask) for c in scored.rollout.completions)) for ask in scored.task.asks
    )
    return EvidencedGroup(scored=scored, evidence=evidence, proofs=(make_proof(scored.task.teacher),), seconds=0.5)


def make_row(completion: Completion, ask: Ask) -> EvidenceRow:
    """The evidence of a response under an ask."""
    logps = tuple(logp - 0.125 * ask.context for logp in completion.logps)
    return EvidenceRow(
        logps=Float32Array.of(logps),
        applicable=True,
        context=ask.context,
        reason=EvidenceReason.ASKED,
        answer="7",
        source=0,
    )


def make_top(ids: Sequence[Sequence[int]], logps: Sequence[Sequence[float]]) -> dict[str, Any]:
    """The fields of an evidence row for the likeliest tokens of each position."""
    return {"top_ids": Int32Array.of(chain(*ids)), "top_logps": Float32Array.of(chain(*logps))}


def make_failed(task: PromptTask | None = None, stage: Stage = Stage.VERIFY) -> GroupFailed:
    """A group that was given up."""
    return GroupFailed(task=task or make_task(), stage=stage, error="it broke", deliveries=5)


def make_config(*overrides: str) -> RunConfig:
    """A CEPO run of the shipped model, with overrides as for `--set`; numbers that tests rely on are pinned."""
    return load(RUNS / "tiny_cepo.toml", [*PINNED, *overrides])


def make_ragged(lengths: Sequence[Sequence[int]], seed: int = 0, **task: Any) -> list[EvidencedGroup]:
    """Groups with responses of these lengths and random tokens below 500; the rewards of a group alternate."""
    rng = random.Random(seed)
    return [_ragged(rng, make_task(index=index, samples=len(row), **task), row) for index, row in enumerate(lengths)]


def random_ids(rng: random.Random, count: int) -> tuple[int, ...]:
    """Token ids of words of the tiny model: none below 3, which are special."""
    return tuple(rng.randrange(3, 500) for _ in range(count))


def _ragged(rng: random.Random, task: PromptTask, lengths: Sequence[int]) -> EvidencedGroup:
    def logps(count: int) -> tuple[float, ...]:
        return tuple(-rng.randrange(1, 64) / 16 for _ in range(count))

    completions = tuple(
        Completion(
            token_ids=Int32Array.of(random_ids(rng, n)),
            logps=Float32Array.of(logps(n)),
            text="",
            finish_reason=FinishReason.STOP,
        )
        for n in lengths
    )
    group = RolloutGroup(
        task=task,
        prompt_token_ids=Int32Array.of(random_ids(rng, rng.randrange(4, 12))),
        completions=completions,
        proof=make_proof(task.policy),
    )
    scored = ScoredGroup(rollout=group, verdicts=tuple(make_verdict(float(i % 2)) for i in range(len(lengths))))
    evidence = tuple(
        Evidence(
            ask=ask,
            rows=tuple(
                make_row(c, ask).model_copy(update={"logps": Float32Array.of(logps(len(c.logps)))}) for c in completions
            ),
        )
        for ask in task.asks
    )
    return EvidencedGroup(scored=scored, evidence=evidence, proofs=(make_proof(task.teacher),))
