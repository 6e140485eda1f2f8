"""Log-probs of given response tokens under a causal language model, shared by the teacher and the learner.

Sequences are prompt ids followed by response ids, right-padded. Only the hidden states that predict a response token
meet the vocabulary, in chunks, so no [tokens, vocabulary] tensor of a batch is ever kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.checkpoint import checkpoint

CHUNK_TOKENS = 4096


def response_logps(
    model: Any, prompts: Sequence[Sequence[int]], responses: Sequence[Sequence[int]], temperature: float
) -> Tensor:
    """log P(response token) for every sequence: [B, T] float32, T the longest response, 0 on padding.

    Args:
        model: a transformers causal LM, with or without PEFT layers.
        prompts: token ids, at least one each.
        responses: token ids; may be empty.
        temperature: logits are divided by it before the softmax.
    """
    device = model.get_output_embeddings().weight.device
    lengths = torch.tensor([len(r) for r in responses], device=device)
    width = int(lengths.max()) if len(responses) else 0
    if width == 0:
        return torch.zeros(len(responses), 0, device=device)
    rows = [torch.tensor([*p, *r], device=device) for p, r in zip(prompts, responses, strict=True)]
    ids_BS = pad_sequence(rows, batch_first=True)
    attention_BS = pad_sequence([torch.ones_like(row) for row in rows], batch_first=True)
    hidden_BSD = model.base_model(input_ids=ids_BS, attention_mask=attention_BS, use_cache=False).last_hidden_state
    start_B = torch.tensor([len(p) for p in prompts], device=device)
    offset_T = torch.arange(width, device=device)
    valid_BT = offset_T[None] < lengths[:, None]
    row_N, token_N = valid_BT.nonzero(as_tuple=True)
    position_N = start_B[row_N] + token_N
    logp_N = chunked_logps(
        hidden_BSD[row_N, position_N - 1], model.get_output_embeddings(), ids_BS[row_N, position_N], temperature
    )
    return torch.zeros(valid_BT.shape, device=device).masked_scatter(valid_BT, logp_N)


def chunked_logps(hidden_ND: Tensor, head: Any, target_N: Tensor, temperature: float) -> Tensor:
    """log softmax(head(hidden) / temperature) at the targets, a chunk at a time; the backward pass recomputes."""
    parts = []
    for hidden_CD, target_C in zip(hidden_ND.split(CHUNK_TOKENS), target_N.split(CHUNK_TOKENS), strict=True):
        if torch.is_grad_enabled() and len(hidden_ND) > CHUNK_TOKENS:
            parts.append(checkpoint(_logps, hidden_CD, head, target_C, temperature, use_reentrant=False))
        else:
            parts.append(_logps(hidden_CD, head, target_C, temperature))
    return torch.cat(parts)


def _logps(hidden_CD: Tensor, head: Any, target_C: Tensor, temperature: float) -> Tensor:
    logits_CV = head(hidden_CD).float() / temperature
    return logits_CV.gather(1, target_C[:, None]).squeeze(1) - logits_CV.logsumexp(1)


def canary_logp(model: Any, canary_ids: Sequence[int]) -> float:
    """Summed log-prob of the canary sequence after its first token, temperature 1."""
    with torch.no_grad():
        return float(response_logps(model, [canary_ids[:1]], [canary_ids[1:]], 1.0).sum())


def load_causal_lm(path: str, dtype: str, device: str) -> Any:
    """A frozen base model in evaluation mode, from a Hugging Face name or folder.

    Raises:
        UserError: it cannot be loaded.
    """
    from transformers import AutoModelForCausalLM

    from cepo.errors import UserError

    try:
        model = AutoModelForCausalLM.from_pretrained(path, dtype=getattr(torch, dtype))
    except (OSError, ValueError) as error:
        raise UserError(f"model {path!r} cannot be loaded: {str(error).splitlines()[0]}") from error
    return model.to(device).eval().requires_grad_(False)
