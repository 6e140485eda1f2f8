"""LoRA adapters by digest: written atomically, fetched once, and kept in a bounded cache.

An adapter is a folder in PEFT's format. Its digest covers the names and bytes of its files, so every engine can verify
which policy it has loaded.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import os
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Iterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Protocol
from weakref import WeakValueDictionary

from cachetools import LRUCache

from cepo.errors import PolicyError, StorageError, Unreachable
from cepo.messages.groups import BASE_POLICY, PolicyProof, PolicyRef, PolicyRequest
from cepo.net.files import replace_folder
from cepo.net.settings import Settings
from cepo.pb.cepo.v1 import services_pb2
from cepo.service.bus import Bus
from cepo.service.fetching import stream_from_trainer

FILES = ("adapter_config.json", "adapter_model.safetensors")
CHUNK_BYTES = 2**20
MAX_ADAPTER_BYTES = 16 * 2**30
"""Limit of what is received, because it is held in memory. Rank 512 on every module of a 70B model is smaller."""

log = logging.getLogger(__name__)

Fetch = Callable[[PolicyRef], Awaitable[dict[str, bytes]]]


def digest(files: Mapping[str, bytes]) -> str:
    """sha256 over the names, lengths and bytes of an adapter's files."""
    whole = hashlib.sha256()
    for name in FILES:
        whole.update(f"{name}:{len(files[name])}:".encode())
        whole.update(files[name])
    return whole.hexdigest()


def is_whole(policy: PolicyRef, files: Mapping[str, bytes]) -> bool:
    """Whether files are those of an adapter's digest."""
    return set(files) == set(FILES) and digest(files) == policy.sha256


def read(folder: Path) -> dict[str, bytes]:
    """The bytes of the files of an adapter folder, by name."""
    return {name: (folder / name).read_bytes() for name in FILES}


def chunks(folder: Path) -> Iterator[services_pb2.PolicyChunk]:
    """The files of an adapter folder as the chunks that TrainerService.FetchPolicy sends."""
    for name, data in read(folder).items():
        for at in range(0, len(data), CHUNK_BYTES):
            yield services_pb2.PolicyChunk(file=name, data=data[at : at + CHUNK_BYTES])


def write(folder: Path, files: Mapping[str, bytes]) -> None:
    """Writes an adapter; its folder appears once it is complete."""
    with replace_folder(folder) as scratch:
        for name in FILES:
            (scratch / name).write_bytes(files[name])


async def fetch_adapter(settings: Settings, policy: PolicyRef) -> dict[str, bytes]:
    """Fetches the files of an adapter from TrainerService.FetchPolicy.

    Raises:
        Unreachable: the trainer does not answer in time.
        PolicyError: the trainer does not have this policy, or sends something else than an adapter.
    """
    arriving = Arriving(policy)
    async for chunk in from_trainer(settings, PolicyRequest(**policy.model_dump())):
        arriving.add(chunk)
    return arriving.files()


def from_trainer(settings: Settings, request: PolicyRequest) -> AsyncIterator[services_pb2.PolicyChunk]:
    """Yields what TrainerService.FetchPolicy sends.

    Raises:
        Unreachable: the trainer does not answer in time.
        PolicyError: the trainer does not have this policy.
    """

    def absent(details: str) -> PolicyError:
        return PolicyError(f"the trainer at {settings.trainer_address} does not have {request.name}: {details}")

    return stream_from_trainer(settings, "FetchPolicy", request, absent)


