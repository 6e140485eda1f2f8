"""Response tokens under a causal language model, shared by the teacher and the learner.

Sequences are prompt ids followed by response ids, right-padded. Only the hidden states that predict a response token
meet the vocabulary, in chunks, so no [tokens, vocabulary] tensor of a batch is ever kept.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.checkpoint import checkpoint

from cepo.pixels import Patches
from cepo.vision import language_inputs

CHUNK_TOKENS = 4096

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
        return self.per_token(sampled)

    def per_token(self, rule: Rule, *inputs_BT: Tensor) -> Tensor:
        """rule(logits [N, V] over the temperature, sampled token [N], *inputs [N, ...]) of every response token.

        A chunk of tokens at a time; the backward pass recomputes the chunk.

        Returns:
            [B, T, ...] for a rule that returns [N, ...]; 0 on padding.
        """
        inputs_N = [rows[self.valid_BT] for rows in inputs_BT]
        columns = [column.split(CHUNK_TOKENS) for column in (self.hidden_ND, self.target_N, *inputs_N)]
        found_N = torch.cat([self._chunk(rule, *chunk) for chunk in zip(*columns, strict=True)])
        spread_BT = torch.zeros(*self.valid_BT.shape, *found_N.shape[1:], dtype=found_N.dtype, device=found_N.device)
        return spread_BT.index_put(self.valid_BT.nonzero(as_tuple=True), found_N)

    def pooled_BD(self) -> Tensor:
        """Mean hidden state of each response, float32; 0 for an empty one (algorithms 6.1, the exact mean)."""
        row_N = self.valid_BT.nonzero(as_tuple=True)[0]
        sum_BD = torch.zeros(len(self.valid_BT), self.hidden_ND.shape[1], device=self.hidden_ND.device)
        sum_BD = sum_BD.index_add(0, row_N, self.hidden_ND.float())
        return sum_BD / self.valid_BT.sum(dim=1, keepdim=True).clamp(min=1)

    def _chunk(self, rule: Rule, hidden_CD: Tensor, *columns_C: Tensor) -> Tensor:
        if torch.is_grad_enabled() and len(self.hidden_ND) > CHUNK_TOKENS:
            return checkpoint(self._apply, rule, hidden_CD, *columns_C, use_reentrant=False)
        return self._apply(rule, hidden_CD, *columns_C)

    def _apply(self, rule: Rule, hidden_CD: Tensor, *columns_C: Tensor) -> Tensor:
        return rule(self.head(hidden_CD).float() / self.temperature, *columns_C)


def sampled(logits_NV: Tensor, target_N: Tensor) -> Tensor:
    """The rule for the log-prob of the sampled token."""
    return logits_NV.gather(1, target_N[:, None]).squeeze(1) - logits_NV.logsumexp(1)


def response_states(
    model: Any,
    prompts: Sequence[Sequence[int]],
    responses: Sequence[Sequence[int]],
    temperature: float,
    images: Sequence[Sequence[Patches]] = (),
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
    width = int(lengths_B.max()) if len(responses) else 0
    valid_BT = torch.arange(width, device=device)[None] < lengths_B[:, None]
    if width == 0:
        none_N = torch.zeros(0, dtype=torch.long, device=device)
        return ResponseStates(head.weight.new_zeros(0, head.weight.shape[1]), none_N, valid_BT, head, temperature)
    rows = [torch.tensor([*p, *r], device=device) for p, r in zip(prompts, responses, strict=True)]
    ids_BS = pad_sequence(rows, batch_first=True)
    if any(images):
        inputs = language_inputs(model, ids_BS, [*map(len, rows)], [*map(len, prompts)], images)
        hidden_BSD = model.base_model.language_model(**inputs, use_cache=False).last_hidden_state
    else:
        attention_BS = pad_sequence([torch.ones_like(row) for row in rows], batch_first=True)
        hidden_BSD = model.base_model(input_ids=ids_BS, attention_mask=attention_BS, use_cache=False).last_hidden_state
    start_B = torch.tensor([len(p) for p in prompts], device=device)
    row_N, token_N = valid_BT.nonzero(as_tuple=True)
    position_N = start_B[row_N] + token_N
    return ResponseStates(hidden_BSD[row_N, position_N - 1], ids_BS[row_N, position_N], valid_BT, head, temperature)


def response_logps(
    model: Any,
    prompts: Sequence[Sequence[int]],
    responses: Sequence[Sequence[int]],
    temperature: float,
    images: Sequence[Sequence[Patches]] = (),
) -> Tensor:
    """log P(response token) for every sequence: [B, T] float32, T the longest response, 0 on padding."""
    return response_states(model, prompts, responses, temperature, images).logp_BT


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
        UserError: it cannot be loaded.
    """
    from transformers import AutoConfig

    from cepo.errors import UserError

    try:
        model = auto_class(AutoConfig.from_pretrained(path)).from_pretrained(path, dtype=getattr(torch, dtype))
    except (OSError, ValueError) as error:
        raise UserError(f"model {path!r} cannot be loaded: {str(error).splitlines()[0]}") from error
    return model.to(device).eval().requires_grad_(False)
