"""RLSD's own options: the student in the contrast, and which tokens are weighed."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from cepo.algo.batch import EvidenceTensors, TrainBatch
from cepo.algo.core import reweight
from cepo.algo.methods.rlsd import Rlsd
from cepo.algo.variants import Grpo
from tests.parity.support import Scored, both, random_sample


def test_negative_only_weighs_what_has_a_negative_advantage() -> None:
    batch = random_sample(2).batch
    grpo_BT, both_BT, negative_only_BT = (
        method.advantages(batch, 0).adv_BT for method in (Grpo(), Rlsd(), Rlsd(negative_only=True))
    )
    assert torch.equal(negative_only_BT, torch.where(grpo_BT < 0, both_BT, grpo_BT))
    assert (negative_only_BT != both_BT).any()


def test_the_current_student_is_the_old_one_before_the_first_update() -> None:
    sample = random_sample(4)
    old, current = Rlsd(), Rlsd(student_logp="current")
    batch = sample.batch
    plain_BT = batch.evidence[old.asks[1]].logp_BT
    options = (plain_BT, batch)
    expected = old.loss(Scored(plain_BT), *options, old.advantages(batch, 0).adv_BT, batch)
    actual = current.loss(Scored(plain_BT), *options, current.advantages(batch, 0).adv_BT, batch)
    torch.testing.assert_close(actual.loss, expected.loss)
    assert torch.equal(current.advantages(batch, 0).adv_BT, Grpo().advantages(batch, 0).adv_BT)


def test_the_current_student_is_measured_where_it_was_seen() -> None:
    """After an update the metrics use the log-probs of the update in place of those of the old student."""
    sample = random_sample(4)
    plain = {Rlsd().asks[1]: EvidenceTensors(sample.logp_BT, torch.ones(13, dtype=torch.bool))}
    moved = replace(sample.batch, evidence={**sample.batch.evidence, **plain})
    expected, current = Rlsd().advantages(moved, 0).metrics, Rlsd(student_logp="current")
    before = current.advantages(sample.batch, 0)
    assert before.metrics == Grpo().advantages(sample.batch, 0).metrics | {"credit/lambda": expected["credit/lambda"]}
    assert current.diagnostics(sample.batch, before.adv_BT, sample.logp_BT, 0) == expected
    assert Rlsd().advantages(sample.batch, 0).metrics != expected
    assert Rlsd().diagnostics(sample.batch, before.adv_BT, sample.logp_BT, 0) == {}
    assert expected["credit/tokens"] > 0


@pytest.mark.parametrize("student", ["old", "current"])
def test_with_a_thoughts_end_only_the_tokens_before_it_are_weighed_and_none_without_it(student: Any) -> None:
    sample = random_sample(6)
    ends = [(min(2, length), length) if row % 2 else (length,) for row, length in enumerate(lengths(sample.batch))]
    batch = replace(sample.batch, step_ends=ends)
    whole, thought = Rlsd(student_logp=student), Rlsd(student_logp=student, thought_end="</think>")
    grpo_BT = Grpo().advantages(batch, 0).adv_BT
    inside_B = torch.tensor([end[0] if len(end) > 1 else 0 for end in ends])
    inside_BT = torch.arange(grpo_BT.shape[1]) < inside_B[:, None]
    everywhere_BT, thought_BT = (weighed(method, sample.logp_BT, batch) for method in (whole, thought))
    torch.testing.assert_close(thought_BT, torch.where(inside_BT, everywhere_BT, grpo_BT))
    assert (thought_BT != everywhere_BT).any()
    assert (whole.reasoning_delimiter, thought.reasoning_delimiter) == ("", "</think>")


def lengths(batch: TrainBatch) -> list[int]:
    return [len(ids) for ids in batch.response_ids]


def weighed(method: Rlsd, logp_BT: Tensor, batch: TrainBatch) -> Tensor:
    """Returns the advantages [B, T] inside the surrogate, computed from its gradient at a ratio of 1."""
    logp_BT = logp_BT.clone().requires_grad_()
    adv_BT = method.advantages(batch, 0).adv_BT
    method.loss(Scored(logp_BT), logp_BT.detach(), batch, adv_BT, batch).loss.backward()
    return (-logp_BT.grad * batch.mask_BT.sum()).where(batch.mask_BT.bool(), 0.0)


def test_the_current_student_carries_no_gradient_through_its_weight() -> None:
    sample = random_sample(5)
    algorithm = Rlsd(student_logp="current")
    logp_BT = sample.logp_old_BT.clone().requires_grad_()
    adv_BT = algorithm.advantages(sample.batch, 0).adv_BT
    algorithm.loss(Scored(logp_BT), sample.logp_old_BT, sample.batch, adv_BT, sample.batch).loss.backward()
    weighed_BT = reweight(adv_BT, both(sample.batch)[0], sample.logp_old_BT, algorithm.lam, algorithm.eps_w)
    # At a ratio of 1 the surrogate's gradient is -A / N; a gradient through the weight would add a term.
    torch.testing.assert_close(logp_BT.grad, -weighed_BT / sample.batch.mask_BT.sum(), rtol=1e-5, atol=1e-8)
