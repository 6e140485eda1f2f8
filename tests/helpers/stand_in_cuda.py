"""A stand-in for a CUDA device: it computes on the CPU, refuses what CUDA refuses, and counts the waits for the device.

Within `stand_in_cuda()`, a tensor that is moved to or made on "cuda" is a `StandInTensor`. Its `device` is cuda:0, and
its numbers lie in a CPU tensor. As on a GPU:

- an operation on tensors of both devices raises, unless the CPU tensor has no dimensions or is an index;
- `numpy()` raises, and so do kernels of the CPU alone;
- `item()`, `bool()`, `tolist()`, `nonzero()`, a boolean index, and every copy between the devices wait for the device.
  They are counted in `syncs`, with the line of this project that made them.

FlexAttention is computed from the tables of its block mask, so that a wrong table gives a wrong result.
"""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask
from torch.utils._device import _device_constructors
from torch.utils._python_dispatch import return_and_correct_aliasing
from torch.utils._pytree import tree_flatten, tree_map

from cepo.model import attention
from cepo.model.forward import load_causal_lm
from cepo.teaching import engine
from services.trainer.learning.ranks import Ranks

CUDA = torch.device("cuda", 0)
ROOT = Path(__file__).parents[2]
aten = torch.ops.aten
WAITING = {
    aten._local_scalar_dense.default,
    aten.nonzero.default,
    aten.masked_select.default,
    aten._unique2.default,
    aten.equal.default,
    aten.is_nonzero.default,
}
"""Operations whose result, or the size of it, the CPU needs."""
INDEXED = {aten.index.Tensor, aten.index_put.default, aten.index_put_.default, aten._index_put_impl_.default}
COPIES = {aten.copy_.default}


class Syncs(Counter[str]):
    """The number of waits for the device by what made them, such as "item at cepo/model/forward.py:93"."""

    def add(self, kind: str) -> None:
        frame: Any = sys._getframe()
        while frame is not None:
            place = Path(frame.f_code.co_filename)
            if place.is_relative_to(ROOT) and place.relative_to(ROOT).parts[0] in ("cepo", "services"):
                self[f"{kind} at {place.relative_to(ROOT)}:{frame.f_lineno}"] += 1
                return
            frame = frame.f_back
        self[kind] += 1


syncs = Syncs()


_Tensor: Any = torch.Tensor
"""Without its static types, which a subclass on another device does not keep."""


class StandInTensor(_Tensor):
    """A tensor on the stand-in device."""

    numbers: Tensor
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls: Any, numbers: Tensor) -> StandInTensor:
        shape = (numbers.size(), numbers.stride(), numbers.storage_offset())
        tensor: Any = _Tensor._make_wrapper_subclass(cls, *shape, dtype=numbers.dtype)
        tensor.numbers = numbers
        return tensor

    @property
    def device(self) -> torch.device:
        return CUDA

    @property
    def is_cuda(self) -> bool:
        return True

    @property
    def is_cpu(self) -> bool:
        return False

    def __repr__(self, **_: Any) -> str:
        return f"StandInTensor({self.numbers})"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        _check(func, args, kwargs)
        if func is aten.mm.dtype:  # a kernel of CUDA alone
            out = torch.mm(*(_numbers(arg).to(args[2]) for arg in args[:2]))
        else:
            out = func(*tree_map(_numbers, args), **tree_map(_numbers, kwargs))
        if func in COPIES and not isinstance(args[0], StandInTensor):
            return args[0]
        out = tree_map(lambda value: StandInTensor(value) if isinstance(value, Tensor) else value, out)
        return return_and_correct_aliasing(func, args, kwargs, out)


def _numbers(value: Any) -> Any:
    return value.numbers if isinstance(value, StandInTensor) else value


