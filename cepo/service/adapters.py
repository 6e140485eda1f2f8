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
from cepo.messages.groups import BASE_POLICY, PolicyProof, PolicyRef
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

    def absent(details: str) -> PolicyError:
        return PolicyError(f"the trainer at {settings.trainer_address} does not have {policy.name}: {details}")

    files: dict[str, bytearray] = {}
    async for chunk in stream_from_trainer(settings, "FetchPolicy", policy, absent):
        _check_size(policy, chunk.file, sum(map(len, files.values())) + len(chunk.data))
        files.setdefault(chunk.file, bytearray()).extend(chunk.data)
    return {name: bytes(data) for name, data in files.items()}


def _check_size(policy: PolicyRef, file: str, size: int) -> None:
    if file not in FILES or size > MAX_ADAPTER_BYTES:
        raise PolicyError(f"the trainer sends {file!r} for {policy.name}, {size} bytes so far: this is not an adapter")


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
                if set(files) != set(FILES) or digest(files) != policy.sha256:
                    raise PolicyError(
                        f"adapter {policy.name} does not match its sha256: damaged in transit, or another policy"
                    )
                write(folder, files)
                self._folders[policy.name] = folder
            return self._folders[policy.name]

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

    root = settings.adapter_cache / f"{service}-{os.getpid()}"
    return AdapterCache(root, fetch, keep=settings.max_loras)


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
