"""The proof of the forward pass at load: what it refuses, when it falls back to padded rows, what it leaves alone."""

from __future__ import annotations

import logging
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import Phi3Config

import cepo.tiny
from cepo.errors import UserError
from cepo.model import attention, probe, rope
from cepo.model.forward import checkpoint_layers, cut_passes, load_causal_lm
from cepo.model.miniature import HEAD_DIM, miniature
from cepo.model.tree import padded_passes
from tests.helpers.families import adapted, build, gradient, our_logps, plain_logps, random_rows

torch.set_num_threads(1)
FACTORS = HEAD_DIM // 2
LONGROPE = {
    "rope_type": "longrope",
    "rope_theta": 10000.0,
    "short_factor": [1.0] * FACTORS,
    "long_factor": [1.0 + 3 * i for i in range(FACTORS)],
    "original_max_position_embeddings": 64,
}


@torch.no_grad()
def gap(model: Any) -> float:
    rows = random_rows(1)
    return float((our_logps(model, *rows) - plain_logps(model, *rows)).abs().max())


def test_a_layer_that_drops_the_tree_sends_the_family_to_padded_rows(caplog: pytest.LogCaptureFixture) -> None:
    """Nemotron's layers hand no keyword arguments on, so attention gets the mask that stands for a tree: NaN."""
    model = build("nemotron")
    assert attention.takes_trees(model)
    assert gap(model) != gap(model)
    with caplog.at_level(logging.WARNING):
        probe.prove(model, "tiny/nemotron")
        probe.prove(model, "tiny/nemotron")
    assert [record.message for record in caplog.records] == [
        "model 'tiny/nemotron' of the family nemotron computes other log-probs over shared prefixes: every sequence "
        "runs in full"
    ]
    assert not attention.takes_trees(model)
    assert gap(model) < 1e-5


def test_a_state_that_runs_along_the_flat_tree_sends_the_family_to_padded_rows() -> None:
    model = build("recurrent_gemma", logits_soft_cap=1e9)
    assert attention.takes_trees(model)
    assert gap(model) > 0.01
    probe.prove(model, "tiny/recurrent_gemma")
    assert not attention.takes_trees(model)
    assert gap(model) < 1e-5


def test_dropout_inside_checkpointed_layers_stays_asleep() -> None:
    model = build("opt", dropout=0.5, activation_dropout=0.5)
    rows = random_rows(1)
    weights = adapted(model)
    wanted = gradient(plain_logps(model, *rows), weights)
    checkpoint_layers(model)
    probe.prove(model, "tiny/opt", weights)
    assert float((gradient(our_logps(model, *rows), weights) - wanted).norm() / wanted.norm()) <= 1e-4


def test_dropout_that_wakes_is_refused() -> None:
    model = build("opt", dropout=0.5)
    for module in model.modules():
        module.training = True
    with pytest.raises(UserError, match=r"^model 'tiny/opt' of the family opt is not supported: the log-probs of its "):
        probe.prove(model, "tiny/opt")


def test_the_adapter_and_the_random_state_are_as_before() -> None:
    model = load_causal_lm(str(cepo.tiny.path()), "float32", "cpu")
    weights = adapted(model)
    before, state = [weight.detach().clone() for weight in weights], torch.get_rng_state()
    probe.prove(model, "tiny", weights)
    assert all(torch.equal(weight, kept) for weight, kept in zip(weights, before, strict=True))
    assert all(weight.grad is None for weight in weights)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    ("family", "right"), [("llama", True), ("qwen3_moe", True), ("gemma3_text", True), ("falcon_h1", False)]
)
def test_in_half_precision_rounding_is_let_pass_and_a_wrong_family_is_not(
    family: str, right: bool, dtype: torch.dtype
) -> None:
    model = build(family).to(dtype)
    if right:
        probe.prove(model, family)
    else:
        with pytest.raises(UserError, match="differ from its own by"):
            probe.prove(model, family)


def test_the_bound_grows_with_depth_and_with_the_logits() -> None:
    logits_NV = torch.randn(4, 512, generator=torch.Generator().manual_seed(0))
    assert probe.rounding_bound(logits_NV, torch.float32, 28) == probe.FLOAT32_BOUND
    shallow, deep = (probe.rounding_bound(logits_NV, torch.bfloat16, layers) for layers in (2, 28))
    assert 0.05 < shallow < deep < 0.5
    assert probe.rounding_bound(2 * logits_NV, torch.bfloat16, 2) == pytest.approx(2 * shallow)


def test_a_family_without_trees_gets_passes_of_its_padded_size() -> None:
    """Sixteen responses in three contexts of a long prompt: distinct tokens fit one pass, padded rows take many."""
    prompt = [7] * 200
    rows = [[*prompt, *([context] * context), *[response] * 5] for context in range(3) for response in range(16)]
    assert len(cut_passes(build("llama"), rows, 2000)) == 1
    passes = cut_passes(build("gemma3_text"), rows, 2000)
    assert sorted(row for part in passes for row in part) == list(range(len(rows)))
    assert max(len(part) * max(len(rows[row]) for row in part) for part in passes) <= 2000


@pytest.mark.parametrize("budget", [1, 8, 50, 10**6])
def test_padded_passes_hold_every_row_once(budget: int) -> None:
    rows = [[0] * length for length in (2, 4, 2, 4, 30, 9, 1)]
    passes = padded_passes(rows, budget)
    assert sorted(row for part in passes for row in part) == list(range(len(rows)))
    assert all(len(part) == 1 or len(part) * max(len(rows[row]) for row in part) <= budget for part in passes)
    assert padded_passes(rows[:4], 8) == [[0, 2], [1, 3]]
    assert padded_passes([], 8) == []


def phi3(max_length: int) -> Any:
    config = Phi3Config(
        head_dim=HEAD_DIM,
        hidden_size=64,
        num_attention_heads=4,
        vocab_size=512,
        max_position_embeddings=512,
        original_max_position_embeddings=64,
        rope_parameters=dict(LONGROPE),
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    rope.choose_factors(config, max_length)
    return miniature(config)


@torch.no_grad()
def test_longrope_takes_the_factors_that_vllm_takes() -> None:
    """Short rows of a run with a long `model.max_length` are rotated as a pass above the original length is."""

    def logps(model: Any, length: int) -> Tensor:
        ids = torch.arange(100, 100 + length)[None] % 512
        return torch.log_softmax(model(input_ids=ids).logits[0, :30], dim=-1)

    plain, short, long = phi3(0), phi3(64), phi3(65)
    assert rope.long_from(plain.config) == 64
    assert torch.equal(logps(plain, 40), logps(short, 40))
    torch.testing.assert_close(logps(long, 40), logps(plain, 100), rtol=0, atol=1e-4)
    assert float((logps(long, 40) - logps(short, 40)).abs().max()) > 0.1
    probe.prove(long, "tiny/phi3")


def test_a_model_without_longrope_has_no_factors_to_choose() -> None:
    assert rope.long_from(build("llama").config) == 0
    assert rope.long_from(build("gemma3_text").config) == 0
