"""The proof, at load, that this project's forward pass computes what the model's own does.

The forward pass (`cepo.model.forward`) runs a model without its head and applies the head itself. What a family does
between the two (a multiplier, a cap) would be left out, and a family may drop the tree on its way to attention, or
carry a state along the flat tree. So every model is tried once, with two short rows that share a beginning:

1. each row alone through `model(input_ids).logits`, with the model's own attention;
2. both rows through `response_logps`, with the adapter and gradient checkpointing if there are any.

Over a tree first: if the results differ there, the model is kept on padded rows. If they differ there too, it is
refused.

Legend: T response tokens, V vocabulary size.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from cepo.errors import UserError
from cepo.model import attention
from cepo.model.forward import response_logps

log = logging.getLogger(__name__)

SHARED, RESPONSES = 24, (8, 14)
"""Tokens of the shared beginning, and of the two responses."""
FLOAT32_BOUND = 1e-3
"""The least bound in nats. In float32 right models differ by 1e-6 to 3e-5, wrong ones by 0.1 and more."""
STEP = 7919
"""A prime: the probe's tokens are its multiples, spread over the vocabulary."""


@dataclass(frozen=True)
class OwnPass:
    """What the model's own forward pass gives for the response tokens of both rows."""

    logps: tuple[Tensor, ...]
    """[T] float32 for each row."""
    bound: float
    """The largest difference, in nats, that rounding explains."""


def prove(model: Any, name: str, adapter: Sequence[Tensor] = (), *, warn: bool = True) -> None:
    """Compares the two forward passes; keeps the model on padded rows, or refuses it, if they differ.

    Args:
        model: a transformers causal LM, with or without PEFT layers.
        name: the model's name or folder, for messages.
        adapter: the trained weights. They are changed during the comparison, because a new adapter changes nothing, and
            restored bit for bit. Random number generators are restored too.
        warn: log that a model is kept on padded rows.

    Raises:
        UserError: the results differ, or one of the passes fails.
    """
    family = f"model {name!r} of the family {model.config.model_type}"
    device = next(model.parameters()).device
    with torch.no_grad(), torch.random.fork_rng([device] if device.type == "cuda" else []), _perturbed(adapter):
        try:
            reference = own_pass(model)
        except Exception as error:  # a family may fail in any way
            raise UserError(f"{family} fails in its own forward pass on text: {_line(error)}") from error
        if attention.takes_trees(model):
            gap = _gap(model, reference, adapter)
            if gap <= reference.bound:
                return
            attention.keep_padded(model)
            if warn:
                log.warning("%s computes other log-probs over shared prefixes: every sequence runs in full", family)
        try:
            gap = _gap(model, reference, adapter, quiet=False)
        except Exception as error:
            raise UserError(f"{family} is not supported: {_line(error)}; choose another model") from error
    if not gap <= reference.bound:
        raise UserError(
            f"{family} is not supported: the log-probs of its hidden states and head alone differ from its own by "
            f"{gap:.3g} nats (at most {reference.bound:.3g}); choose another model"
        )


def own_pass(model: Any) -> OwnPass:
    """The reference: each row alone, in evaluation mode, through all layers and the head as the family defines them."""
    prompt, responses = probe_rows(model)
    logps, logits = [], []
    with attention.own_attention(model), _evaluated(model):
        for response in responses:
            ids = torch.tensor([[*prompt, *response]], device=next(model.parameters()).device)
            logits_TV = model(input_ids=ids, use_cache=False).logits[0, len(prompt) - 1 : -1].float()
            target_T1 = ids[0, len(prompt) :, None]
            logps.append(torch.log_softmax(logits_TV, dim=-1).gather(1, target_T1)[:, 0].cpu())
            logits.append(logits_TV)
    layers = getattr(model.config.get_text_config(), "num_hidden_layers", None) or 1
    return OwnPass(tuple(logps), rounding_bound(torch.cat(logits), model.dtype, layers))


