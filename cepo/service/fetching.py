"""Calls of the trainer: the adapters and images that other services need, and the groups that agents sampled."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any

import grpc

from cepo.errors import CepoError, PolicyError, Unreachable, UserError
from cepo.messages.groups import Contract
from cepo.messages.wire import to_proto
from cepo.net.auth import Tokens
from cepo.net.connections import channel
from cepo.net.settings import Settings
from cepo.pb.cepo.v1 import services_pb2_grpc

FETCH_SECONDS = 180.0
"""Timeout of a stream; long enough for a trainer that restarts."""
_ABSENT = (grpc.StatusCode.NOT_FOUND, grpc.StatusCode.FAILED_PRECONDITION)


async def stream_from_trainer(
    settings: Settings, method: str, request: Contract, absent: Callable[[str], CepoError]
) -> AsyncIterator[Any]:
    """Yields the chunks that a streaming method of TrainerService sends.

    Args:
        method: name of the method, such as "FetchPolicy".
        absent: makes the error to raise if the trainer does not have what is requested, from the trainer's message.

    Raises:
        Unreachable: the trainer does not answer in time.
    """
    address, metadata = settings.trainer_address, Tokens.of(settings).metadata()
    async with channel(address, settings) as trainer:
        call = getattr(services_pb2_grpc.TrainerServiceStub(trainer), method)
        try:
            async for chunk in call(to_proto(request), metadata=metadata, timeout=FETCH_SECONDS, wait_for_ready=True):
                yield chunk
        except grpc.aio.AioRpcError as error:
            if error.code() in _ABSENT:
                raise absent(str(error.details())) from error
            raise Unreachable(f"trainer at {address}: {error.code().name}: {error.details()}") from error


async def ask_trainer(settings: Settings, method: str, request: Any) -> Any:
    """The reply of a unary method of TrainerService. Waits for a trainer that restarts.

    Args:
        method: name of the method, such as "Terms".
        request: its protobuf message.

    Raises:
        UserError: the trainer refuses a field of the request.
        PolicyError: the run does not train on what was sent.
        Unreachable: the trainer does not answer in time, or its run has not started.
    """
    address, metadata = settings.trainer_address, Tokens.of(settings).metadata()
    async with channel(address, settings) as trainer:
        call = getattr(services_pb2_grpc.TrainerServiceStub(trainer), method)
        try:
            return await call(request, metadata=metadata, timeout=FETCH_SECONDS, wait_for_ready=True)
        except grpc.aio.AioRpcError as error:
            details = str(error.details())
            if error.code() is grpc.StatusCode.INVALID_ARGUMENT:
                raise UserError(details) from error
            if error.code() is grpc.StatusCode.FAILED_PRECONDITION:
                raise PolicyError(details) from error
            raise Unreachable(f"trainer at {address}: {error.code().name}: {details}") from error
