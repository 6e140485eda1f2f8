"""Log-probs and other functions of the response tokens under a causal language model, for the teacher and the learner.

A sequence is prompt ids followed by response ids. Prefixes that sequences share run through the model once
(`cepo.model.tree`, `cepo.model.attention`). Logits are computed only for the hidden states that predict a response
token, in chunks or tiles, so no [tokens, vocabulary] tensor of a whole batch is kept.

Tokens of a response that were given, not sampled, run through the model as context; they have no state here, and 0 is
their place in every result, as on padding.

Legend: B sequences, S tokens of one, T tokens of the longest response, N response tokens of all sequences that were not
given, C tokens of a chunk, D hidden size, V vocabulary size.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.checkpoint import checkpoint
from transformers.modeling_layers import GradientCheckpointingLayer

from cepo.errors import UserError
from cepo.messages.spans import Given, sampled_mask
from cepo.model import attention
from cepo.model.head import target_logps
from cepo.model.linear import fast_linear
from cepo.model.rope import choose_factors
from cepo.model.transfer import to_device
from cepo.model.tree import padded_passes, passes, token_tree
from cepo.model.vision import Features, keyed, language_inputs
from cepo.prompts.canary import canary_places

CHUNK_BYTES = 64 * 2**20
"""Float32 logits that a rule gets at once."""

Rule = Callable[..., Tensor]
"""rule(logits_NV, target_N, *inputs_N) -> [N, ...]: a function of each token's distribution."""


