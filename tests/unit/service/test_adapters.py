"""Adapter folders are written atomically, verified by digest, fetched once, and bounded in number."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from cepo.errors import EngineDown, PolicyError, Unreachable
from cepo.messages.groups import PolicyRef
from cepo.net.settings import Settings
from cepo.service import adapters
from cepo.service.adapters import FILES, AdapterCache, digest, resident
from cepo.testing import MemoryBus, ToyEngine

CONFIG, WEIGHTS = FILES


def make_files(version: int) -> dict[str, bytes]:
    return {CONFIG: b'{"r": 8}', WEIGHTS: bytes([version]) * 1000}


def policy_of(version: int) -> PolicyRef:
    return PolicyRef(version=version, sha256=digest(make_files(version)))


class Trainer:
    """Serves adapters and records which were fetched."""

    def __init__(self) -> None:
        self.fetched: list[int] = []
        self.damage: dict[str, bytes] = {}

    async def fetch(self, policy: PolicyRef) -> dict[str, bytes]:
        self.fetched.append(policy.version)
        await asyncio.sleep(0)
        return make_files(policy.version) | self.damage


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    adapters.write(tmp_path / "v1", make_files(1))
    assert adapters.read(tmp_path / "v1") == make_files(1)
    assert [path.name for path in tmp_path.iterdir()] == ["v1"]


def test_writing_again_replaces_the_folder(tmp_path: Path) -> None:
    adapters.write(tmp_path / "v1", make_files(1))
    (tmp_path / "v1" / "stray").touch()
    adapters.write(tmp_path / "v1", make_files(2))
    assert adapters.read(tmp_path / "v1") == make_files(2)
    assert sorted(path.name for path in (tmp_path / "v1").iterdir()) == sorted(FILES)


def test_a_write_that_fails_leaves_no_folder_under_the_name(tmp_path: Path) -> None:
    with pytest.raises(KeyError):
        adapters.write(tmp_path / "v1", {CONFIG: b"{}"})
    assert not (tmp_path / "v1").exists()
    adapters.write(tmp_path / "v1", make_files(1))
    assert adapters.read(tmp_path / "v1") == make_files(1)


def test_a_write_that_fails_keeps_what_was_there(tmp_path: Path) -> None:
    adapters.write(tmp_path / "v1", make_files(1))
    with pytest.raises(KeyError):
        adapters.write(tmp_path / "v1", {CONFIG: b"{}"})
    assert adapters.read(tmp_path / "v1") == make_files(1)


@pytest.mark.parametrize("name", FILES)
def test_any_changed_byte_changes_the_digest(name: str) -> None:
    files = make_files(1)
    for at in range(len(files[name])):
        damaged = bytearray(files[name])
        damaged[at] ^= 1
        assert digest(files | {name: bytes(damaged)}) != digest(files)


def test_a_byte_moved_from_one_file_to_the_next_changes_the_digest() -> None:
    assert digest({CONFIG: b"ab", WEIGHTS: b"c"}) != digest({CONFIG: b"a", WEIGHTS: b"bc"})


def test_the_digest_does_not_depend_on_the_order_of_the_files() -> None:
    assert digest(dict(reversed(make_files(1).items()))) == digest(make_files(1))


async def test_an_adapter_is_fetched_once_however_many_ask(tmp_path: Path) -> None:
    trainer = Trainer()
    cache = AdapterCache(tmp_path, trainer.fetch, keep=2)
    folders = await asyncio.gather(*(cache.folder(policy_of(1)) for _ in range(5)))
    assert trainer.fetched == [1]
    assert set(folders) == {tmp_path / policy_of(1).name}
    assert adapters.read(folders[0]) == make_files(1)


async def test_an_adapter_that_is_waited_for_holds_up_no_other(tmp_path: Path) -> None:
    sent = asyncio.Event()

    async def fetch(policy: PolicyRef) -> dict[str, bytes]:
        if policy.version == 1:
            await sent.wait()
        return make_files(policy.version)

    cache = AdapterCache(tmp_path, fetch, keep=2)
    waits = asyncio.create_task(cache.folder(policy_of(1)))
    async with asyncio.timeout(5):
        assert adapters.read(await cache.folder(policy_of(2))) == make_files(2)
        assert not waits.done()
        sent.set()
        assert adapters.read(await waits) == make_files(1)


async def test_the_least_recently_used_adapter_is_dropped(tmp_path: Path) -> None:
    trainer = Trainer()
    cache = AdapterCache(tmp_path, trainer.fetch, keep=2)
    for version in (1, 2, 1, 3, 1):
        await cache.folder(policy_of(version))
    assert trainer.fetched == [1, 2, 3]
    assert {path.name for path in tmp_path.iterdir()} == {policy_of(1).name, policy_of(3).name}
    await cache.folder(policy_of(2))
    assert trainer.fetched == [1, 2, 3, 2]


@pytest.mark.parametrize("damage", [{WEIGHTS: b"x"}, {"stray.txt": b""}], ids=["bytes", "files"])
async def test_damaged_adapters_are_refused_and_not_kept(tmp_path: Path, damage: dict[str, bytes]) -> None:
    trainer = Trainer()
    cache = AdapterCache(tmp_path, trainer.fetch, keep=2)
    trainer.damage = damage
    with pytest.raises(PolicyError, match="does not match its sha256"):
        await cache.folder(policy_of(1))
    assert list(tmp_path.iterdir()) == []
    trainer.damage = {}
    assert adapters.read(await cache.folder(policy_of(1))) == make_files(1)


async def test_a_file_that_is_missing_is_refused(tmp_path: Path) -> None:
    async def fetch(policy: PolicyRef) -> dict[str, bytes]:
        return {CONFIG: b"{}"}

    with pytest.raises(PolicyError):
        await AdapterCache(tmp_path, fetch, keep=2).folder(policy_of(1))


async def test_a_trainer_that_is_away_is_asked_again(tmp_path: Path) -> None:
    trainer = Trainer()
    down = [True]

    async def fetch(policy: PolicyRef) -> dict[str, bytes]:
        if down:
            down.clear()
            raise Unreachable("no trainer")
        return await trainer.fetch(policy)

    cache = AdapterCache(tmp_path, fetch, keep=2)
    with pytest.raises(Unreachable):
        await cache.folder(policy_of(1))
    assert adapters.read(await cache.folder(policy_of(1))) == make_files(1)


async def test_what_was_cleared_is_fetched_again(tmp_path: Path) -> None:
    trainer = Trainer()
    cache = AdapterCache(tmp_path / "cache", trainer.fetch, keep=2)
    await cache.folder(policy_of(1))
    cache.clear()
    assert not (tmp_path / "cache").exists()
    assert adapters.read(await cache.folder(policy_of(1))) == make_files(1)
    assert trainer.fetched == [1, 1]


async def test_work_ends_when_a_watch_of_its_engine_does(tmp_path: Path) -> None:
    engine, lost = ToyEngine(), asyncio.Event()

    async def watch() -> None:
        await lost.wait()
        raise EngineDown("the engine is gone")

    cache = AdapterCache(tmp_path, Trainer().fetch, keep=1)
    async with resident(engine, MemoryBus(), cache, watch):
        await asyncio.sleep(0)
    assert engine.closed  # without an error while the engine lives

    async def work() -> None:
        async with resident(engine, MemoryBus(), cache, watch):
            lost.set()
            await asyncio.Event().wait()

    with pytest.raises(ExceptionGroup) as ended:
        await work()
    assert ended.group_contains(EngineDown, match="the engine is gone")


async def test_an_engine_keeps_as_many_adapters_on_disk_as_it_holds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer, settings = Trainer(), Settings(adapter_cache=tmp_path, max_loras=2)
    monkeypatch.setattr(adapters, "fetch_adapter", lambda _, policy: trainer.fetch(policy))
    cache = adapters.trainer_cache("rollout", settings)
    for version in range(1, 6):
        await cache.folder(policy_of(version))
    assert {path.parent.name for path in tmp_path.rglob(WEIGHTS)} == {policy_of(4).name, policy_of(5).name}
