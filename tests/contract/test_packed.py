"""Numbers that stay packed: nothing of it shows, and what is handed on is not unpacked."""

from __future__ import annotations

import json

import pytest

from cepo.errors import WireError
from cepo.messages.groups import Completion, EvidencedGroup, RolloutGroup, ScoredGroup
from cepo.messages.wire import from_bytes, to_bytes, to_proto
from tests.helpers.factories import make_completion, make_evidenced, make_group, make_verdict


def packed() -> Completion:
    """A completion off the wire, nothing of which was read."""
    return from_bytes(RolloutGroup, to_bytes(make_group())).completions[0]


def is_packed(completion: Completion) -> bool:
    return not {"token_ids", "logps"} & set(vars(completion))


def test_numbers_are_unpacked_when_they_are_read() -> None:
    completion, whole = packed(), make_group().completions[0]
    assert completion.count("token_ids") == len(whole.token_ids)
    assert is_packed(completion)
    assert completion.token_ids == whole.token_ids
    assert completion.logps == whole.logps
    assert not is_packed(completion)


def test_a_packed_contract_equals_hashes_and_dumps_as_any_other() -> None:
    whole = make_group().completions[0]
    assert packed() == whole
    assert whole == packed()
    assert packed() != make_completion("other")
    assert packed() != "other"
    assert hash(packed()) == hash(whole)
    assert packed().model_dump() == whole.model_dump()
    read = from_bytes(RolloutGroup, to_bytes(make_group()))
    assert json.loads(read.model_dump_json()) == json.loads(make_group().model_dump_json())


def test_a_changed_copy_is_written_as_changed() -> None:
    copy = packed().model_copy(update={"logps": (-9.0, -9.0, -9.0)})
    assert list(to_proto(copy).logps) == [-9.0, -9.0, -9.0]
    assert copy.token_ids == make_group().completions[0].token_ids


def test_a_stage_hands_on_what_it_does_not_read() -> None:
    group = from_bytes(RolloutGroup, to_bytes(make_group()))
    verdicts = (make_verdict(), make_verdict())
    scored = ScoredGroup(rollout=group, verdicts=verdicts)
    assert to_bytes(scored) == to_bytes(ScoredGroup(rollout=make_group(), verdicts=verdicts))
    assert all(is_packed(completion) for completion in group.completions)


def test_evidence_stays_packed_too() -> None:
    group = from_bytes(EvidencedGroup, to_bytes(make_evidenced()))
    assert all("logps" not in vars(row) for evidence in group.evidence for row in evidence.rows)
    assert group == make_evidenced()


def test_lengths_are_checked_while_numbers_are_packed() -> None:
    message = to_proto(make_group())
    del message.completions[1].logps[-1]
    with pytest.raises(WireError, match="token ids but"):
        from_bytes(RolloutGroup, message.SerializeToString())