@dataclass(frozen=True)
class ResponseStates:
    """The last layer's hidden states that predict the response tokens, and the head that turns them into logits."""

    hidden_ND: Tensor
    """One row per response token, sequence after sequence."""
    target_N: Tensor
    """The response tokens."""
    valid_BT: Tensor
    """True for the N response tokens, False for given tokens and padding; on the CPU."""
    head: Any
    temperature: float
    """Logits are divided by it before the softmax."""
    lengths: Sequence[int]
    """Number of tokens of each response, given tokens included."""

    @cached_property
    def places(self) -> tuple[Tensor, Tensor]:
        """Row and column of each response token, [N] each, on the device of the hidden states."""
        row_N, column_N = self.valid_BT.nonzero(as_tuple=True)
        return to_device(row_N, self.hidden_ND.device), to_device(column_N, self.hidden_ND.device)

    @cached_property
    def logp_BT(self) -> Tensor:
        """log P(response token): [B, T] float32, 0 at given tokens and on padding."""
        head = self.head
        if type(head) is torch.nn.Linear and head.bias is None and not head.weight.requires_grad:
            return self._spread(target_logps(self.hidden_ND, self.target_N, head.weight, self.temperature))
        return self.per_token(sampled)

    def per_token(self, rule: Rule, *inputs_BT: Tensor) -> Tensor:
        """Applies a rule to the distribution of every response token.

        Runs over chunks of CHUNK_BYTES of logits. With more than one chunk, the backward pass recomputes each chunk.

        Args:
            rule: gets logits [C, V] already divided by the temperature, response tokens [C] and inputs [C, ...].
            inputs_BT: [B, T, ...] each; passed on to the rule for the tokens of the chunk.

        Returns:
            [B, T, ...] for a rule that returns [C, ...]; 0 at given tokens and on padding.
        """
        inputs_N = [input_BT[self.places] for input_BT in inputs_BT]
        size = max(1, CHUNK_BYTES // (4 * len(self.head.weight)))
        columns = [column.split(size) for column in (self.hidden_ND, self.target_N, *inputs_N)]
        chunks = list(zip(*columns, strict=True))
        if len(chunks) > 1 and torch.is_grad_enabled():
            return self._spread(torch.cat([checkpoint(self._apply, rule, *c, use_reentrant=False) for c in chunks]))
        return self._spread(torch.cat([self._apply(rule, *chunk) for chunk in chunks]))

    def pooled_BD(self) -> Tensor:
        """Mean hidden state of each response: [B, D] float32, 0 for an empty response."""
        device = self.hidden_ND.device
        sum_BD = torch.zeros(len(self.valid_BT), self.hidden_ND.shape[1], device=device)
        sum_BD = sum_BD.index_add(0, self.places[0], self.hidden_ND.float())
        return sum_BD / to_device(self.valid_BT.sum(dim=1, keepdim=True).clamp(min=1), device)

    def _apply(self, rule: Rule, hidden_CD: Tensor, *columns_C: Tensor) -> Tensor:
        with fast_linear(hidden_CD.device):
            logits_CV = self.head(hidden_CD)
        return rule(logits_CV.float() / self.temperature, *columns_C)

    def _spread(self, value_N: Tensor) -> Tensor:
        """[N, ...] to [B, T, ...], 0 at given tokens and on padding."""
        spread_BT = torch.zeros(*self.valid_BT.shape, *value_N.shape[1:], dtype=value_N.dtype, device=value_N.device)
        return spread_BT.index_put(self.places, value_N)


def sampled(logits_NV: Tensor, target_N: Tensor) -> Tensor:
    """A rule: the log-prob of each response token."""
    return logits_NV.gather(1, target_N[:, None]).squeeze(1) - logits_NV.logsumexp(1)


def response_states(
    model: Any,
    prompts: Sequence[Sequence[int]],
    responses: Sequence[Sequence[int]],
    temperature: float,
    images: Sequence[Sequence[Features]] = (),
    given: Sequence[Sequence[Given]] = (),
) -> ResponseStates:
    """Computes the states of all response tokens in one forward pass.

    Args:
        model: a transformers causal LM, with or without PEFT layers.
        prompts: token ids of each prompt, at least one.
        responses: token ids of each response; a response may be empty.
        temperature: logits are divided by it before the softmax.
        images: the images of each prompt, in the order of their placeholders; empty if no prompt has images.
        given: the tokens of each response that were not sampled; empty if no response has any.
    """
    head = model.get_output_embeddings()
    device = head.weight.device
    lengths = [len(r) for r in responses]
    width = max(lengths, default=0)
    valid_BT = torch.arange(width)[None] < torch.tensor(lengths)[:, None]
    target_N = torch.tensor([token for response in responses for token in response], dtype=torch.long)
    target_N = to_device(target_N, device)
    if width == 0:
        hidden_ND = head.weight.new_zeros(0, head.weight.shape[1])
        return ResponseStates(hidden_ND, target_N, valid_BT, head, temperature, lengths)
    # the last token of a response predicts no response token
    nonempty = [(len(p), [*p, *r[:-1]]) for p, r in zip(prompts, responses, strict=True) if len(r)]
    starts, rows = zip(*nonempty, strict=True)
    if attention.takes_trees(model):
        row_images = [row for row, r in zip(images or [()] * len(prompts), responses, strict=True) if len(r)]
        hidden_ND = _tree_states(model, rows, starts, row_images, device)
    else:
        assert not any(images), "a vision-language model takes trees"
        hidden_ND = _padded_states(model, rows, starts, device)
    if any(given):
        masks = [sampled_mask(row, tokens) for row, tokens in zip(given, lengths, strict=True)]
        sampled_N = torch.tensor([each for mask in masks for each in mask])
        valid_BT = valid_BT.masked_scatter(valid_BT, sampled_N)
        kept_N = to_device(sampled_N.nonzero().flatten(), device)
        hidden_ND, target_N = hidden_ND[kept_N], target_N[kept_N]
    return ResponseStates(hidden_ND, target_N, valid_BT, head, temperature, lengths)


def _tree_states(
    model: Any,
    rows: Sequence[list[int]],
    starts: Sequence[int],
    images: Sequence[Sequence[Features]],
    device: torch.device,
) -> Tensor:
    """Hidden states [N, D] from the last prompt token of each row on, row after row. Shared prefixes run once."""
    if any(images):
        tree = token_tree(keyed(model, rows, starts, images)).padded(device.type)
        language, inputs = model.base_model.language_model, language_inputs(model, tree, images)
    else:
        tree = token_tree(rows).padded(device.type)
        language = body(model)
        inputs = {
            "input_ids": to_device(tree.ids_N[None], device),
            "position_ids": to_device(tree.depth_N[None], device),
        }
    plan = attention.plan(tree, device, width=model.get_output_embeddings().weight.shape[1])
    # transformers leaves a mask of four dimensions unchanged; a layer that adds it ends in NaN, which the probe sees
    mask = torch.full((1, 1, 1, 1), torch.nan, device=device)
    with fast_linear(device):
        hidden_SD = language(**inputs, attention_mask=mask, use_cache=False, tree=plan).last_hidden_state[0]
    at_N = torch.cat([path[start - 1 :] for path, start in zip(tree.paths, starts, strict=True)])
    return hidden_SD.index_select(0, to_device(at_N, device))


def _padded_states(model: Any, rows: Sequence[list[int]], starts: Sequence[int], device: torch.device) -> Tensor:
    """The same states from a right-padded batch, for models that do not support trees."""
    tensors = [torch.tensor(row) for row in rows]
    ids_BS = to_device(pad_sequence(tensors, batch_first=True), device)
    mask_BS = to_device(pad_sequence([torch.ones_like(row) for row in tensors], batch_first=True), device)
    with fast_linear(device):
        hidden_BSD = body(model)(input_ids=ids_BS, attention_mask=mask_BS, use_cache=False).last_hidden_state
    return torch.cat([hidden_BSD[i, start - 1 : len(rows[i])] for i, start in enumerate(starts)])


def body(model: Any) -> Any:
    """The module that maps token ids to hidden states: `base_model`, without the head that some families keep in it."""
    base = model.base_model
    for name in ("language_model", "model"):  # Llama 4: the base of its class is the class itself
        if base.get_output_embeddings() is not None and hasattr(base, name):
            base = getattr(base, name)
    return base


def cut_passes(model: Any, rows: Sequence[Sequence[int]], budget: int) -> list[list[int]]:
    """Cuts rows into forward passes of at most `budget` tokens, as indices of rows.

    A pass counts its distinct tokens if the model takes trees, and its rows times the longest otherwise.
    """
    return passes(rows, budget) if attention.takes_trees(model) else padded_passes(rows, budget)


def response_logps(
    model: Any,
    prompts: Sequence[Sequence[int]],
    responses: Sequence[Sequence[int]],
    temperature: float,
    images: Sequence[Sequence[Features]] = (),
    given: Sequence[Sequence[Given]] = (),
) -> Tensor:
    """log P(response token) of every sequence: [B, T] float32, 0 at given tokens and on padding.

    The arguments are those of `response_states`.
    """
    return response_states(model, prompts, responses, temperature, images, given).logp_BT


def checkpoint_layers(model: Any) -> None:
    """Switches on gradient checkpointing: the backward pass recomputes each layer from its input.

    transformers checkpoints layers in training mode only, so the layers are put in it, but not the modules inside them,
    which keeps dropout off. The layers of some families (OPT, XGLM) apply dropout themselves; their rates become 0.

    Raises:
        UserError: the model does not support gradient checkpointing.
    """
    if not model.supports_gradient_checkpointing:
        raise UserError("optim.gradient_checkpointing=true: this model does not support it; set it to false")
    head: Any = model.get_output_embeddings()
    options = {"use_reentrant": False, "context_fn": lambda: (nullcontext(), fast_linear(head.weight.device))}
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=options)
    for module in model.modules():
        if isinstance(module, GradientCheckpointingLayer):
            module.training = True
            for name in [name for name, value in vars(module).items() if "drop" in name and isinstance(value, float)]:
                setattr(module, name, 0.0)


