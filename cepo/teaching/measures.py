"""What is taken from the states of scored responses: one item per sequence, as the wire has it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from cepo.model.forward import ResponseStates
from cepo.teaching.handler import Likeliest, Logps


def logps(states: ResponseStates) -> list[Logps]:
    """Log-probs of the sampled tokens."""
    return [tuple(row.tolist()) for row in _rows(states, states.logp_BT)]


def likeliest(states: ResponseStates, k: int) -> list[Likeliest]:
    """The k likeliest tokens at every position, the likeliest first; k = 0: the whole vocabulary."""

    def top(logits_NV: Tensor, target_N: Tensor) -> Tensor:
        size = logits_NV.shape[1]
        logp_Nk, ids_Nk = logits_NV.log_softmax(dim=1).topk(min(k or size, size), dim=1)
        return torch.stack([ids_Nk.double(), logp_Nk.double()], dim=1)  # double holds ids and log-probs exactly

    rows = _rows(states, states.per_token(top))
    return [Likeliest(_bytes(row_T2k[:, 0].int()), _bytes(row_T2k[:, 1].float())) for row_T2k in rows]


def gather(states: ResponseStates, ids: Sequence[bytes]) -> list[Likeliest]:
    """The log-probs of given tokens: T x k ids for every sequence."""
    lengths = states.valid_BT.sum(dim=1).tolist()
    rows = [_ids(row, length) for row, length in zip(ids, lengths, strict=True)]
    k = max(row_Tk.shape[1] for row_Tk in rows)
    ids_BTk = pad_sequence([row_Tk if len(row_Tk) else row_Tk.new_zeros(0, k) for row_Tk in rows], batch_first=True)

    def at_ids(logits_NV: Tensor, target_N: Tensor, ids_Nk: Tensor) -> Tensor:
        return logits_NV.gather(1, ids_Nk) - logits_NV.logsumexp(dim=1, keepdim=True)

    found = _rows(states, states.per_token(at_ids, ids_BTk.to(states.valid_BT.device)))
    return [Likeliest(row, _bytes(found_Tk)) for row, found_Tk in zip(ids, found, strict=True)]


def pooled(states: ResponseStates) -> list[tuple[float, ...]]:
    """The mean hidden state of every response."""
    return [tuple(row) for row in states.pooled_BD().tolist()]


def _rows(states: ResponseStates, found_BT: Tensor) -> list[Tensor]:
    """Each sequence's own positions, without padding."""
    lengths = states.valid_BT.sum(dim=1).tolist()
    return [row_T[:length] for row_T, length in zip(found_BT.cpu(), lengths, strict=True)]


def _ids(row: bytes, length: int) -> Tensor:
    """[T, k] of one sequence; [0, 0] of an empty one."""
    flat: Any = torch.frombuffer(bytearray(row), dtype=torch.int32) if row else torch.zeros(0, dtype=torch.int32)
    return flat.long().view(length, -1) if length else flat.long().view(0, 0)


def _bytes(value: Tensor) -> bytes:
    return value.contiguous().numpy().tobytes()