def rounding_bound(logits_NV: Tensor, dtype: torch.dtype, layers: int) -> float:
    """The largest difference of log-probs, in nats, between two ways to compute the same pass.

    Let eps be the spacing of the data type at 1 (float32 1.2e-7, float16 9.8e-4, bfloat16 7.8e-3). One rounding changes
    a number by at most eps/2 of it, by 0.2 eps on average. A layer rounds about six results that reach the residual
    stream: two sums, and twice a norm and a product. Over L layers the independent errors add up to 0.2 eps sqrt(6 L),
    relative to the hidden state, and to 0.7 eps sqrt(L) between two passes. An error in a random direction changes a
    logit by that share of the logits' standard deviation s over the vocabulary. Forty tokens stay within four standard
    deviations, 2.8 eps sqrt(L) s, taken as 4 eps sqrt(2 L) s to leave room for directions that are not random.
    Finally each logit is rounded once, by eps/2 of the largest magnitude m in either pass and for either operand:

        bound = eps (4 sqrt(2 L) s + 2 m)

    Example in bfloat16: 28 layers with s = 2 and m = 12 give 0.66 nats, where a wrong family is several nats off. In
    float32 the bound is far below FLOAT32_BOUND, which then counts.
    """
    eps = torch.finfo(dtype).eps
    spread, peak = float(logits_NV.std(dim=-1).mean()), float(logits_NV.abs().amax())
    bound = eps * (4 * math.sqrt(2 * layers) * spread + 2 * peak)
    return max(FLOAT32_BOUND, bound) if math.isfinite(bound) else FLOAT32_BOUND


def probe_rows(model: Any) -> tuple[list[int], list[list[int]]]:
    """The shared beginning and the two responses: ordinary tokens, none that the configuration gives a meaning."""
    words = min(len(model.get_input_embeddings().weight), len(model.get_output_embeddings().weight))
    special = set(_special_ids(model.config.to_dict()))
    first, count = words // 8, SHARED + sum(RESPONSES)
    ids = (first + number * STEP % (words - first) for number in range(1, 4 * count + len(special)))
    plain = [token for token in ids if token not in special][:count]
    prompt, responses = plain[:SHARED], plain[SHARED:]
    return prompt, [responses[: RESPONSES[0]], responses[RESPONSES[0] :]]


def _special_ids(options: Any) -> Iterator[int]:
    for key, value in options.items():
        if isinstance(value, dict):
            yield from _special_ids(value)
        elif isinstance(key, str) and key.endswith(("token_id", "token_ids", "token_index")):
            yield from (each for each in (value if isinstance(value, list) else [value]) if isinstance(each, int))


def _gap(model: Any, reference: OwnPass, adapter: Sequence[Tensor], *, quiet: bool = True) -> float:
    """The largest difference from the reference, in nats; infinite for NaN in the log-probs or the gradient.

    Args:
        quiet: a pass that fails has an infinite difference, too.
    """
    prompt, responses = probe_rows(model)
    try:
        with torch.set_grad_enabled(bool(adapter)):
            logp_BT = response_logps(model, [prompt, prompt], responses, 1.0)
            slopes = torch.autograd.grad(logp_BT.sum(), list(adapter), allow_unused=True) if adapter else ()
    except Exception:
        if not quiet:
            raise
        return math.inf
    checks = [slope.isfinite().all() for slope in slopes if slope is not None]
    finite = not checks or bool(torch.stack(checks).all())
    rows = zip(logp_BT.detach().float().cpu(), reference.logps, strict=True)
    gap = max(float((logp_T[: len(own_T)] - own_T).abs().max()) for logp_T, own_T in rows)
    return gap if finite and math.isfinite(gap) else math.inf


def _line(error: Exception) -> str:
    text = str(error).strip() or "no message"
    return f"{type(error).__name__}: {text.splitlines()[0]}"


@contextmanager
def _evaluated(model: Any) -> Iterator[None]:
    """Evaluation mode for all modules within the context, also for layers that are checkpointed."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


@contextmanager
def _perturbed(adapter: Sequence[Tensor]) -> Iterator[None]:
    """Adds a fixed pattern of at most 0.02 to the weights within the context."""
    kept = [weight.detach().clone() for weight in adapter]
    for weight in adapter:
        pattern = torch.sin(torch.arange(weight.numel(), device=weight.device, dtype=torch.float32)) * 0.02
        weight.data.add_(pattern.view_as(weight).to(weight.dtype))
    try:
        yield
    finally:
        for weight, before in zip(adapter, kept, strict=True):
            weight.data.copy_(before)
