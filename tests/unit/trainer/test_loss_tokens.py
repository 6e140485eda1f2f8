"""Means of an update are over the tokens in the loss, and the stored advantages are those that the loss followed."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from cepo.algo.batch import EvidenceTensors, TrainBatch
from cepo.algo.core import reweight
from cepo.algo.methods.rlsd import Rlsd
from cepo.algo.segments import decisions
from cepo.algo.variants import Grpo
from services.trainer.learning.batch import pack
from services.trainer.learning.learner import Learner
from tests.helpers.factories import make_config, make_ragged

torch.set_num_threads(1)


def test_the_means_of_spo_are_over_the_tokens_in_its_loss() -> None:
    """Tokens that the policy was sure of are no part of SPO's loss, and of no denominator of its metrics."""
    override = 'algorithm={name="spo-chain", confident=0.5, kl_coef=0.0}'
    learner, algorithm = Learner(make_config(override)), make_config(override).algorithm
    batch = pack(make_ragged([(3, 9, 5), (4, 2, 6)]))
    rollout_BT = torch.where(torch.arange(batch.mask_BT.shape[1]) % 2 == 0, -1.0, -0.1) * batch.mask_BT
    batch = replace(batch, rollout_logp_BT=rollout_BT)
    decided_BT = batch.mask_BT.bool() & decisions(rollout_BT, confident=0.5)
    logp_BT = learner._logp_old_BT(batch, torch.ones(batch.size, dtype=torch.bool))
    metrics = learner.update(batch, decided_BT.float(), algorithm, 0)
    assert metrics["entropy/sampled"] == pytest.approx(-float(logp_BT[decided_BT].mean()), rel=1e-4)
    assert metrics["tokens/trained"] == float(batch.mask_BT.sum())


def test_rlsd_with_the_current_student_stores_the_advantages_of_its_loss() -> None:
    override = 'algorithm={name="rlsd", student_logp="current"}'
    learner, algorithm = Learner(make_config(override)), make_config(override).algorithm
    assert isinstance(algorithm, Rlsd)
    batch = with_evidence(pack(make_ragged([(3, 9, 5, 4), (12, 1, 7, 2)])), algorithm)
    logp_BT = learner._logp_old_BT(batch, torch.ones(batch.size, dtype=torch.bool))
    base_BT = Grpo().advantages(batch, 0).adv_BT
    numerator_BT = batch.evidence[algorithm.asks[0]].logp_BT
    stored_BT, _ = learner.learn(batch, 0)
    expected_BT = reweight(base_BT, numerator_BT, logp_BT, algorithm.lam_at(0), algorithm.eps_w)
    torch.testing.assert_close(stored_BT, expected_BT, rtol=1e-3, atol=1e-5)
    assert not torch.allclose(stored_BT, base_BT)


def with_evidence(batch: TrainBatch, algorithm: Rlsd) -> TrainBatch:
    random = torch.Generator().manual_seed(3)
    logp_BT = -3 * torch.rand(batch.mask_BT.shape, generator=random) * batch.mask_BT
    measured = EvidenceTensors(logp_BT, torch.ones(batch.size, dtype=torch.bool))
    return replace(batch, evidence={algorithm.asks[0]: measured})