class Arriving:
    """An adapter that is being received, which others may read along."""

    def __init__(self, policy: PolicyRef) -> None:
        self.policy = policy
        self._sender = "the trainer"
        self._chunks: list[services_pb2.PolicyChunk] = []
        self._size = 0
        self._at = 0
        self._over: bool | None = None
        self._news = asyncio.Event()

    def add(self, chunk: services_pb2.PolicyChunk) -> None:
        """Keeps the next chunk.

        Raises:
            PolicyError: the chunk is no part of an adapter, or the adapter is too large.
        """
        self._size += len(chunk.data)
        if chunk.file not in FILES or self._size > MAX_ADAPTER_BYTES:
            problem = f"{chunk.file!r} for {self.policy.name}, {self._size} bytes so far: this is not an adapter"
            raise PolicyError(f"{self._sender} sends {problem}")
        self._chunks[self._at : self._at + 1] = [chunk]
        self._at += 1
        self._tell()

    def restart(self, sender: str) -> None:
        """A sender begins with the first chunk. Readers continue where they are, because all send the same chunks."""
        self._sender, self._size, self._at = sender, 0, 0

    def end(self, *, whole: bool) -> None:
        """Tells readers that nothing more arrives."""
        self._over = whole
        self._tell()

    def files(self) -> dict[str, bytes]:
        """What has arrived, by the name of the file."""
        files: dict[str, list[bytes]] = {}
        for chunk in self._chunks[: self._at]:
            files.setdefault(chunk.file, []).append(chunk.data)
        return {name: b"".join(parts) for name, parts in files.items()}

    async def read_along(self, beat: float) -> AsyncIterator[services_pb2.PolicyChunk]:
        """Yields all chunks as they arrive, and an empty one after `beat` seconds without any.

        Raises:
            Unreachable: the rest will not arrive.
        """
        sent = 0
        while True:
            for chunk in self._chunks[sent:]:
                yield chunk
                sent += 1
            if self._over is False:
                raise Unreachable(f"{self.policy.name} did not arrive here")
            if sent < len(self._chunks):
                continue
            if self._over:
                return
            try:
                await asyncio.wait_for(self._news.wait(), beat)
            except TimeoutError:
                yield services_pb2.PolicyChunk()

    def _tell(self) -> None:
        self._news.set()
        self._news = asyncio.Event()


class _Folders(LRUCache[str, Path]):
    """Deletes each folder that it evicts."""

    def popitem(self) -> tuple[str, Path]:
        name, folder = super().popitem()
        shutil.rmtree(folder, ignore_errors=True)
        return name, folder


class AdapterCache:
    """A cache of adapter folders on disk. Fetches each once, verifies it, and evicts the least recently used."""

    def __init__(self, root: Path, fetch: Fetch, keep: int) -> None:
        self._root = root
        self._fetch = fetch
        self._folders = _Folders(keep)
        self._fetching: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()

    async def folder(self, policy: PolicyRef) -> Path:
        """The folder of an adapter, which is fetched if it is not in the cache.

        Raises:
            PolicyError: the bytes do not match the digest; the adapter is not kept.
        """
        folder = self._root / policy.name
        async with self._fetching.setdefault(policy.name, asyncio.Lock()):  # waiting for one does not block others
            if policy.name not in self._folders:
                files = await self._fetch(policy)
                if not is_whole(policy, files):
                    raise PolicyError(
                        f"adapter {policy.name} does not match its sha256: damaged in transit, or another policy"
                    )
                write(folder, files)
                self._folders[policy.name] = folder
            return self._folders[policy.name]

    def kept(self, policy: PolicyRef) -> Path | None:
        """The folder of an adapter; None if it is not in the cache."""
        return self._folders.get(policy.name)

    def clear(self) -> None:
        """Deletes all folders."""
        self._folders.clear()
        shutil.rmtree(self._root, ignore_errors=True)


class Engine(Protocol):
    """An engine that loads policies: the rollout's sampler or the teacher's scorer."""

    async def load(self, policy: PolicyRef) -> PolicyProof:
        """Loads a policy, if it is not loaded, and returns the proof of the loaded weights."""
        ...

    def close(self) -> None: ...


def trainer_cache(service: str, settings: Settings) -> AdapterCache:
    """A cache of this process that fetches adapters from the trainer."""

    async def fetch(policy: PolicyRef) -> dict[str, bytes]:
        return await fetch_adapter(settings, policy)

    return AdapterCache(cache_folder(service, settings), fetch, keep=settings.max_loras)


def cache_folder(service: str, settings: Settings) -> Path:
    """The folder of the adapters of this process."""
    return settings.adapter_cache / f"{service}-{os.getpid()}"


@asynccontextmanager
async def resident(
    engine: Engine, bus: Bus, adapters: AdapterCache, *watches: Callable[[], Coroutine[Any, Any, None]]
) -> AsyncIterator[None]:
    """Loads the base model and then policies as they are announced, before the first task needs them.

    Args:
        watches: coroutines that run during the block; if one raises, the block is cancelled.
    """
    try:
        await engine.load(BASE_POLICY)
        prefetching = asyncio.create_task(_prefetch(engine, bus))
        try:
            async with asyncio.TaskGroup() as group:
                watching = [group.create_task(watch()) for watch in watches]
                yield
                for task in watching:
                    task.cancel()
        finally:
            prefetching.cancel()
    finally:
        engine.close()
        adapters.clear()


async def _prefetch(engine: Engine, bus: Bus) -> None:
    async for policy in bus.announcements():
        try:
            await engine.load(policy)
        except (PolicyError, StorageError, Unreachable) as error:
            log.warning("announced %s is not loaded yet: %s", policy.name, error)  # the first task with it tries again
