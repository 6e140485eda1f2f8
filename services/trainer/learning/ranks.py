"""The processes that train one policy: rank 0 is the trainer, the others learn with it from their share of the rows.

Of the frozen base each holds a part of every decoder layer (FSDP2), which all gather when a pass comes to it; the
adapter, its optimiser and everything outside the layers are whole in each. Gradients are added up in float32 before
they are clipped. Whatever meets the layers is therefore done by all ranks at once: rank 0 says what, the others follow.
"""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Iterable, Sequence
from datetime import timedelta
from functools import wraps
from typing import Any, Concatenate, ParamSpec, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from cepo.errors import UserError
from cepo.net.settings import Place

P = ParamSpec("P")
T = TypeVar("T")
NEVER = timedelta(days=365)
"""Rank 0 is silent while a step is sampled."""
TORCHRUNS = "env://"
"""Where processes that torchrun started meet: `init_method` of torch.distributed."""
BEAT_SECONDS = 1.0
SILENCE = timedelta(seconds=60)
"""After which a machine counts as lost. A process that dies closes its connection: the next beat notices."""
log = logging.getLogger(__name__)


class Ranks:
    """A process by itself: nobody follows, nothing is shared."""

    rank = 0
    size = 1

    def lead(self, name: str, *arguments: Any, **options: Any) -> None:
        """Rank 0: has the others call this method of their learner."""

    def place(self, model: Any, device: str) -> None:
        """Moves a model to the device."""
        model.to(device)

    def most(self, count: int) -> int:
        """The highest count of any rank."""
        return count

    def add_up(self, tensors: Sequence[Tensor]) -> None:
        """Puts the sum over the ranks in the place of each tensor; all have one type."""

    def add_up_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """The same for gradients; a rank that had no rows has none, which counts as zero."""

    def gathered(self, value: T) -> list[T]:
        """The values of all ranks, by rank."""
        return [value]

    def close(self, code: int = 0) -> None:
        """Rank 0: has the others end, with this exit code."""


ALONE = Ranks()


class Peers(Ranks):
    """One of several processes that torch.distributed connects."""

    def __init__(self, place: Place, meeting: str = TORCHRUNS) -> None:
        """Waits until all are there.

        Args:
            meeting: `init_method` of torch.distributed. Processes that meet by torchrun's variables may be on several
                machines, where nobody sees to it that they end together: they do so themselves.
        """
        self.rank = place.rank
        self.size = place.size
        self._gpu = place.local_rank
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        dist.init_process_group(backend, init_method=meeting, rank=place.rank, world_size=place.size)
        self._words: Any = dist.new_group(backend="gloo", timeout=NEVER)
        self._parting = threading.Event()
        self._beating = threading.Thread(target=self._beat, daemon=True)
        if meeting == TORCHRUNS:
            self._pulse: Any = dist.new_group(backend="gloo", timeout=SILENCE)
            self._beating.start()

    def lead(self, name: str, *arguments: Any, **options: Any) -> None:
        if self.rank == 0:
            self._tell((name, arguments, options))

    def follow(self, learner: Any) -> int:
        """Does what rank 0 says until it closes; returns the exit code it gave.

        Raises:
            SystemExit: rank 0 is gone; it says why itself.
        """
        while not isinstance(call := self._heard(), int):
            name, arguments, options = call
            getattr(learner, name)(*arguments, **options)
        self.part()
        return call

    def part(self) -> None:
        """Lets this process end without the others taking it for dead."""
        self._parting.set()
        if self._beating.is_alive():
            self._beating.join()

    def place(self, model: Any, device: str) -> None:
        """Gives each rank its part of the decoder layers and moves the rest to the device.

        Raises:
            UserError: the model does not say which its layers are.
        """
        if device == "cuda":
            torch.cuda.set_device(self._gpu)
        decoder = model.get_decoder()
        if not isinstance(getattr(decoder, "layers", None), nn.ModuleList):
            raise UserError(
                f"engine.trainer_processes={self.size}: {type(decoder).__name__} has no `layers` to split; set it to 1"
            )
        layers = {p for layer in decoder.layers for p in layer.parameters() if not p.requires_grad}
        whole = {p for p in model.parameters() if p not in layers}
        mesh = init_device_mesh(device, (self.size,))
        for layer in decoder.layers:
            fully_shard(layer, mesh=mesh, ignored_params=whole)
        fully_shard(decoder, mesh=mesh, ignored_params=whole)  # holds nothing; fetches the next layer ahead
        model.to(device)

    def most(self, count: int) -> int:
        counts = torch.tensor([count])
        dist.all_reduce(counts, dist.ReduceOp.MAX, group=self._words)
        return int(counts)

    def add_up(self, tensors: Sequence[Tensor]) -> None:
        flat_N = torch.cat([tensor.flatten() for tensor in tensors])
        dist.all_reduce(flat_N)
        for tensor, sum_N in zip(tensors, flat_N.split([tensor.numel() for tensor in tensors]), strict=True):
            tensor.copy_(sum_N.view_as(tensor))

    def add_up_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        gradients = []
        for parameter in parameters:
            parameter.grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            gradients.append(parameter.grad)
        self.add_up(gradients)

    def gathered(self, value: T) -> list[T]:
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value, group=self._words)
        return values

    def close(self, code: int = 0) -> None:
        self._tell(code)
        self.part()

    def _beat(self) -> None:
        """All say now and then that they are there. Ends this process, which might wait for good, once one is not."""
        parting = torch.zeros(1)
        try:
            while not parting:
                parting.fill_(self._parting.wait(BEAT_SECONDS))
                dist.all_reduce(parting, dist.ReduceOp.MAX, group=self._pulse)
        except RuntimeError as error:
            if not self._parting.is_set():
                log.error(
                    "process %d of %d lost another (%s) and ends, to be started again with it",
                    self.rank + 1,
                    self.size,
                    error,
                )
                os._exit(1)

    def _tell(self, word: Any) -> None:
        dist.broadcast_object_list([word], src=0, group=self._words)

    def _heard(self) -> Any:
        words = [None]
        try:
            dist.broadcast_object_list(words, src=0, group=self._words)
        except RuntimeError:
            raise SystemExit(1) from None
        return words[0]


def together(method: Callable[Concatenate[Any, P], T]) -> Callable[Concatenate[Any, P], T]:
    """A method of the learner that rank 0 calls and all ranks do, with the same arguments."""

    @wraps(method)
    def call(self: Any, /, *args: P.args, **kwargs: P.kwargs) -> T:
        self.ranks.lead(method.__name__, *args, **kwargs)
        return method(self, *args, **kwargs)

    return call
