"""What is taken from the states of scored responses: one item per sequence, in plain Python for the wire."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from cepo.forward import ResponseStates
from services.teacher.handler import Likeliest, Logps


def logps(states: ResponseStates) -> list[Logps]:
    """Log-probs of the sampled tokens."""
    return [tuple(row) for row in _rows(states, states.logp_BT)]


def likeliest(states: ResponseStates, k: int) -> list[Likeliest]:
    """The k likeliest tokens at every position, the likeliest first; k = 0: the whole vocabulary."""

    def top(logits_NV: Tensor, target_N: Tensor) -> Tensor:
        logp_Nk, ids_Nk = logits_NV.log_softmax(dim=1).topk(k or logits_NV.shape[1], dim=1)
        return torch.stack([ids_Nk.double(), logp_Nk.double()], dim=1)  # double holds ids and log-probs exactly

    found_BT2k = states.per_token(top)
    ids, values = _rows(states, found_BT2k[:, :, 0].long()), _rows(states, found_BT2k[:, :, 1])
    return [Likeliest(_flat(i), _flat(v)) for i, v in zip(ids, values, strict=True)]


def gather(states: ResponseStates, ids: Sequence[Sequence[int]]) -> list[Likeliest]:
    """The log-probs of given tokens: T x k ids for every sequence."""
    lengths = states.valid_BT.sum(dim=1).tolist()
    k = max((len(row) // length for row, length in zip(ids, lengths, strict=True) if length), default=0)
    ids_BTk = torch.zeros(*states.valid_BT.shape, k, dtype=torch.long)
    for at, (row, length) in enumerate(zip(ids, lengths, strict=True)):
        ids_BTk[at, :length] = torch.tensor(row, dtype=torch.long).view(length, k)

    def at_ids(logits_NV: Tensor, target_N: Tensor, ids_Nk: Tensor) -> Tensor:
        return logits_NV.gather(1, ids_Nk) - logits_NV.logsumexp(dim=1, keepdim=True)

    found = _rows(states, states.per_token(at_ids, ids_BTk.to(states.valid_BT.device)))
    return [Likeliest(tuple(row), _flat(values)) for row, values in zip(ids, found, strict=True)]


def pooled(states: ResponseStates) -> list[tuple[float, ...]]:
    """The mean hidden state of every response."""
    return [tuple(row) for row in states.pooled_BD().tolist()]


def _rows(states: ResponseStates, found_BT: Tensor) -> list[list]:
    """Each sequence's own positions, without padding."""
    return [row[:length] for row, length in zip(found_BT.tolist(), states.valid_BT.sum(dim=1).tolist(), strict=True)]


def _flat(rows: Sequence[Sequence[float]]) -> tuple:
    return tuple(value for row in rows for value in row)
