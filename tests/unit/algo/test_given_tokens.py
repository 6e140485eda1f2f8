"""Given tokens change nothing: a batch with them has the credit, the loss and the gradient of the batch without them.

Shapes: B sequences, T response tokens (padded), S of them sampled, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import fields, replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings, strategies as st
from torch import Tensor

from cepo.algo.base import Algorithm
from cepo.algo.batch import EvidenceTensors, TrainBatch
from cepo.algo.variants import ALGORITHMS
from cepo.messages.groups import Ask, Want
from cepo.messages.spans import given_spans
from tests.parity.support import Distributed, random_sample

WORDS = 11
OPTIONS: dict[str, list[dict[str, Any]]] = {
    "grpo": [{}, {"importance_cap": 2.0, "importance": "sequence_mask"}, {"kl_coef": 0.1, "entropy_coef": 0.1}],
    "reinforce++": [{"gamma": 0.9, "kl_coef": 0.1}],
    "ppo": [{"gamma": 0.9, "gae_lambda": 0.8}],
    "rlsd": [{}, {"student_logp": "current"}],
    "cepo": [{}, {"wrong_hints": 2}, {"no_negative": "skip_group", "sign": "sequence"}],
    "prm": [{"form": form} for form in ("score", "difference", "min", "progress")],
}
CONTINUED = ("vineppo", "spo-chain", "spo-tree")
"""Methods that sample on from a prefix of a response; no environment can be set back to it."""
CASES = [(name, options) for name in ALGORITHMS if name not in CONTINUED for options in OPTIONS.get(name, [{}])]


def evidence_of(ask: Ask, mask_BT: Tensor, random: torch.Generator) -> EvidenceTensors:
    """Random evidence of an ask, for every sequence."""
    top = {}
    if ask.want is Want.DISTRIBUTION:
        logp_BTV = torch.randn(*mask_BT.shape, WORDS, generator=random).log_softmax(dim=2)
        top_logp_BTk, top_ids_BTk = logp_BTV.topk(min(ask.top or WORDS, WORDS), dim=2)
        top = {"top_ids_BTk": top_ids_BTk, "top_logp_BTk": top_logp_BTk}
    return EvidenceTensors(
        logp_BT=-torch.rand(mask_BT.shape, generator=random) * 3 * mask_BT,
        applicable_B=torch.rand(len(mask_BT), generator=random) < 0.8,
        **top,
    )


def make_batch(algorithm: Algorithm, seed: int) -> TrainBatch:
    """A batch without given tokens, with everything that the method reads."""
    random = torch.Generator().manual_seed(seed)
    batch = random_sample(seed).batch
    if algorithm.offline:  # pairs of a chosen and a rejected response
        batch = batch.rows(range(12))
        chosen_B = torch.arange(12) % 2 == 0
        batch = replace(batch, accuracy_B=chosen_B.float(), group_B=torch.arange(12) // 2, reward_B=chosen_B.float())
    ends = [tuple(dict.fromkeys((len(ids) // 2, len(ids)))) for ids in batch.response_ids]
    return replace(
        batch,
        evidence={ask: evidence_of(ask, batch.mask_BT, random) for ask in algorithm.asks},
        value_BT=torch.rand(batch.mask_BT.shape, generator=random) * batch.mask_BT,
        token_weight_BT=torch.rand(batch.mask_BT.shape, generator=random) * batch.mask_BT,
        step_ends=ends,
        step_rewards=[tuple(torch.rand(len(row), generator=random).tolist()) for row in ends],
    )


def spread(value: Tensor, at_BS: Tensor, width: int, fill: Tensor) -> Tensor:
    """The values [B, S, ...] of the sampled tokens at their places in [B, width, ...], with `fill` at the others."""
    result = fill.expand(len(value), width, *value.shape[2:]).clone().to(value.dtype)
    for row, places_S in enumerate(at_BS):
        kept_S = places_S >= 0
        result[row, places_S[kept_S]] = value[row, kept_S]
    return result


def with_given(batch: TrainBatch, masks: Sequence[Sequence[bool]], at_BS: Tensor, junk: float) -> TrainBatch:
    """The batch with given tokens in its responses. Every number at a given token, but the mask, is `junk`."""

    def widened(instance: Any) -> dict[str, Any]:
        columns = {f.name: getattr(instance, f.name) for f in fields(instance) if f.metadata.get("axes") == "BT"}
        fills = {"mask_BT": 0.0, "top_ids_BTk": 0}
        return {
            name: spread(value, at_BS, width, torch.tensor(fills.get(name, junk)))
            for name, value in columns.items()
            if value is not None
        }

    width = max(map(len, masks))
    ends = [
        tuple(len(mask) if end == steps[-1] else int(at_S[end - 1]) + 1 if end else 0 for end in steps)
        for steps, at_S, mask in zip(batch.step_ends, at_BS, masks, strict=True)
    ]
    return replace(
        batch,
        **widened(batch),
        response_ids=[(2,) * len(mask) for mask in masks],
        evidence={ask: replace(tensors, **widened(tensors)) for ask, tensors in batch.evidence.items()},
        step_ends=ends,
        given=[given_spans(mask) for mask in masks],
    )


def outcome(
    algorithm: Algorithm, batch: TrainBatch, logits_BTV: Tensor, old_BT: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, dict[str, float]]:
    """The advantages, the rows with a gradient, the loss and its gradient, and the metrics of an update."""
    advantages = algorithm.advantages(batch, 0)
    logits_BTV = logits_BTV.clone().requires_grad_()
    student = Distributed(logits_BTV, torch.full(batch.mask_BT.shape, 2), torch.ones_like(batch.mask_BT))
    output = algorithm.loss(student, old_BT, batch, advantages.adv_BT, batch)
    (gradient_BTV,) = torch.autograd.grad(output.loss, logits_BTV, allow_unused=True, materialize_grads=True)
    sums = {f"sum/{key}": value for key, value in output.token_sums.items()}
    logp_BT = student.logp_BT.detach()
    measured = advantages.metrics | algorithm.diagnostics(batch, advantages.adv_BT, logp_BT, 0) | sums
    trained_BT = algorithm.trained_advantages(batch, advantages.adv_BT, logp_BT, 0)
    has_gradient_B = algorithm.has_gradient_B(batch, advantages.adv_BT)
    return trained_BT, has_gradient_B, output.loss.detach(), gradient_BTV, measured


@pytest.mark.parametrize(("name", "options"), CASES, ids=lambda value: str(value))
@settings(max_examples=6, deadline=None, derandomize=True, database=None)
@given(seed=st.integers(0, 2**16), junk=st.sampled_from([-7.0, -0.5]), data=st.data())
def test_given_tokens_have_no_credit_no_loss_and_no_place_in_a_denominator(
    name: str, options: dict[str, Any], seed: int, junk: float, data: st.DataObject
) -> None:
    algorithm = ALGORITHMS[name].model_validate({"name": name, **options})
    batch = make_batch(algorithm, seed)
    masks, places = [], []
    for ids in batch.response_ids:
        gaps = data.draw(st.lists(st.integers(0, 3), min_size=len(ids) + 1, max_size=len(ids) + 1))
        mask = [sampled for gap in gaps for sampled in (*[False] * gap, True)][:-1]
        masks.append(mask)
        places.append(torch.tensor([at for at, sampled in enumerate(mask) if sampled]))
    at_BS = torch.nn.utils.rnn.pad_sequence(places, batch_first=True, padding_value=-1).long()
    at_BS = torch.nn.functional.pad(at_BS, (0, batch.mask_BT.shape[1] - at_BS.shape[1]), value=-1)
    longer = with_given(batch, masks, at_BS, junk)

    random = torch.Generator().manual_seed(seed)
    logits_BSV = torch.randn(*batch.mask_BT.shape, WORDS, generator=random)
    old_BS = logits_BSV.log_softmax(dim=2)[..., 2] + 0.2 * torch.randn(batch.mask_BT.shape, generator=random)
    width = longer.mask_BT.shape[1]
    other_BTV = spread(logits_BSV, at_BS, width, torch.full((WORDS,), junk).index_fill(0, torch.tensor([2]), 3.0))
    other_old_BT = spread(old_BS, at_BS, width, torch.tensor(junk))

    expected = outcome(algorithm, batch, logits_BSV, old_BS)
    actual = outcome(algorithm, longer, other_BTV, other_old_BT)
    nothing = torch.tensor(0.0)
    kept_BS = batch.mask_BT
    wanted_BT = spread(expected[0] * kept_BS, at_BS, width, nothing)
    torch.testing.assert_close(actual[0], wanted_BT, rtol=1e-5, atol=1e-6)
    assert torch.equal(actual[1], expected[1])
    torch.testing.assert_close(actual[2], expected[2], rtol=1e-5, atol=1e-6)
    wanted_BTV = spread(expected[3] * kept_BS[..., None], at_BS, width, nothing)
    torch.testing.assert_close(actual[3], wanted_BTV, rtol=1e-5, atol=1e-7)
    assert actual[4] == pytest.approx(expected[4], rel=1e-4, abs=1e-5)