@torch.no_grad()
def canary_logps(model: Any, canary_ids: Sequence[int]) -> tuple[float, ...]:
    """Log-probs of the canary's scored tokens (`cepo.prompts.canary.canary_places`), at temperature 1."""
    (logp_T,) = response_logps(model, [canary_ids[:1]], [canary_ids[1:]], 1.0)
    return tuple(logp_T[[place - 1 for place in canary_places(len(canary_ids))]].tolist())


def auto_class(config: Any) -> Any:
    """The transformers auto class for a configuration: with a vision part if the family has such a class."""
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

    sees = hasattr(config, "vision_config") and type(config) in AutoModelForImageTextToText._model_mapping
    return AutoModelForImageTextToText if sees else AutoModelForCausalLM


def load_causal_lm(path: str, dtype: str, device: str, max_length: int = 0) -> Any:
    """Loads a frozen base model in evaluation mode. `cepo.model.probe.prove` then compares its forward pass with ours.

    Args:
        path: a Hugging Face name or a folder.
        dtype: name of a torch dtype, such as "bfloat16".
        max_length: the longest sequence of the run, which selects the factors of LongRoPE; 0 leaves them as they are.

    Raises:
        UserError: the model cannot be loaded.
    """
    from transformers import AutoConfig
    from transformers.utils import logging

    logging.disable_progress_bar()
    try:
        config = AutoConfig.from_pretrained(path)
        choose_factors(config, max_length)
        model = auto_class(config).from_pretrained(path, config=config, dtype=getattr(torch, dtype))
    except (OSError, ValueError) as error:
        raise UserError(f"model {path!r} cannot be loaded: {str(error).splitlines()[0]}") from error
    return model.to(device).eval().requires_grad_(False)
