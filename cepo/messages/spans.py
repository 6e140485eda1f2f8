"""The spans of a response: tokens that the policy sampled, and tokens that it was given in between.

A response of one turn is one sampled span. With tools or an environment, a response goes on after the end of a turn:
the tokens of a tool result or a user turn follow, and the policy samples its next turn after them. Given tokens have
no log-prob, no loss and no credit, and no denominator counts them. An array with a number per token has the number 0
at given tokens.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Self

from pydantic import Field, model_validator

from cepo.messages.vocabulary import Contract


class Given(Contract):
    """Tokens `start`, ..., `end - 1` of a response, which the policy did not sample."""

    start: int = Field(ge=0)
    end: int

    @model_validator(mode="after")
    def _not_empty(self) -> Self:
        if self.end <= self.start:
            raise ValueError(f"given tokens from {self.start} to {self.end}: the end must be larger")
        return self


def check_given(given: Sequence[Given], tokens: int) -> None:
    """Checks that spans lie in a response of `tokens` tokens, in order, with sampled tokens between them.

    Raises:
        ValueError: they do not.
    """
    if given and given[-1].end > tokens:
        raise ValueError(f"given tokens up to {given[-1].end} in a response of {tokens} tokens")
    for before, after in pairwise(given):
        if after.start <= before.end:
            raise ValueError(f"given tokens up to {before.end} and from {after.start} must be in order and apart")


def check_unmeasured(given: Sequence[Given], logps: Sequence[float], tokens: int) -> None:
    """Refuses a log-prob of a given token. The log-probs are those of the last tokens of a response of `tokens`."""
    missing = tokens - len(logps)
    for span in given if logps else ():
        if any(logps[span.start - missing : span.end - missing]):
            raise ValueError(f"a log-prob of a token from {span.start} to {span.end}, which was given, not sampled")


def given_tokens(given: Sequence[Given]) -> int:
    """The number of given tokens."""
    return sum(span.end - span.start for span in given)


def sampled_spans(given: Sequence[Given], tokens: int) -> list[tuple[int, int]]:
    """Start and exclusive end of each span of sampled tokens, in order.

    Example: a response of 9 tokens, of which the tokens 3 and 4 are given, has the sampled spans (0, 3) and (5, 9).
    """
    edges = [0, *(edge for span in given for edge in (span.start, span.end)), tokens]
    return [(start, end) for start, end in zip(edges[::2], edges[1::2], strict=True) if start < end]


def sampled_mask(given: Sequence[Given], tokens: int) -> list[bool]:
    """Whether each token of a response was sampled. Example: [True, True, False, True]."""
    mask = [True] * tokens
    for span in given:
        mask[span.start : span.end] = [False] * (span.end - span.start)
    return mask


def given_spans(sampled: Sequence[bool]) -> tuple[Given, ...]:
    """The given spans of a response, from whether each of its tokens was sampled: the inverse of `sampled_mask`."""
    edges = [at for at, (before, now) in enumerate(pairwise([True, *sampled, True])) if before != now]
    return tuple(Given(start=start, end=end) for start, end in zip(edges[::2], edges[1::2], strict=True))


class Trajectory:
    """A response under construction: sampled turns and given tokens, appended in order.

    Example:
        >>> trajectory = Trajectory()
        >>> trajectory.sample([11, 12], [-0.5, -0.1])
        >>> trajectory.give([7, 7, 7])
        >>> trajectory.sample([13], [-0.2])
        >>> trajectory.token_ids, trajectory.logps, trajectory.given
        ([11, 12, 7, 7, 7, 13], [-0.5, -0.1, 0.0, 0.0, 0.0, -0.2], (Given(start=2, end=5),))
    """

    def __init__(self) -> None:
        self.token_ids: list[int] = []
        self.logps: list[float] = []
        """One for each token; 0 at given tokens."""
        self._sampled: list[bool] = []

    def sample(self, token_ids: Sequence[int], logps: Sequence[float]) -> None:
        """Appends tokens that the policy sampled, with their log-probs."""
        self._append(token_ids, logps, sampled=True)

    def give(self, token_ids: Sequence[int]) -> None:
        """Appends tokens that the policy only reads."""
        self._append(token_ids, [0.0] * len(token_ids), sampled=False)

    @property
    def given(self) -> tuple[Given, ...]:
        """The given spans so far."""
        return given_spans(self._sampled)

    def _append(self, token_ids: Sequence[int], logps: Sequence[float], *, sampled: bool) -> None:
        self.token_ids += token_ids
        self.logps += logps
        self._sampled += [sampled] * len(token_ids)
