"""Arrays of numbers keep their bytes and read as tuples."""

from __future__ import annotations

import copy
import json
import math
import pickle
import struct
from dataclasses import FrozenInstanceError
from typing import Any

import pytest
from pydantic import ValidationError

from cepo.errors import WireError
from cepo.messages.arrays import Float32Array, Int32Array
from cepo.messages.groups import Completion, EvidencedGroup, FinishReason, RolloutGroup, ScoredGroup
from cepo.messages.wire import from_bytes, to_bytes, to_proto
from tests.helpers.factories import make_completion, make_evidenced, make_group, make_verdict


def received() -> Completion:
    """A completion that was encoded and decoded."""
    return from_bytes(RolloutGroup, to_bytes(make_group())).completions[0]


def completion(**changes: Any) -> Completion:
    fields: dict[str, Any] = {
        "token_ids": (1, 2),
        "logps": (-1.0, -2.0),
        "text": "",
        "finish_reason": FinishReason.STOP,
    }
    return Completion(**fields | changes)


@pytest.mark.parametrize(
    ("numbers", "array", "layout"),
    [
        ((0, 1, -1, 2**31 - 1, -(2**31)), Int32Array, "<5i"),
        ((0.5, -0.25, math.inf, -math.inf), Float32Array, "<4f"),
    ],
)
def test_an_array_is_little_endian_and_four_bytes_a_number(numbers: Any, array: Any, layout: str) -> None:
    assert array.of(numbers).data == struct.pack(layout, *numbers)
    assert tuple(array(struct.pack(layout, *numbers))) == numbers


def test_an_array_reads_as_a_tuple() -> None:
    array, numbers = Int32Array.of([7, 8, 9]), (7, 8, 9)
    assert (len(array), array[0], array[-1], array[1:], array[::-1]) == (3, 7, 9, (8, 9), (9, 8, 7))
    assert (list(array), 8 in array, array.index(9), bool(Int32Array())) == ([7, 8, 9], True, 2, False)
    assert array == numbers
    assert numbers == array
    assert array != (7, 8)
    assert array != [7, 8, 9]  # as a tuple
    assert {array, Int32Array.of(numbers), numbers} == {numbers}
    with pytest.raises(IndexError):
        array[3]


def test_an_array_does_not_change() -> None:
    array = Int32Array.of([7])
    with pytest.raises(FrozenInstanceError):
        array.data = b""  # type: ignore[misc]
    with pytest.raises(TypeError):
        array[0] = 1  # type: ignore[index]


def test_an_array_can_be_copied_and_sent_to_another_process() -> None:
    array = Float32Array.of([0.5, -1.0])
    assert pickle.loads(pickle.dumps(array)) == copy.deepcopy(array) == array


def test_floats_are_rounded_to_single_precision_before_they_travel() -> None:
    row = completion(logps=(-0.1, -0.2)).logps
    assert row == struct.unpack("<2f", struct.pack("<2f", -0.1, -0.2))
    assert Float32Array(row.data) == row


@pytest.mark.parametrize(
    ("numbers", "says"),
    [
        ((2**31, 0), "greater than maximum"),
        ((1.5, 2), "integer"),
        (("1", "2"), "integer"),
        (5, "not iterable"),
        (b"12345", "5 bytes are not a whole number of items of 4 bytes"),
    ],
)
def test_invalid_numbers_are_rejected(numbers: Any, says: str) -> None:
    with pytest.raises(ValidationError, match=rf"token_ids\n.*{says}"):
        completion(token_ids=numbers)


def test_a_decoded_message_equals_hashes_and_dumps_as_any_other() -> None:
    whole = make_group().completions[0]
    assert received() == whole
    assert whole == received()
    assert received() != make_completion("other")
    assert hash(received()) == hash(whole)
    assert len({received(), whole}) == 1
    assert received().model_dump() == whole.model_dump()
    assert received().model_dump()["token_ids"] == (10, 11, 12)
    read = from_bytes(RolloutGroup, to_bytes(make_group()))
    assert json.loads(read.model_dump_json()) == json.loads(make_group().model_dump_json())
    assert json.loads(read.model_dump_json())["completions"][0]["logps"] == [-0.25, -0.5, -0.75]
    assert RolloutGroup.model_validate_json(read.model_dump_json()) == read


def test_a_changed_copy_is_written_as_changed() -> None:
    copied = received().model_copy(update={"logps": Float32Array.of([-9.0, -9.0, -9.0])})
    assert to_proto(copied).logps == struct.pack("<3f", -9.0, -9.0, -9.0)
    assert copied.token_ids == make_group().completions[0].token_ids


def test_a_stage_passes_on_the_bytes_it_received() -> None:
    group = from_bytes(RolloutGroup, to_bytes(make_group()))
    verdicts = (make_verdict(), make_verdict())
    scored = ScoredGroup(rollout=group, verdicts=verdicts)
    assert to_bytes(scored) == to_bytes(ScoredGroup(rollout=make_group(), verdicts=verdicts))


def test_evidence_survives_the_wire() -> None:
    assert from_bytes(EvidencedGroup, to_bytes(make_evidenced())) == make_evidenced()


def test_lengths_are_checked_when_a_message_is_decoded() -> None:
    message = to_proto(make_group())
    message.completions[1].logps = message.completions[1].logps[:-4]
    with pytest.raises(WireError, match="token ids but"):
        from_bytes(RolloutGroup, message.SerializeToString())


@pytest.mark.parametrize(
    "number", [0.0, -1.0, 1.5e38, 3.4e38, -3.4e38, 1e-45, math.inf, -math.inf, math.nan, -math.nan]
)
def test_an_array_knows_whether_its_numbers_are_finite(number: float) -> None:
    for numbers in ([number], [-1.0, number, -2.0], [number] * 2000):
        assert Float32Array.of(numbers).finite == math.isfinite(number)
    assert Float32Array().finite
