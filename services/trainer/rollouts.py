"""Writes the groups of a run to rollouts/, with the text, the advantage and the log-probs of every token."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import lru_cache
from typing import Any

import numpy as np
from torch import Tensor

from cepo.messages.groups import EvidencedGroup, EvidenceRow
from cepo.run.lines import Row
from cepo.run.rollouts import Rollouts
from cepo.run.sections import TelemetryConfig

Pieces = Callable[[Sequence[int]], list[str]]
"""Splits a response into the text of its tokens. Example: [417, 9, 88] -> ["23", "+", "45"]."""
CACHED_SEQUENCES = 2**16
DIGITS = 7
"""Significant digits of a number on disk, which are those of a float32."""


class CachedDecoder:
    """A tokenizer that decodes a short sequence of ids once: pairs of tokens recur in the responses of a run."""

    def __init__(self, tokenizer: Any) -> None:
        self._decoded = lru_cache(CACHED_SEQUENCES)(lambda ids, options: tokenizer.decode(ids, **dict(options)))

    def decode(self, ids: Sequence[int], **options: bool) -> str:
        """The text of token ids."""
        return str(self._decoded(tuple(ids), tuple(options.items())))


class RolloutWriter:
    """Writes groups on a thread of its own, while the next step is sampled."""

    def __init__(self, rollouts: Rollouts, telemetry: TelemetryConfig, pieces: Pieces) -> None:
        self._rollouts = rollouts
        self._limit = telemetry.rollouts_per_step
        self._bytes = telemetry.rollouts_gigabytes * 1e9
        self.pieces = pieces
        self._thread = ThreadPoolExecutor(1, "rollouts")
        self._writing: Future[None] | None = None

    def train(self, step: int, groups: Sequence[EvidencedGroup], adv_BT: Tensor) -> None:
        """Begins to write the training groups of a step, after those before are on disk.

        Args:
            groups: their samples are the rows of adv_BT, in order.

        Raises:
            StorageError: the groups before could not be written.
        """
        self._begin("train", step, groups, adv_BT.detach().float().cpu().numpy())

    def held_out(self, version: int, groups: Sequence[EvidencedGroup]) -> None:
        """Begins to write the held-out groups that a policy version answered; they have no advantages.

        Raises:
            StorageError: the groups before could not be written.
        """
        self._begin("held-out", version, groups, None)

    def finish(self) -> None:
        """Waits until every group is on disk.

        Raises:
            StorageError: a file cannot be written.
        """
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()

    def _begin(self, source: str, number: int, groups: Sequence[EvidencedGroup], adv_BT: Any) -> None:
        self.finish()
        if groups and self._limit != 0:
            self._writing = self._thread.submit(self._write, source, number, groups, adv_BT)

    def _write(self, source: str, number: int, groups: Sequence[EvidencedGroup], adv_BT: Any) -> None:
        row, records = 0, []
        for group in groups[: self._limit]:
            samples = len(group.scored.verdicts)
            advantages = None if adv_BT is None else adv_BT[row : row + samples]
            records.append(record(group, advantages, self.pieces))
            row += samples
        self._rollouts.write(source, number, records)
        self._rollouts.bound(self._bytes)


def record(group: EvidencedGroup, advantages: Any, pieces: Pieces) -> Row:
    """A group as a line of its file.

    Args:
        advantages: [samples, T], or None for a group that was not trained on.
    """
    samples: list[Row] = []
    for at, (completion, verdict) in enumerate(
        zip(group.scored.rollout.completions, group.scored.verdicts, strict=True)
    ):
        ids = list(completion.token_ids)
        samples.append(
            {
                "text": completion.text,
                "token_ids": ids,
                "tokens": pieces(ids),
                **({"given": [span.model_dump() for span in completion.given]} if completion.given else {}),
                "outcome": verdict.outcome.name.lower(),
                "extracted": verdict.extracted,
                "reward": None if verdict.failed else verdict.reward,
                "reason": verdict.reason,
                "advantage": [] if advantages is None else compact(advantages[at][: len(ids)]),
                "evidence": [_evidence(evidence.rows[at]) for evidence in group.evidence],
            }
        )
    task = group.task
    return {
        "group": task.group_id,
        "prompt": [message.model_dump(exclude_defaults=True) for message in task.messages],
        "images": [image.sha256 for image in task.images],
        "answer": task.reference_answer,
        "samples": samples,
    }


def _evidence(row: EvidenceRow) -> Row:
    named = {"context": row.context.name, "reason": row.reason.name, "answer": row.answer, "source": row.source}
    return {**named, "logps": compact(np.frombuffer(row.logps.data, "<f4"))}


def compact(numbers: Any) -> list[float]:
    """Numbers with DIGITS significant digits, as short decimals. Example: [0.1] in float32 is 0.10000000149 in Python.

    >>> compact(np.array([0.1, -2.5, 0.0], "<f4"))
    [0.1, -2.5, 0.0]
    """
    exact = np.asarray(numbers, np.float64)
    size = np.abs(exact)
    usual = np.isfinite(exact) & (size >= 1e-12) & (size < 1e12)
    places = DIGITS - 1 - np.floor(np.log10(size, where=usual, out=np.zeros_like(exact)))
    scale = 10.0 ** np.where(usual, places, 0.0)
    rounded: list[float] = np.where(usual, np.round(exact * scale) / scale, exact).tolist()
    return rounded
