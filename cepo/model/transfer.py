"""Copies between the CPU and the model's device that wait for the device as seldom as possible.

An ordinary copy to a GPU waits until the GPU has done all its work, during which the CPU cannot queue more.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """A CPU tensor on the device; a copy to a GPU leaves from pinned memory and does not wait."""
    if device.type == "cuda":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def on_cpu(state: Any) -> Any:
    """A copy of nested dictionaries, lists and tuples with every tensor on the CPU, which owns its memory.

    Tensors of one dtype leave a GPU together, in one copy.
    """
    by_dtype: dict[torch.dtype, dict[int, Tensor]] = defaultdict(dict)
    for tensor in _tensors(state):
        if tensor.device.type != "cpu":
            by_dtype[tensor.dtype][id(tensor)] = tensor
    copies: dict[int, Tensor] = {}
    for tensors in by_dtype.values():
        flat_N = torch.cat([tensor.detach().flatten() for tensor in tensors.values()]).cpu()
        parts = flat_N.split([tensor.numel() for tensor in tensors.values()])
        for (key, tensor), part_N in zip(tensors.items(), parts, strict=True):
            copies[key] = part_N.view(tensor.shape).clone()  # a part alone would be pickled with the whole
    return _with_copies(state, copies)


def _tensors(state: Any) -> list[Tensor]:
    if isinstance(state, Tensor):
        return [state]
    values = state.values() if isinstance(state, Mapping) else state if isinstance(state, list | tuple) else ()
    return [tensor for value in values for tensor in _tensors(value)]


def _with_copies(state: Any, copies: Mapping[int, Tensor]) -> Any:
    if isinstance(state, Tensor):
        return copies[id(state)] if id(state) in copies else state.detach().clone()
    if isinstance(state, Mapping):
        return {key: _with_copies(value, copies) for key, value in state.items()}
    if isinstance(state, list | tuple):
        return type(state)(_with_copies(value, copies) for value in state)
    return state
