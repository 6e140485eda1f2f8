"""Adapters from engine to engine, so that a version spreads as a tree instead of from the trainer alone.

The trainer answers a request with the bytes, or with the address of another engine, a holder, from which the engine
fetches further versions too. A holder sends what it has, and also what it is still receiving, chunk by chunk. Every
engine compares the digest, so a holder that fails, or sends other bytes, costs time only: the engine reports it and
gets the bytes from the trainer.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import AsyncIterator
from typing import Any

import grpc

from cepo.errors import PolicyError, Unreachable, WireError
from cepo.messages.groups import PolicyRef, PolicyRequest
from cepo.messages.wire import from_proto, to_proto
from cepo.net.auth import Tokens
from cepo.net.connections import channel
from cepo.net.limits import is_loopback
from cepo.net.settings import Settings
from cepo.pb.cepo.v1 import services_pb2, services_pb2_grpc
from cepo.service.adapters import AdapterCache, Arriving, cache_folder, chunks, from_trainer, is_whole
from cepo.service.fetching import FETCH_SECONDS

BEAT_SECONDS = 1.0
"""A holder that waits for its own next chunk sends a sign of life this often."""
SILENCE_SECONDS = 5.0
"""A holder that sends nothing for this long has failed."""
STAY_SECONDS = 600.0
"""How long an engine fetches from the same holder, at most, before it asks the trainer again."""
log = logging.getLogger(__name__)


class AdapterRelay(services_pb2_grpc.HolderServiceServicer):
    """The adapters of one engine: fetched from the trainer or a holder, and served to other engines."""

    def __init__(self, service: str, settings: Settings) -> None:
        """Fetches nothing yet.

        Args:
            service: the engine's service, which is the name in its certificate.
        """
        self._settings = settings
        self._caller: dict[str, Any] = {
            "port": settings.grpc_port if _reachable(settings) else 0,
            "service": service,
            "machine": settings.machine_name,
        }
        self._holder: services_pb2.Holder | None = None
        self._stay_until = 0.0
        self._arriving: dict[str, Arriving] = {}
        self._pulled: set[asyncio.Task[Any]] = set()
        self.cache = AdapterCache(cache_folder(service, settings), self.fetch, settings.max_loras)

    def register(self, server: grpc.aio.Server) -> None:
        """Adds HolderService to the gRPC server of the engine."""
        services_pb2_grpc.add_HolderServiceServicer_to_server(self, server)

    async def fetch(self, policy: PolicyRef) -> dict[str, bytes]:
        """The files of an adapter.

        Raises:
            Unreachable: the trainer does not answer in time.
            PolicyError: the trainer does not have this policy, or sends something else than an adapter.
        """
        arriving = self._begin(policy)
        try:
            if time.monotonic() > self._stay_until:
                self._holder = await self._from_trainer(arriving)
                self._stay_until = time.monotonic() + STAY_SECONDS * random.uniform(0.5, 1.0)  # engines ask one by one
            if holder := self._holder:
                try:
                    await self._from_holder(arriving, holder)
                except (Unreachable, PolicyError) as error:
                    log.warning("%s; fetching %s from the trainer", error, policy.name)
                    self._holder = None
                    if isinstance(error, PolicyError):  # what was sent on is wrong
                        arriving.end(whole=False)
                        arriving = self._begin(policy)
                    await self._from_trainer(arriving, failed=holder.address)
            if self._holder is None:
                self._stay_until = 0.0
            arriving.end(whole=True)
            return arriving.files()
        except BaseException:
            arriving.end(whole=False)
            raise
        finally:
            del self._arriving[policy.name]

    def _begin(self, policy: PolicyRef) -> Arriving:
        arriving = self._arriving[policy.name] = Arriving(policy)
        return arriving

    async def FetchPolicy(
        self, request: Any, context: grpc.aio.ServicerContext
    ) -> AsyncIterator[services_pb2.PolicyChunk]:
        """HolderService.FetchPolicy: sends an adapter that this engine has, or along with its arrival.

        An adapter that it has not heard of yet is fetched first.
        """
        try:
            policy = from_proto(PolicyRef, request)
        except WireError as error:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
        if policy.name not in self._arriving and self.cache.kept(policy) is None:
            self._pull(policy)
            await asyncio.sleep(0)
        if (arriving := self._arriving.get(policy.name)) is not None:
            try:
                async for chunk in arriving.read_along(BEAT_SECONDS):
                    yield chunk
            except Unreachable as error:
                await context.abort(grpc.StatusCode.UNAVAILABLE, str(error))
        elif (folder := self.cache.kept(policy)) is not None:
            for chunk in chunks(folder):
                yield chunk
        else:
            await context.abort(grpc.StatusCode.NOT_FOUND, f"{policy.name} is not here")

    def _pull(self, policy: PolicyRef) -> None:
        """Begins to fetch an adapter for a follower; this engine will need it too."""
        pulling = asyncio.create_task(self.cache.folder(policy))
        self._pulled.add(pulling)

        def ended(task: asyncio.Task[Any]) -> None:
            self._pulled.discard(task)
            if not task.cancelled() and (error := task.exception()):
                log.warning("%s was not fetched for another engine: %s", policy.name, error)

        pulling.add_done_callback(ended)

    async def _from_trainer(self, arriving: Arriving, failed: str = "") -> services_pb2.Holder | None:
        """Receives the adapter from the trainer; or returns the holder that sends it instead."""
        arriving.restart("the trainer")
        request = PolicyRequest(**arriving.policy.model_dump(), **self._caller, failed=failed)
        async for chunk in from_trainer(self._settings, request):
            if chunk.HasField("holder"):
                return chunk.holder
            arriving.add(chunk)
        return None

    async def _from_holder(self, arriving: Arriving, holder: services_pb2.Holder) -> None:
        """Receives the adapter from a holder.

        Raises:
            Unreachable: the holder fails before it has sent everything.
            PolicyError: it sends something else.
        """
        sender = f"{holder.service} at {holder.address}"
        arriving.restart(sender)
        policy, metadata = arriving.policy, Tokens.of(self._settings).metadata()
        try:
            async with channel(holder.address, self._settings, holder.service) as connection:
                stub = services_pb2_grpc.HolderServiceStub(connection)
                call = stub.FetchPolicy(to_proto(policy), metadata=metadata, timeout=FETCH_SECONDS)
                while (chunk := await asyncio.wait_for(call.read(), SILENCE_SECONDS)) is not grpc.aio.EOF:
                    if chunk.file:
                        arriving.add(chunk)
        except grpc.aio.AioRpcError as error:
            raise Unreachable(f"{sender}: {error.code().name}: {error.details()}") from error
        except TimeoutError:
            raise Unreachable(f"{sender} is silent") from None
        if not is_whole(policy, arriving.files()):
            raise PolicyError(f"{sender} sends other bytes than those of {policy.name}")


def _reachable(settings: Settings) -> bool:
    """Whether the engines that share this engine's trainer can connect to it."""
    return not is_loopback(settings.host) or is_loopback(settings.trainer_address.rpartition(":")[0])
