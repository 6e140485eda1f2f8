"""Every causal-LM family of transformers: our log-probs and gradients are its own, or the family is refused by name."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, get_args

import pytest
import torch
from torch import Tensor

from cepo.errors import UserError
from cepo.model import attention, probe
from cepo.model.forward import checkpoint_layers
from tests.helpers.families import FAMILIES, adapted, build, gradient, our_logps, plain_logps, random_rows

torch.set_num_threads(1)
Outcome = Literal["tree", "padded", "refused"]
KNOWN: dict[str, Outcome] = {
    "falcon_h1": "refused",
    "gemma2": "refused",
    "gemma4_text": "padded",
    "gpt2": "tree",
    "inkling_text": "refused",
    "llama": "tree",
    "llama4_text": "padded",
    "minicpm3": "refused",
    "nemotron": "padded",
    "opt": "tree",
    "phi3": "tree",
    "qwen3_5_text": "padded",
    "recurrent_gemma": "refused",
}
"""Families that were once wrong, and common ones."""


def outcome(family: str) -> Outcome:
    """Tries a family: right log-probs and gradients, also with checkpointing, or a refusal of one line.

    The bounds are 1e-5 nats, and 1e-4 of the gradient's norm.
    """
    model = build(family)
    if refused(model, family):
        return "refused"
    words = min(len(model.get_input_embeddings().weight), len(model.get_output_embeddings().weight))
    rows = random_rows(1, words)
    with torch.no_grad():
        gap = (our_logps(model, *rows) - plain_logps(model, *rows)).abs().max()
    assert float(gap) <= 1e-5
    weights = adapted(model)
    if refused(model, family, weights):
        return "refused"
    wanted = gradient(plain_logps(model, *rows), weights)
    assert float(wanted.norm()) > 0.01
    assert float((gradient(our_logps(model, *rows), weights) - wanted).norm() / wanted.norm()) <= 1e-4
    if model.supports_gradient_checkpointing:
        checkpoint_layers(model)
        if refused(model, family, weights):
            return "refused"
        assert float((gradient(our_logps(model, *rows), weights) - wanted).norm() / wanted.norm()) <= 1e-4
    return "tree" if model.config.get_text_config()._attn_implementation == attention.NAME else "padded"


def refused(model: Any, family: str, weights: Sequence[Tensor] = ()) -> bool:
    """Whether the probe refuses a model, which it must do in one line that names the family."""
    try:
        probe.prove(model, f"tiny/{family}", weights)
    except UserError as error:
        said = str(error)
        if not said.startswith(f"model 'tiny/{family}' of the family ") or "\n" in said:
            raise
        return True
    return False


@pytest.mark.parametrize("family", sorted(KNOWN))
def test_a_known_family_is_right_or_refused(family: str) -> None:
    assert outcome(family) == KNOWN[family]


@pytest.mark.nightly
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_is_right_or_refused(family: str) -> None:
    assert outcome(family) in get_args(Outcome)


def test_the_sweep_has_at_least_120_families() -> None:
    assert len(FAMILIES) >= 120
    assert set(KNOWN) <= set(FAMILIES)
