"""Response tokens under a causal language model, shared by the teacher and the learner.

Sequences are prompt ids followed by response ids. What they begin with together runs through the model once
(`cepo.model.tree`, `cepo.model.attention`). Only the hidden states that predict a response token meet the vocabulary,
in chunks or tiles, so no [tokens, vocabulary] tensor of a batch is ever kept.
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
from cepo.model import attention
from cepo.model.head import target_logps
from cepo.model.linear import FastLinear
from cepo.model.tree import token_tree
from cepo.model.vision import Features, keyed, language_inputs

CHUNK_BYTES = 64 * 2**20
"""Of float32 logits that a rule sees at once."""
AFTER_HEAD = ("final_logit_softcapping", "logits_scaling", "logit_scale")
"""Keys of models that change logits after the head, which here would be left out."""

Rule = Callable[..., Tensor]
"""rule(logits_NV, target_N, *inputs_N) -> [N, ...]: what is wanted of each token's distribution."""


@dataclass(frozen=True)
class ResponseStates:
    """The last hidden states that predict each response token, and the head that turns them into distributions."""

    hidden_ND: Tensor
    """N response tokens of B sequences, row after row."""
    target_N: Tensor
    """The tokens that were sampled there."""
    valid_BT: Tensor
    """Where the N tokens stand; T the longest response."""
    head: Any
    temperature: float
    """Logits are divided by it before the softmax."""

    @cached_property
    def logp_BT(self) -> Tensor:
        """log P(response token), float32, 0 on padding."""
        head = self.head
        if type(head) is torch.nn.Linear and head.bias is None and not head.weight.requires_grad:
            return self._spread(target_logps(self.hidden_ND, self.target_N, head.weight, self.temperature))
        return self.per_token(sampled)

    def per_token(self, rule: Rule, *inputs_BT: Tensor) -> Tensor:
        """rule(logits [N, V], sampled token [N], *inputs [N, ...]) of every response token.

        Logits are over the temperature. A chunk of tokens at a time; where there are several, the backward pass
        recomputes them one by one.

        Returns:
            [B, T, ...] for a rule that returns [N, ...]; 0 on padding.
        """
        inputs_N = [rows[self.valid_BT] for rows in inputs_BT]
        size = max(1, CHUNK_BYTES // (4 * len(self.head.weight)))
        columns = [column.split(size) for column in (self.hidden_ND, self.target_N, *inputs_N)]
        chunks = list(zip(*columns, strict=True))
        if len(chunks) > 1 and torch.is_grad_enabled():
            return self._spread(torch.cat([checkpoint(self._apply, rule, *c, use_reentrant=False) for c in chunks]))
        return self._spread(torch.cat([self._apply(rule, *chunk) for chunk in chunks]))

    def pooled_BD(self) -> Tensor:
        """Mean hidden state of each response, float32; 0 for an empty one."""
        row_N = self.valid_BT.nonzero(as_tuple=True)[0]
        sum_BD = torch.zeros(len(self.valid_BT), self.hidden_ND.shape[1], device=self.hidden_ND.device)
        sum_BD = sum_BD.index_add(0, row_N, self.hidden_ND.float())
        return sum_BD / self.valid_BT.sum(dim=1, keepdim=True).clamp(min=1)

    def _apply(self, rule: Rule, hidden_CD: Tensor, *columns_C: Tensor) -> Tensor:
        with FastLinear():
            logits_CV = self.head(hidden_CD)
        return rule(logits_CV.float() / self.temperature, *columns_C)

    def _spread(self, found_N: Tensor) -> Tensor:
        spread_BT = torch.zeros(*self.valid_BT.shape, *found_N.shape[1:], dtype=found_N.dtype, device=found_N.device)
        return spread_BT.index_put(self.valid_BT.nonzero(as_tuple=True), found_N)


def sampled(logits_NV: Tensor, target_N: Tensor) -> Tensor:
    """The rule for the log-prob of the sampled token."""
    return logits_NV.gather(1, target_N[:, None]).squeeze(1) - logits_NV.logsumexp(1)


def response_states(
    model: Any,
    prompts: Sequence[Sequence[int]],
    responses: Sequence[Sequence[int]],
    temperature: float,
    images: Sequence[Sequence[Features]] = (),
) -> ResponseStates:
    """The states of every response token of every sequence, in one forward pass.

    Args:
        model: a transformers causal LM, with or without PEFT layers.
        prompts: token ids, at least one each.
        responses: token ids; may be empty.
        temperature: logits are divided by it before the softmax.
        images: of each prompt, in the order of their placeholders; empty: no prompt has any.
    """
    head = model.get_output_embeddings()
    device = head.weight.device
    lengths_B = torch.tensor([len(r) for r in responses], device=device)
    width = max(map(len, responses), default=0)
    valid_BT = torch.arange(width, device=device)[None] < lengths_B[:, None]
    target_N = torch.tensor([token for response in responses for token in response], dtype=torch.long, device=device)
    if width == 0:
        return ResponseStates(head.weight.new_zeros(0, head.weight.shape[1]), target_N, valid_BT, head, temperature)
    # the last token of a row predicts nothing that is asked for
    filled = [(len(p), [*p, *r[:-1]]) for p, r in zip(prompts, responses, strict=True) if len(r)]
    starts, rows = zip(*filled, strict=True)
    if attention.takes_trees(model):
        shown = [row for row, r in zip(images or [()] * len(prompts), responses, strict=True) if len(r)]
        hidden_ND = _tree_states(model, rows, starts, shown, device)
    else:
        assert not any(images), "a model that sees takes trees"
        hidden_ND = _padded_states(model, rows, starts, device)
    return ResponseStates(hidden_ND, target_N, valid_BT, head, temperature)


def _tree_states(
    model: Any,
    rows: Sequence[list[int]],
    starts: Sequence[int],
    images: Sequence[Sequence[Features]],
    device: torch.device,
) -> Tensor:
    """Hidden states [N, D] of each row from its last prompt token on, row after row; shared beginnings run once."""
    if any(images):
        tree = token_tree(keyed(model, rows, starts, images)).padded()
        language, inputs = model.base_model.language_model, language_inputs(model, tree, images)
    else:
        tree = token_tree(rows).padded()
        language = model.base_model
        inputs = {"input_ids": tree.ids_N[None].to(device), "position_ids": tree.depth_N[None].to(device)}
    plan = attention.plan(tree, device, width=model.get_output_embeddings().weight.shape[1])
    mask = torch.empty(1, 1, 1, 1, device=device)  # four axes: transformers leaves it alone
    with FastLinear():
        hidden_SD = language(**inputs, attention_mask=mask, use_cache=False, tree=plan).last_hidden_state[0]
    at_N = torch.cat([path[start - 1 :] for path, start in zip(tree.paths, starts, strict=True)])
    return hidden_SD.index_select(0, at_N.to(device))


def _padded_states(model: Any, rows: Sequence[list[int]], starts: Sequence[int], device: torch.device) -> Tensor:
    """The same by one right-padded forward pass, for models that do not take trees."""
    tensors = [torch.tensor(row, device=device) for row in rows]
    ids_BS = pad_sequence(tensors, batch_first=True)
    mask_BS = pad_sequence([torch.ones_like(row) for row in tensors], batch_first=True)
    with FastLinear():
        hidden_BSD = model.base_model(input_ids=ids_BS, attention_mask=mask_BS, use_cache=False).last_hidden_state
    return torch.cat([hidden_BSD[i, start - 1 : len(rows[i])] for i, start in enumerate(starts)])


def response_logps(
    model: Any,
    prompts: Sequence[Sequence[int]],
    responses: Sequence[Sequence[int]],
    temperature: float,
    images: Sequence[Sequence[Features]] = (),
) -> Tensor:
    """log P(response token) for every sequence: [B, T] float32, T the longest response, 0 on padding."""
    return response_states(model, prompts, responses, temperature, images).logp_BT


def checkpoint_layers(model: Any) -> None:
    """Keeps only the input of each layer for the backward pass, which recomputes the rest.

    transformers does so in training mode; only the layers are put there, so that no dropout wakes up.

    Raises:
        UserError: the model cannot do it.
    """
    if not model.supports_gradient_checkpointing:
        raise UserError("optim.gradient_checkpointing=true: this model does not support it; set it to false")
    again = {"use_reentrant": False, "context_fn": lambda: (nullcontext(), FastLinear())}
    model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=again)
    for module in model.modules():
        if isinstance(module, GradientCheckpointingLayer):
            module.training = True


