"""Distributions are encoded compactly and exactly, and invalid ones are rejected."""

from __future__ import annotations

import math
from typing import Any

import pytest

from cepo.errors import WireError
from cepo.messages.arrays import Float32Array, Int32Array
from cepo.messages.groups import Completion, EvidenceRow
from cepo.messages.wire import from_bytes, from_proto, to_bytes, to_proto
from tests.helpers.factories import make_completion, make_row, make_task, make_top


def measured(**changes: Any) -> EvidenceRow:
    """A row of three tokens with these changes."""
    return make_row(make_completion(), make_task().asks[0]).model_copy(update=changes)


def test_a_distribution_with_impossible_tokens_keeps_every_bit() -> None:
    row = measured(
        logps=Float32Array.of([-1.0, -math.inf, -2.0]), **make_top([[511, 7]] * 3, [[-0.125, -math.inf]] * 3)
    )
    assert from_bytes(EvidenceRow, to_bytes(row)) == row


def test_a_hundred_likeliest_tokens_take_eight_bytes_each() -> None:
    row = measured(**make_top([[151_000 + i for i in range(100)]] * 3, [[-float(i) for i in range(100)]] * 3))
    assert len(to_bytes(row)) < 3 * 100 * 8 + 64


def test_a_distribution_cut_within_a_number_is_a_wire_error() -> None:
    message = to_proto(measured(**make_top([[1, 2]] * 3, [[-1.0, -2.0]] * 3)))
    message.top_ids = message.top_ids[:-1]
    with pytest.raises(WireError, match=r"top_ids: .*23 bytes are not a whole number of items"):
        from_proto(EvidenceRow, message)


@pytest.mark.parametrize("broken", [math.nan, math.inf])
def test_a_response_with_a_log_prob_that_is_none_is_a_wire_error(broken: float) -> None:
    possible = make_completion().model_copy(update={"logps": Float32Array.of([-1.0, -math.inf, -2.0])})
    assert from_bytes(Completion, to_bytes(possible)) == possible
    for logps in ([-1.0, broken, -2.0], [-math.inf, broken, -2.0]):
        completion = possible.model_copy(update={"logps": Float32Array.of(logps)})
        with pytest.raises(WireError, match="a log-prob of the sampled tokens is not a number below infinity"):
            from_bytes(Completion, to_bytes(completion))


@pytest.mark.parametrize(
    ("broken", "says"),
    [
        (
            measured(**make_top([[1, 2]] * 3, [[-1.0, float("nan")]] * 3)),
            "a log-prob of the likeliest tokens is not a number below infinity: the model that measured is broken",
        ),
        (measured(pooled=Float32Array.of([0.5, math.nan])), "the mean hidden state is not finite: the model that"),
        (measured(**make_top([[1, 2]] * 2, [[-1.0, -2.0]] * 2)), "4 likeliest tokens with 4 log-probs at 3 positions"),
        (measured(top_ids=make_top([[1]] * 3, [[-1.0]] * 3)["top_ids"]), "3 likeliest tokens with 0 log-probs"),
        (
            measured(top_ids=Int32Array.of([1, 2]), top_logps=Float32Array.of([-1.0])),
            "2 likeliest tokens with 1 log-probs",
        ),
    ],
)
def test_a_broken_distribution_is_a_wire_error_that_says_how(broken: EvidenceRow, says: str) -> None:
    with pytest.raises(WireError, match=says):
        from_proto(EvidenceRow, to_proto(broken))
