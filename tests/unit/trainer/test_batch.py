"""Groups as tensors: alignment, masks, and what counts as measured."""

from __future__ import annotations

import torch

from cepo.algo.core import group_advantage
from cepo.contracts import Ask, ContextName, EvidencedGroup, EvidenceReason, EvidenceRow, Outcome
from services.trainer.batch import pack, select
from tests.factories import ASKS, make_ragged, make_scored, make_verdict

LENGTHS = [(3, 0, 5), (2, 4)]
FLAT = [3, 0, 5, 2, 4]
ABSENT = EvidenceRow(logps=(), applicable=False, context=ContextName.PLAIN, reason=EvidenceReason.NO_ANSWER)


def unmeasured(group: EvidencedGroup, ask: int, row: int) -> EvidencedGroup:
    """The group with one row of one ask not applicable."""
    evidence = list(group.evidence)
    rows = list(evidence[ask].rows)
    rows[row] = ABSENT
    evidence[ask] = evidence[ask].model_copy(update={"rows": tuple(rows)})
    return group.model_copy(update={"evidence": tuple(evidence)})


def test_every_value_stands_at_its_token() -> None:
    groups = make_ragged(LENGTHS)
    batch = pack(groups, ASKS)
    completions = [c for group in groups for c in group.scored.rollout.completions]
    assert batch.size == 5
    assert batch.mask_BT.shape == batch.rollout_logp_BT.shape == batch.evidence[0].shape == (5, 5)
    assert batch.mask_BT.sum(1).tolist() == FLAT
    rows = [[row for group in groups for row in group.evidence[at].rows] for at in range(2)]
    for i, completion in enumerate(completions):
        length = FLAT[i]
        assert batch.response_ids[i] == completion.token_ids
        assert batch.mask_BT[i, :length].all()
        assert batch.rollout_logp_BT[i].tolist() == [*completion.logps, *[0.0] * (5 - length)]
        for at in range(2):
            assert batch.evidence[at][i].tolist() == [*rows[at][i].logps, *[0.0] * (5 - length)]


def test_sequences_keep_their_group_prompt_and_reward() -> None:
    groups = make_ragged(LENGTHS)
    batch = pack(groups, ASKS)
    assert batch.group_B.tolist() == [0, 0, 0, 1, 1]
    assert batch.prompt_ids == [groups[i].scored.rollout.prompt_token_ids for i in (0, 0, 0, 1, 1)]
    assert batch.reward_B.tolist() == batch.accuracy_B.tolist() == [0.0, 1.0, 0.0, 0.0, 1.0]
    assert batch.measured_B is not None
    assert batch.measured_B.tolist() == [True] * 5


def test_a_group_that_skipped_the_teacher_has_no_evidence_beside_one_that_has() -> None:
    first, second = make_ragged(LENGTHS)
    skipped = EvidencedGroup(scored=first.scored)
    batch = pack([skipped, second], ASKS)
    assert batch.measured_B is not None
    assert batch.measured_B.tolist() == [False] * 3 + [True] * 2
    whole = pack([first, second], ASKS)
    for evidence_BT, whole_BT in zip(batch.evidence, whole.evidence, strict=True):
        assert torch.equal(evidence_BT[:3], torch.zeros(3, 5))
        assert torch.equal(evidence_BT[3:], whole_BT[3:])


def test_a_step_that_skipped_the_teacher_whole_is_packed() -> None:
    groups = [EvidencedGroup(scored=group.scored) for group in make_ragged(LENGTHS)]
    batch = pack(groups, ASKS)
    assert [evidence_BT.shape for evidence_BT in batch.evidence] == [(5, 5)] * 2
    assert not any(evidence_BT.any() for evidence_BT in batch.evidence)
    assert pack(groups, ()).evidence == ()


def test_a_sequence_one_ask_could_not_measure_has_no_evidence_at_all() -> None:
    first, second = make_ragged(LENGTHS)
    for ask in range(2):
        batch = pack([unmeasured(first, ask, 2), second], ASKS)
        assert batch.measured_B is not None
        assert batch.measured_B.tolist() == [True, True, False, True, True]
        assert not any(evidence_BT[2].any() for evidence_BT in batch.evidence)
        assert all(evidence_BT[0, :3].all() for evidence_BT in batch.evidence)


def test_responses_that_are_all_empty_make_a_batch_of_no_tokens() -> None:
    batch = pack(make_ragged([(0, 0)]), ASKS)
    assert batch.mask_BT.shape == batch.evidence[1].shape == (2, 0)


def test_selected_sequences_are_cut_to_their_own_longest() -> None:
    batch = pack(make_ragged(LENGTHS), ASKS)
    part = select(batch, [4, 1])
    assert part.response_ids == [batch.response_ids[4], batch.response_ids[1]]
    assert part.prompt_ids == [batch.prompt_ids[4], batch.prompt_ids[1]]
    assert part.mask_BT.tolist() == [[1.0] * 4, [0.0] * 4]
    assert torch.equal(part.rollout_logp_BT[0], batch.rollout_logp_BT[4, :4])
    assert torch.equal(part.evidence[1][0], batch.evidence[1][4, :4])
    assert (part.group_B.tolist(), part.reward_B.tolist()) == ([1, 0], [1.0, 1.0])


def test_the_asks_of_a_batch_keep_their_order() -> None:
    asks = (Ask(context=ContextName.PLAIN), *ASKS)
    batch = pack(make_ragged(LENGTHS, asks=asks), asks)
    groups = make_ragged(LENGTHS, asks=asks)
    firsts = [groups[0].evidence[at].rows[0].logps[0] for at in range(3)]
    assert [float(evidence_BT[0, 0]) for evidence_BT in batch.evidence] == firsts


def test_a_sample_without_a_verdict_is_in_no_statistic_and_no_denominator() -> None:
    timeout = make_verdict(0.0).model_copy(update={"outcome": Outcome.TIMEOUT})
    error = make_verdict(0.0).model_copy(update={"outcome": Outcome.GRADER_ERROR})
    judged = [make_verdict(reward) for reward in (1.0, 0.0, 1.0)]
    with_failed = make_scored(verdicts=[timeout, *judged, error])
    whole, bare = (pack([EvidencedGroup(scored=scored)], ()) for scored in (with_failed, make_scored(verdicts=judged)))
    assert whole.reward_B.isnan().tolist() == [True, False, False, False, True]
    assert whole.mask_BT.sum(1).tolist() == [0, 4, 3, 4, 0]
    adv_B = group_advantage(whole.reward_B, whole.group_B)
    assert adv_B.tolist() == [0.0, *group_advantage(bare.reward_B, bare.group_B).tolist(), 0.0]
    assert with_failed.reward_spread
    assert not make_scored(verdicts=[timeout, judged[0], judged[2]]).reward_spread