def canary_logp(model: Any, canary_ids: Sequence[int]) -> float:
    """Summed log-prob of the canary sequence after its first token, temperature 1."""
    with torch.no_grad():
        return float(response_logps(model, [canary_ids[:1]], [canary_ids[1:]], 1.0).sum())


def auto_class(config: Any) -> Any:
    """The transformers class that makes a model of a configuration: one with a vision part where it has one."""
    from transformers import AutoModelForCausalLM, AutoModelForImageTextToText

    return AutoModelForImageTextToText if hasattr(config, "vision_config") else AutoModelForCausalLM


def load_causal_lm(path: str, dtype: str, device: str) -> Any:
    """A frozen base model in evaluation mode, from a Hugging Face name or folder.

    Raises:
        UserError: it cannot be loaded, or its logits are not simply the head's.
    """
    from transformers import AutoConfig

    try:
        model = auto_class(AutoConfig.from_pretrained(path)).from_pretrained(path, dtype=getattr(torch, dtype))
    except (OSError, ValueError) as error:
        raise UserError(f"model {path!r} cannot be loaded: {str(error).splitlines()[0]}") from error
    said = model.config.get_text_config().to_dict()
    if changed := [key for key in AFTER_HEAD if said.get(key) not in (None, 1.0)]:
        raise UserError(f"model {path!r} scales or caps its logits ({changed[0]}={said[changed[0]]}); choose another")
    return model.to(device).eval().requires_grad_(False)