def _check(func: Any, args: Any, kwargs: Any) -> None:
    """Refuses what CUDA refuses, and counts what waits."""
    tensors = [value for value in tree_flatten((args, kwargs))[0] if isinstance(value, Tensor)]
    on_cpu = [tensor for tensor in tensors if not isinstance(tensor, StandInTensor) and tensor.dim()]
    if func.namespace == "mkldnn":
        raise NotImplementedError(f"{func} has no kernel for CUDA")
    if func in INDEXED:
        indices = [index for index in args[1] if index is not None]
        on_cpu = [tensor for tensor in on_cpu if all(tensor is not index for index in indices)]
        for index in indices:
            if not isinstance(index, StandInTensor):
                syncs.add("index from the CPU")
            elif index.dtype == torch.bool:
                syncs.add("boolean index")
    if func in COPIES and on_cpu:
        syncs.add("copy")
        return
    if on_cpu:
        raise RuntimeError(f"Expected all tensors to be on the same device, but found at least cuda:0 and cpu ({func})")
    if func in WAITING or (func is aten.repeat_interleave.Tensor and kwargs.get("output_size") is None):
        syncs.add(func._schema.name.partition("::")[2])


class _ToDevice(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor) -> Tensor:
        syncs.add("copy to the device")
        return StandInTensor(tensor.detach().clone())

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return _ToHost.apply(grad)


class _ToHost(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Any) -> Tensor:
        syncs.add("copy to the CPU")
        return tensor.numbers.detach().clone()

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return _ToDevice.apply(grad)


def on_device(tensor: Tensor) -> Tensor:
    """The tensor on the stand-in device."""
    return tensor if isinstance(tensor, StandInTensor) else _ToDevice.apply(tensor)


def on_host(tensor: Tensor) -> Tensor:
    """The tensor on the CPU."""
    return _ToHost.apply(tensor) if isinstance(tensor, StandInTensor) else tensor


def _is_cuda(device: Any) -> bool:
    return device is not None and not isinstance(device, int) and torch.device(device).type == "cuda"


def _factory(make: Any) -> Any:
    """A function that makes tensors, such as `torch.zeros`, on the device that it is told."""

    def made(*args: Any, **kwargs: Any) -> Any:
        if not _is_cuda(kwargs.get("device")):
            return make(*args, **kwargs)
        if make in (_MAKERS["tensor"], _MAKERS["as_tensor"]):
            syncs.add("copy to the device")
        tensor = make(*args, **kwargs | {"device": "cpu"})
        return StandInTensor(tensor.detach()).requires_grad_(tensor.requires_grad)

    return made


NAMES = ("arange", "as_tensor", "empty", "full", "linspace", "ones", "rand", "randn", "tensor", "zeros")
_MAKERS = {name: getattr(torch, name) for name in NAMES}
_device_constructors()  # torch caches its factories at the first use, which must not be the ones below
_METHODS = {name: getattr(torch.Tensor, name) for name in ("to", "cpu", "cuda", "pin_memory", "tolist", "numpy")}


def _to(tensor: Tensor, *args: Any, **kwargs: Any) -> Tensor:
    if args and isinstance(args[0], Tensor):
        args = (args[0].device, args[0].dtype, *args[1:])
    given = {key: value for key, value in kwargs.items() if key not in ("copy", "memory_format")}
    device, dtype, non_blocking, _ = torch._C._nn._parse_to(*args, **given)
    if not isinstance(tensor, StandInTensor) and not _is_cuda(device):
        moved: Tensor = _METHODS["to"](tensor, *args, **kwargs)
        return moved
    moved = tensor
    if _is_cuda(device):
        asynchronous = non_blocking and hasattr(tensor, "pinned")
        moved = StandInTensor(tensor) if asynchronous else on_device(tensor)
    elif device is not None:
        assert not (non_blocking and isinstance(tensor, StandInTensor)), "the copy may be read before it has come"
        moved = on_host(tensor)
    if dtype is not None and dtype != moved.dtype:
        moved = aten._to_copy(moved, dtype=dtype)
    return moved.clone() if kwargs.get("copy") and moved is tensor else moved


def _pinned(tensor: Tensor, *_: Any) -> Tensor:
    assert not isinstance(tensor, StandInTensor), "only memory of the CPU can be pinned"
    pinned: Any = tensor.detach().clone()
    pinned.pinned = True
    return pinned


def _tolist(tensor: Tensor) -> Any:
    if isinstance(tensor, StandInTensor):
        syncs.add("tolist")
        tensor = tensor.numbers
    return _METHODS["tolist"](tensor)


