"""Groups without a contrast, from their verdicts through the evidence to the advantages.

A table gives the log-prob of every token under each context, so the expected advantages can be computed by hand.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from cepo.algo.methods.cepo import Cepo
from cepo.algo.methods.rlsd import Rlsd
from cepo.algo.variants import Grpo
from cepo.messages.arrays import Float32Array
from cepo.messages.groups import ContextName, Evidence, EvidencedGroup, EvidenceRow, Outcome, Verdict
from cepo.teaching.contexts import Hint, hints
from services.trainer.learning.batch import pack
from tests.helpers.factories import make_proof, make_scored, make_task, make_verdict

WORTH = {ContextName.PLAIN: -2.0, ContextName.ANSWER: -1.0, ContextName.REJECTED: -3.0}
"""The log-prob of every token under each context."""
CORRECT, WRONG = make_verdict(1.0), make_verdict(0.0, "5")
UNPARSED = Verdict(outcome=Outcome.UNPARSED, reward=0.0, accuracy=0.0)
EMPTY_BOX = Verdict(outcome=Outcome.WRONG, reward=0.1, accuracy=0.0)
TRUNCATED = Verdict(outcome=Outcome.TRUNCATED, reward=0.0, accuracy=0.0)
SAME = make_verdict(0.0, "7")
FORMATTED = CORRECT.model_copy(update={"reward": 1.1})


def taught(
    algorithm: Cepo | Rlsd, verdicts: Sequence[Verdict], worth: dict[ContextName, float] | None = None
) -> EvidencedGroup:
    """Returns a group with the evidence that the teacher returns for it."""
    scored = make_scored(task=make_task(samples=len(verdicts), asks=algorithm.asks), verdicts=verdicts)

    def row(hint: Hint, length: int) -> EvidenceRow:
        logps = Float32Array.of([(worth or WORTH)[hint.context]] * (length if hint.applicable else 0))
        return EvidenceRow(logps=logps, applicable=hint.applicable, context=hint.context, reason=hint.reason)

    lengths = [len(c.token_ids) for c in scored.rollout.completions]
    evidence = [
        Evidence(ask=ask, rows=tuple(row(h, n) for h, n in zip(hints(ask, scored), lengths, strict=True)))
        for ask in algorithm.asks
    ]
    return EvidencedGroup(scored=scored, evidence=tuple(evidence), proofs=(make_proof(),))


def multiplier(algorithm: Cepo | Rlsd, *verdicts: Verdict) -> Tensor:
    """Returns the multiplier of the advantage at the first token of each response, [B]."""
    batch = pack([taught(algorithm, verdicts)])
    return (algorithm.advantages(batch, 0).adv_BT / Grpo().advantages(batch, 0).adv_BT)[:, 0]


def weighed(delta: float, sign: float, algorithm: Cepo | Rlsd) -> float:
    weight = min(max(math.exp(sign * delta), 1 - algorithm.eps_w), 1 + algorithm.eps_w)
    return 1 - algorithm.lam + algorithm.lam * weight


def test_with_a_wrong_answer_the_contrast_is_between_the_two_answers() -> None:
    multiplier_B = multiplier(Cepo(), CORRECT, WRONG)
    assert multiplier_B.tolist() == pytest.approx([weighed(2, 1, Cepo()), weighed(2, -1, Cepo())])


@pytest.mark.parametrize(
    "verdicts",
    [(CORRECT, FORMATTED), (CORRECT, UNPARSED), (CORRECT, EMPTY_BOX), (CORRECT, TRUNCATED), (CORRECT, SAME)],
    ids=["all-correct", "no-answer", "empty-box", "truncated", "same-as-the-answer"],
)
def test_without_a_wrong_answer_no_negative_decides(verdicts: tuple[Verdict, Verdict]) -> None:
    options: dict[str, Any] = {"eps_w": 0.9}
    signs = [1, -1] if verdicts[0].reward > verdicts[1].reward else [-1, 1]
    rlsd = [weighed(1, sign, Cepo(**options)) for sign in signs]
    assert multiplier(Cepo(**options), *verdicts).tolist() == pytest.approx(rlsd)
    assert multiplier(Rlsd(**options), *verdicts).tolist() == pytest.approx(rlsd)  # RLSD has this contrast
    assert multiplier(Cepo(no_negative="grpo"), *verdicts).tolist() == [1.0, 1.0]  # exactly 1
    assert multiplier(Cepo(no_negative="skip_group"), *verdicts).tolist() == [0.0, 0.0]


@pytest.mark.parametrize("unusable", [UNPARSED, EMPTY_BOX, TRUNCATED, SAME])
def test_a_rejected_rollout_that_says_nothing_gives_way_to_the_next_one(unusable: Verdict) -> None:
    group = taught(Cepo(), [CORRECT, unusable, make_verdict(0.0, "6")])
    assert {row.context for row in group.evidence[1].rows} == {ContextName.REJECTED}


def test_all_wrong_groups_of_differing_rewards_are_weighed_unless_that_is_off() -> None:
    formatted = WRONG.model_copy(update={"reward": 0.1})
    assert multiplier(Cepo(), formatted, UNPARSED).tolist() != [1.0, 1.0]
    assert multiplier(Cepo(modulate_all_wrong=False), formatted, UNPARSED).tolist() == [1.0, 1.0]


@pytest.mark.parametrize("value", [-math.inf, math.nan])
@pytest.mark.parametrize("context", list(WORTH))
def test_a_zero_advantage_stays_zero_and_every_other_keeps_its_sign_whatever_the_evidence(
    context: ContextName, value: float
) -> None:
    for algorithm in (Cepo(), Cepo(wrong_hints=2), Rlsd()):
        for verdicts in ([CORRECT, WRONG], [CORRECT, CORRECT], [WRONG, WRONG]):
            batch = pack([taught(algorithm, verdicts, WORTH | {context: value})])
            adv_BT = algorithm.advantages(batch, 0).adv_BT
            assert torch.equal(torch.sign(adv_BT), torch.sign(Grpo().advantages(batch, 0).adv_BT))
    metrics = Cepo().advantages(pack([taught(Cepo(), [CORRECT, WRONG], WORTH | {context: value})]), 0).metrics
    assert metrics["credit/nonfinite_tokens"] == (0 if context is ContextName.PLAIN else 7)
    assert all(math.isfinite(metric) for metric in metrics.values())


def test_a_rollout_alone_with_its_wrong_answer_is_not_contrasted_with_itself() -> None:
    algorithm = Cepo(exclude_self=True, no_negative="grpo")
    assert multiplier(algorithm, CORRECT, WRONG).tolist() == pytest.approx([weighed(2, 1, algorithm), 1.0])


def test_the_sharpness_probe_leaves_substitutes_out() -> None:
    contrasted, substituted = taught(Cepo(), [CORRECT, WRONG]), taught(Cepo(), [CORRECT, UNPARSED])
    one, other = (Cepo().advantages(pack([group]), 0).metrics for group in (contrasted, substituted))
    # The sampling policy's log-probs are above -3, so the rejected context makes every token less likely.
    assert (one["credit/sharper_correct"], one["credit/sharper_wrong"]) == (1.0, 0.0)
    assert (other["credit/sharper_correct"], other["credit/sharper_wrong"]) == (0.0, 0.0)
    assert other["credit/tokens"] == 7
