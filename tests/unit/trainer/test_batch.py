"""Groups as tensors: alignment, masks, and which evidence applies."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from cepo.algo.core import group_advantage
from cepo.algo.variants import Grpo
from cepo.messages.arrays import Float32Array
from cepo.messages.groups import (
    Ask,
    ContextName,
    Evidence,
    EvidencedGroup,
    EvidenceReason,
    EvidenceRow,
    FollowUp,
    Message,
    Origin,
    Outcome,
    ScoredGroup,
    Verdict,
    Want,
)
from services.trainer.learning.batch import pack
from tests.helpers.factories import ASKS, make_ragged, make_scored, make_top, make_verdict

LENGTHS = [(3, 0, 5), (2, 4)]
FLAT = [3, 0, 5, 2, 4]
ABSENT = EvidenceRow(logps=Float32Array(), applicable=False, context=ContextName.PLAIN, reason=EvidenceReason.NO_ANSWER)


def unmeasured(group: EvidencedGroup, ask: int, row: int) -> EvidencedGroup:
    """The group with one row of one ask not applicable."""
    evidence = list(group.evidence)
    rows = list(evidence[ask].rows)
    rows[row] = ABSENT
    evidence[ask] = evidence[ask].model_copy(update={"rows": tuple(rows)})
    return group.model_copy(update={"evidence": tuple(evidence)})


def test_the_case_of_the_docstring() -> None:
    first, second = make_ragged([(3, 5), (4, 2)])
    timeout = make_verdict(0.0).model_copy(update={"outcome": Outcome.TIMEOUT})
    first = EvidencedGroup(scored=graded(first, [make_verdict(1.0), make_verdict(0.0)]))
    second = second.model_copy(update={"scored": graded(second, [make_verdict(1.0), timeout])})
    batch = pack([first, second])
    assert batch.mask_BT.shape == batch.rollout_logp_BT.shape == (4, 5)
    assert batch.mask_BT.sum(1).tolist() == [3, 5, 4, 0]
    assert batch.reward_B.nan_to_num(-1).tolist() == [1, 0, 1, -1]
    assert batch.group_B.tolist() == [0, 0, 1, 1]
    assert [len(ids) for ids in batch.response_ids] == [3, 5, 4, 2]
    for ask in ASKS:
        assert batch.evidence[ask].logp_BT.shape == (4, 5)
        assert batch.evidence[ask].applicable_B.tolist() == [False, False, True, True]


def graded(group: EvidencedGroup, verdicts: list[Verdict]) -> ScoredGroup:
    return group.scored.model_copy(update={"verdicts": tuple(verdicts)})


def test_every_value_stands_at_its_token() -> None:
    groups = make_ragged(LENGTHS)
    batch = pack(groups)
    completions = [c for group in groups for c in group.scored.rollout.completions]
    assert batch.size == 5
    assert batch.mask_BT.shape == batch.rollout_logp_BT.shape == (5, 5)
    assert batch.mask_BT.sum(1).tolist() == FLAT
    rows = [[row for group in groups for row in group.evidence[at].rows] for at in range(2)]
    for i, completion in enumerate(completions):
        length = FLAT[i]
        assert batch.response_ids[i] == completion.token_ids
        assert batch.mask_BT[i, :length].all()
        assert batch.rollout_logp_BT[i].tolist() == [*completion.logps, *[0.0] * (5 - length)]
        for at in range(2):
            assert batch.evidence[ASKS[at]].logp_BT[i].tolist() == [*rows[at][i].logps, *[0.0] * (5 - length)]


def test_sequences_keep_their_group_prompt_and_reward() -> None:
    groups = make_ragged(LENGTHS)
    batch = pack(groups)
    assert batch.group_B.tolist() == [0, 0, 0, 1, 1]
    assert batch.prompt_ids == [tuple(groups[i].scored.rollout.prompt_token_ids) for i in (0, 0, 0, 1, 1)]
    assert batch.reward_B.tolist() == batch.accuracy_B.tolist() == [0.0, 1.0, 0.0, 0.0, 1.0]
    assert all(evidence.applicable_B.all() for evidence in batch.evidence.values())
    assert not batch.demonstration_B.any()


def test_a_group_that_skipped_the_teacher_has_no_evidence_beside_one_that_has() -> None:
    first, second = make_ragged(LENGTHS)
    skipped = EvidencedGroup(scored=first.scored)
    batch = pack([skipped, second])
    whole = pack([first, second])
    for ask in ASKS:
        evidence, both = batch.evidence[ask], whole.evidence[ask]
        assert evidence.applicable_B.tolist() == [False] * 3 + [True] * 2
        assert torch.equal(evidence.logp_BT[:3], torch.zeros(3, 5))
        assert torch.equal(evidence.logp_BT[3:], both.logp_BT[3:])


def test_a_step_that_skipped_the_teacher_whole_has_no_evidence() -> None:
    assert pack([EvidencedGroup(scored=group.scored) for group in make_ragged(LENGTHS)]).evidence == {}


def test_what_one_ask_could_not_measure_is_not_applicable_to_that_ask_alone() -> None:
    first, second = make_ragged(LENGTHS)
    for at, ask in enumerate(ASKS):
        batch = pack([unmeasured(first, at, 2), second])
        assert batch.evidence[ask].applicable_B.tolist() == [True, True, False, True, True]
        assert not batch.evidence[ask].logp_BT[2].any()
        assert batch.evidence[ASKS[1 - at]].applicable_B.all()


def test_responses_that_are_all_empty_make_a_batch_of_no_tokens() -> None:
    batch = pack(make_ragged([(0, 0)]))
    assert batch.mask_BT.shape == batch.evidence[ASKS[1]].logp_BT.shape == (2, 0)


def test_selected_sequences_are_cut_to_their_own_longest() -> None:
    batch = pack(make_ragged(LENGTHS))
    part = batch.rows([4, 1])
    assert part.response_ids == [batch.response_ids[4], batch.response_ids[1]]
    assert part.prompt_ids == [batch.prompt_ids[4], batch.prompt_ids[1]]
    assert part.mask_BT.tolist() == [[1.0] * 4, [0.0] * 4]
    assert torch.equal(part.rollout_logp_BT[0], batch.rollout_logp_BT[4, :4])
    assert torch.equal(part.evidence[ASKS[1]].logp_BT[0], batch.evidence[ASKS[1]].logp_BT[4, :4])
    assert (part.group_B.tolist(), part.reward_B.tolist()) == ([1, 0], [1.0, 1.0])


def with_rows(evidence: Evidence, changes: list[dict[str, Any]]) -> Evidence:
    rows = (row.model_copy(update=change) for row, change in zip(evidence.rows, changes, strict=True))
    return evidence.model_copy(update={"rows": tuple(rows)})


def test_likeliest_tokens_and_pooled_states_stand_at_their_sequence() -> None:
    asks = (
        Ask(context=ContextName.ANSWER, want=Want.DISTRIBUTION, top=2),
        Ask(context=ContextName.PLAIN, want=Want.HIDDEN),
    )
    group = make_ragged([(2, 0, 1)], asks=asks)[0]
    top, hidden = group.evidence
    likely = [
        make_top([[7, 8], [5, 6]], [[-1.0, -2.0], [-3.0, -4.0]]),
        {},
        make_top([[9, 3]], [[-5.0, -6.0]]),
    ]
    top = top.model_copy(update={"rows": tuple(r.model_copy(update=u) for r, u in zip(top.rows, likely, strict=True))})
    pooled = tuple(row.model_copy(update={"pooled": (float(i), 0.5)}) for i, row in enumerate(hidden.rows))
    hidden = hidden.model_copy(update={"rows": pooled})
    batch = pack([group.model_copy(update={"evidence": (top, hidden)})])
    evidence = batch.evidence[asks[0]]
    assert evidence.top_ids_BTk.tolist() == [[[7, 8], [5, 6]], [[0, 0], [0, 0]], [[9, 3], [0, 0]]]
    assert evidence.top_logp_BTk[2].tolist() == [[-5.0, -6.0], [0.0, 0.0]]
    assert batch.evidence[asks[1]].pooled_BD.tolist() == [[0.0, 0.5], [1.0, 0.5], [2.0, 0.5]]
    assert batch.rows([2]).evidence[asks[0]].top_ids_BTk.tolist() == [[[9, 3]]]


def follow_up(group: EvidencedGroup, index: int, **changes: Any) -> EvidencedGroup:
    """A follow-up group of the same size as its origin."""
    task = group.task.model_copy(update={"index": index, **changes})
    rollout = group.scored.rollout.model_copy(update={"task": task})
    return EvidencedGroup(scored=group.scored.model_copy(update={"rollout": rollout}))


def test_continuations_become_the_values_of_their_prefixes() -> None:
    first, second = make_ragged(LENGTHS)  # rewards alternate 0, 1
    start = follow_up(first, 2, origin=Origin(kind=FollowUp.CONTINUATION, index=0), prefix=())
    later = follow_up(second, 3, origin=Origin(kind=FollowUp.CONTINUATION, index=1, sample=1), prefix=(4, 4, 4))
    batch = pack([first, second, start, later])
    assert batch.size == 5
    value_BT1 = batch.prefix_value_BT1
    assert value_BT1.shape == (5, 6)
    assert value_BT1[:3, 0].tolist() == pytest.approx([1 / 3] * 3)
    assert value_BT1[4, 3] == 0.5
    assert int(value_BT1.isfinite().sum()) == 4


def test_a_response_to_a_privileged_prompt_becomes_a_demonstration_under_the_students_prompt() -> None:
    first, second = make_ragged(LENGTHS)
    hinted = (Message(role="user", content="3 + 4 = ? It is 7."),)
    shown = follow_up(second, 2, origin=Origin(kind=FollowUp.DEMONSTRATION, index=0), messages=hinted)
    batch = pack([first, second, shown])
    assert batch.demonstration_B.tolist() == [False] * 5 + [True] * 2
    assert batch.prompt_ids[5] == first.scored.rollout.prompt_token_ids
    assert batch.response_ids[5] == second.scored.rollout.completions[0].token_ids
    assert batch.reward_B[5:].isnan().all()
    assert not Grpo().advantages(batch, 0).adv_BT[5:].any()


def test_a_sample_without_a_verdict_is_in_no_statistic_and_no_denominator() -> None:
    timeout = make_verdict(0.0).model_copy(update={"outcome": Outcome.TIMEOUT})
    error = make_verdict(0.0).model_copy(update={"outcome": Outcome.GRADER_ERROR})
    judged = [make_verdict(reward) for reward in (1.0, 0.0, 1.0)]
    with_failed = make_scored(verdicts=[timeout, *judged, error])
    whole, bare = (pack([EvidencedGroup(scored=scored)]) for scored in (with_failed, make_scored(verdicts=judged)))
    assert whole.reward_B.isnan().tolist() == [True, False, False, False, True]
    assert whole.mask_BT.sum(1).tolist() == [0, 4, 3, 4, 0]
    adv_B = group_advantage(whole.reward_B, whole.group_B)
    assert adv_B.tolist() == [0.0, *group_advantage(bare.reward_B, bare.group_B).tolist(), 0.0]
    assert with_failed.reward_spread
    assert not make_scored(verdicts=[timeout, judged[0], judged[2]]).reward_spread
