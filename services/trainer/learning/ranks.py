"""The processes that train one policy, and the collective operations between them.

Every process ("rank") holds a shard of the frozen base: FSDP2 splits the parameters of each decoder layer, and a
forward or backward pass gathers a layer just before it runs. The adapter, its optimizer and everything outside the
decoder layers are whole on every rank. Each rank trains on its share of the rows; the gradients are summed in float32
before they are clipped, so all ranks take the same optimizer step.

A collective is an operation that every rank must enter, because each rank in it waits for all others: the all-reduce of
gradients, the all-gather of a layer, and therefore every pass of the model. Rank 0 runs the trainer's loop. The other
ranks run `serve`, which waits for the calls that rank 0 broadcasts and makes them on its own learner. Example of a step
with two ranks:

    rank 0 (trainer)                              rank 1 (serve)
    learner.learn(batch, 3)                       waits
      broadcast_call("learn", batch, 3)     -->   learner.learn(batch, 3)
      forward and backward on rows 0 to 7   <->   forward and backward on rows 8 to 15
      all_reduce_gradients()                <->   all_reduce_gradients()
      optimizer.step()                            optimizer.step()
      returns the metrics                         waits
    close(code=0)                           -->   leave(), and exits with 0

The methods of the learner that begin with a broadcast are marked `@collective`; all others run on one rank.
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
from cepo.net.torchrun import Place

P = ParamSpec("P")
T = TypeVar("T")
CONTROL_TIMEOUT = timedelta(days=365)
"""Timeout of the control group: rank 0 sends no call while the rollouts of a step are sampled."""
TORCHRUN = "env://"
"""The `init_method` of torch.distributed for processes that torchrun started."""
HEARTBEAT_SECONDS = 1.0
HEARTBEAT_TIMEOUT = timedelta(seconds=60)
"""Silence after which a machine counts as lost. A process that dies closes its connections: its peers fail at the next
heartbeat."""
log = logging.getLogger(__name__)


class Ranks:
    """A single process, in which every collective is a no-op; the interface of several."""

    rank = 0
    size = 1

    def broadcast_call(self, name: str, *arguments: Any, **options: Any) -> None:
        """Has every other rank call a method of its learner; a no-op on ranks other than 0.

        Args:
            name: the method.
            arguments, options: its arguments, which are pickled.
        """

    def shard(self, model: Any, device: str) -> None:
        """Keeps this rank's shard of the decoder layers and moves the model to the device.

        Raises:
            UserError: there are several ranks, and the model has no list of decoder layers to shard.
        """
        model.to(device)

    def all_reduce_max(self, count: int) -> int:
        """The largest count of any rank."""
        return count

    def all_reduce_sum(self, tensors: Sequence[Tensor]) -> None:
        """Replaces each tensor by its sum over the ranks. All tensors have one type."""

    def all_reduce_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """Replaces each gradient by its sum over the ranks; a missing gradient counts as zero."""

    def all_gather(self, value: T) -> list[T]:
        """The values of all ranks, in the order of the ranks."""
        return [value]

    def close(self, code: int = 0) -> None:
        """Ends `serve` on every other rank; called by rank 0.

        Args:
            code: the exit code that `serve` returns.
        """


SINGLE = Ranks()


class DistributedRanks(Ranks):
    """One of several processes, connected by torch.distributed.

    Three process groups: the default one for tensors, on the model's device; `control_group` for calls and Python
    objects, on the CPU; and `heartbeat_group`, by which ranks on several machines notice that one is lost.
    """

    def __init__(self, place: Place, init_method: str = TORCHRUN) -> None:
        """Connects to the other ranks, and waits until all are there.

        Args:
            init_method: where the ranks meet, as in torch.distributed. With torchrun they may run on several machines,
                and no common parent ends them together: a heartbeat then ends every rank once one is lost.
        """
        self.rank = place.rank
        self.size = place.size
        self._local_rank = place.local_rank
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        dist.init_process_group(backend, init_method=init_method, rank=place.rank, world_size=place.size)
        self._control_group: Any = dist.new_group(backend="gloo", timeout=CONTROL_TIMEOUT)
        self._leaving = threading.Event()
        self._heartbeat = threading.Thread(target=self._send_heartbeats, daemon=True)
        if init_method == TORCHRUN:
            self._heartbeat_group: Any = dist.new_group(backend="gloo", timeout=HEARTBEAT_TIMEOUT)
            self._heartbeat.start()

    def broadcast_call(self, name: str, *arguments: Any, **options: Any) -> None:
        if self.rank == 0:
            self._send((name, arguments, options))

    def serve(self, learner: Any) -> int:
        """Makes the calls that rank 0 broadcasts, until it closes; the main loop of every other rank.

        Returns:
            The exit code that rank 0 gave to `close`.

        Raises:
            SystemExit: rank 0 is lost. It reports the reason itself.
        """
        while not isinstance(call := self._receive(), int):
            name, arguments, options = call
            getattr(learner, name)(*arguments, **options)
        self.leave()
        return call

    def leave(self) -> None:
        """Leaves the heartbeat group before a normal exit, so that the other ranks do not take this one for lost."""
        self._leaving.set()
        if self._heartbeat.is_alive():
            self._heartbeat.join()

    def shard(self, model: Any, device: str) -> None:
        if device == "cuda":
            torch.cuda.set_device(self._local_rank)
        decoder = model.get_decoder()
        if not isinstance(getattr(decoder, "layers", None), nn.ModuleList):
            raise UserError(
                f"engine.trainer_processes={self.size}: {type(decoder).__name__} has no `layers` to shard; set it to 1"
            )
        sharded = {p for layer in decoder.layers for p in layer.parameters() if not p.requires_grad}
        whole = {p for p in model.parameters() if p not in sharded}
        mesh = init_device_mesh(device, (self.size,))
        for layer in decoder.layers:
            fully_shard(layer, mesh=mesh, ignored_params=whole)
        fully_shard(decoder, mesh=mesh, ignored_params=whole)  # it has no shard itself, and prefetches the next layer
        model.to(device)

    def all_reduce_max(self, count: int) -> int:
        counts = torch.tensor([count])
        dist.all_reduce(counts, dist.ReduceOp.MAX, group=self._control_group)
        return int(counts)

    def all_reduce_sum(self, tensors: Sequence[Tensor]) -> None:
        flat_N = torch.cat([tensor.flatten() for tensor in tensors])
        dist.all_reduce(flat_N)
        for tensor, sum_N in zip(tensors, flat_N.split([tensor.numel() for tensor in tensors]), strict=True):
            tensor.copy_(sum_N.view_as(tensor))

    def all_reduce_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        gradients = []
        for parameter in parameters:
            parameter.grad = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad
            gradients.append(parameter.grad)
        self.all_reduce_sum(gradients)

    def all_gather(self, value: T) -> list[T]:
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value, group=self._control_group)
        return values

    def close(self, code: int = 0) -> None:
        self._send(code)
        self.leave()

    def _send_heartbeats(self) -> None:
        """All-reduces a flag every second until a rank leaves; ends this process if another rank is lost.

        Without it, the process would wait in a collective forever.
        """
        leaving = torch.zeros(1)
        try:
            while not leaving:
                leaving.fill_(self._leaving.wait(HEARTBEAT_SECONDS))
                dist.all_reduce(leaving, dist.ReduceOp.MAX, group=self._heartbeat_group)
        except RuntimeError as error:
            if not self._leaving.is_set():
                log.error(
                    "process %d of %d lost another process (%s) and exits; start all of them again",
                    self.rank + 1,
                    self.size,
                    error,
                )
                os._exit(1)

    def _send(self, message: Any) -> None:
        dist.broadcast_object_list([message], src=0, group=self._control_group)

    def _receive(self) -> Any:
        messages = [None]
        try:
            dist.broadcast_object_list(messages, src=0, group=self._control_group)
        except RuntimeError:
            raise SystemExit(1) from None
        return messages[0]


def collective(method: Callable[Concatenate[Any, P], T]) -> Callable[Concatenate[Any, P], T]:
    """A method of the learner that runs on all ranks: rank 0 calls it, and the others with the same arguments."""

    @wraps(method)
    def call(self: Any, /, *args: P.args, **kwargs: P.kwargs) -> T:
        self.ranks.broadcast_call(method.__name__, *args, **kwargs)
        return method(self, *args, **kwargs)

    return call
