"""Reads values from the states of scored responses: one value per sequence, in the types of an evidence row."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from cepo.model.forward import ResponseStates
from cepo.model.transfer import to_device
from cepo.teaching.handler import Likeliest, Logps


def logps(states: ResponseStates) -> list[Logps]:
    """Returns the log-probs of the response tokens, one tuple of T per sequence; 0 at given tokens."""
    return [tuple(row.tolist()) for row in _rows(states, states.logp_BT)]


def likeliest(states: ResponseStates, k: int) -> list[Likeliest]:
    """Returns the k likeliest tokens at each position, likeliest first; k = 0 means the whole vocabulary.

    The ids and log-probs at given tokens are 0.
    """

    def top(logits_NV: Tensor, target_N: Tensor) -> Tensor:
        size = logits_NV.shape[1]
        logp_Nk, ids_Nk = logits_NV.log_softmax(dim=1).topk(min(k or size, size), dim=1)
        return torch.stack([ids_Nk.double(), logp_Nk.double()], dim=1)  # double holds ids and log-probs exactly

    rows = _rows(states, states.per_token(top))
    return [Likeliest(_bytes(row_T2k[:, 0].int()), _bytes(row_T2k[:, 1].float())) for row_T2k in rows]


def gather(states: ResponseStates, ids: Sequence[bytes]) -> list[Likeliest]:
    """Returns the log-probs of given tokens: T x k int32 ids for each sequence, position after position."""
    rows = [_ids(row, length) for row, length in zip(ids, states.lengths, strict=True)]
    k = max(row_Tk.shape[1] for row_Tk in rows)
    ids_BTk = pad_sequence([row_Tk if len(row_Tk) else row_Tk.new_zeros(0, k) for row_Tk in rows], batch_first=True)

    def at_ids(logits_NV: Tensor, target_N: Tensor, ids_Nk: Tensor) -> Tensor:
        return logits_NV.gather(1, ids_Nk) - logits_NV.logsumexp(dim=1, keepdim=True)

    logps = _rows(states, states.per_token(at_ids, to_device(ids_BTk, states.hidden_ND.device)))
    return [Likeliest(row, _bytes(logp_Tk)) for row, logp_Tk in zip(ids, logps, strict=True)]


def pooled(states: ResponseStates) -> list[tuple[float, ...]]:
    """Returns the mean hidden state of each response, over its sampled tokens."""
    return [tuple(row) for row in states.pooled_BD().tolist()]


def _rows(states: ResponseStates, value_BT: Tensor) -> list[Tensor]:
    """Splits [B, T, ...] into the positions of each sequence, without padding."""
    return [row_T[:length] for row_T, length in zip(value_BT.cpu(), states.lengths, strict=True)]


def _ids(row: bytes, length: int) -> Tensor:
    """Returns the ids of one sequence as [T, k]; [0, 0] for an empty sequence."""
    flat: Any = torch.frombuffer(bytearray(row), dtype=torch.int32) if row else torch.zeros(0, dtype=torch.int32)
    return flat.long().view(length, -1) if length else flat.long().view(0, 0)


def _bytes(value: Tensor) -> bytes:
    return value.contiguous().numpy().tobytes()