def _numpy(tensor: Tensor, **kwargs: Any) -> Any:
    if isinstance(tensor, StandInTensor):
        raise TypeError("can't convert cuda:0 device type tensor to numpy")
    return _METHODS["numpy"](tensor, **kwargs)


def table_attention(
    query: Tensor, key: Tensor, value: Tensor, *, block_mask: BlockMask, scale: float, enable_gqa: bool
) -> Tensor:
    """FlexAttention: partial blocks are masked, full blocks are not, and blocks that the tables leave out are."""
    size, block = query.shape[2], block_mask.BLOCK_SIZE[0]
    assert block_mask.seq_lengths == (size, size)
    assert size % block == 0
    assert all(isinstance(table, StandInTensor) for table in block_mask.as_tuple() if isinstance(table, Tensor))
    with mock.patch.object(syncs, "add"):
        blocks = torch.zeros(2, size // block, size // block, dtype=torch.bool)
        for at, name in enumerate(("kv", "full_kv")):
            counts, indices = (
                _numbers(getattr(block_mask, f"{name}_{part}"))[0, 0] for part in ("num_blocks", "indices")
            )
            for row, count in enumerate(counts.tolist()):
                blocks[at, row, indices[row, :count].long()] = True
        at_N = StandInTensor(torch.arange(size))
        exact_NN = _numbers(block_mask.mask_mod(at_N, at_N, at_N[:, None], at_N[None]))
        partial_NN, full_NN = (each.repeat_interleave(block, 0).repeat_interleave(block, 1) for each in blocks)
        hidden_NN = StandInTensor(~((partial_NN & exact_NN) | full_NN))
    if enable_gqa:
        key, value = (each.repeat_interleave(query.shape[1] // each.shape[1], dim=1) for each in (key, value))
    scores = (query.float() @ key.float().transpose(-1, -2) * scale).masked_fill(hidden_NN, -torch.inf)
    return (scores.softmax(-1) @ value.float()).to(query.dtype)


def _of_cpu(kernel: Any) -> Any:
    """A kernel that the GPU does not have."""

    def call(*args: Any, **kwargs: Any) -> Any:
        if any(isinstance(arg, StandInTensor) for arg in args):
            raise NotImplementedError(f"{kernel} of the CPU was called with tensors on cuda:0")
        return kernel(*args, **kwargs)

    return call


@contextmanager
def stand_in_cuda() -> Iterator[Syncs]:
    """Makes "cuda" the stand-in device within the context, in all threads; yields its counts, which start at zero."""
    syncs.clear()
    methods: dict[str, Any] = {
        "to": _to,
        "cpu": on_host,
        "cuda": lambda tensor, *_: on_device(tensor),
        "pin_memory": _pinned,
    }
    kernels: dict[str, Any] = {name: _of_cpu(getattr(attention, name)) for name in ("_forward", "_backward")}
    generator: dict[str, Any] = {"get_rng_state": lambda *_: torch.empty(0), "set_rng_state": lambda *_: None}
    overwrites = torch.__future__.get_overwrite_module_params_on_conversion()
    torch.__future__.set_overwrite_module_params_on_conversion(True)  # a parameter's `data` cannot change its class
    try:
        with (
            mock.patch.multiple(torch, **{name: _factory(make) for name, make in _MAKERS.items()}),
            mock.patch.multiple(torch.Tensor, tolist=_tolist, numpy=_numpy, **methods),
            mock.patch.multiple(attention, _compiled_flex=lambda: table_attention, **kernels),
            mock.patch.multiple(torch.cuda, **generator),
        ):
            yield syncs
    finally:
        torch.__future__.set_overwrite_module_params_on_conversion(overwrites)


@contextmanager
def engines_on_stand_in() -> Iterator[Syncs]:
    """Also loads every learner and scorer within the context to the stand-in device, whatever its settings say."""

    def shard(ranks: Ranks, model: Any, device: str) -> None:
        model.to("cuda")

    def load(path: str, dtype: str, device: str, max_length: int = 0) -> Any:
        return load_causal_lm(path, dtype, "cuda", max_length)

    with stand_in_cuda(), mock.patch.object(Ranks, "shard", shard), mock.patch.object(engine, "load_causal_lm", load):
        yield syncs
