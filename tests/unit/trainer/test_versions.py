"""Which adapter versions stay: the newest, and those that a task or a checkpoint can still name."""

from __future__ import annotations

from pathlib import Path

import pytest

from cepo.errors import PolicyError
from cepo.messages.groups import BASE_POLICY, PolicyRef
from cepo.service import adapters
from services.trainer.checkpoint import Progress
from tests.unit.trainer.test_checkpoint import Process

EMA = ("algorithm.teacher.source=ema", "algorithm.teacher.ema_rate=0.25")
SYNC = ("algorithm.teacher.source=sync", "algorithm.teacher.sync_every=6")


async def went_on(process: Process, progress: Progress, until: int, lag: int = 0) -> tuple[Progress, list[PolicyRef]]:
    """Versions as the loop publishes them, without learning; ends with what was published."""
    policies, teachers, published = list(progress.policies), list(progress.teachers), list[PolicyRef]()
    for version in range(progress.next_step + 1, until + 1):
        process.train(version)
        published.append(await process.publisher.publish(version))
        policies = [*policies, published[-1]][-lag - 1 :]
        teachers = [*teachers, await process.teacher.of(published[-1], teachers[-1])][-lag - 1 :]
        progress = Progress(version, tuple(policies), tuple(teachers))
        process.checkpoints.maybe_save(progress, last=False)
        for policy in {*policies, *teachers} - {BASE_POLICY}:  # what tasks of the next steps name can be had
            assert adapters.digest(await process.publisher.files(policy)) == policy.sha256
    return progress, published


START = Progress(0, (BASE_POLICY,), (BASE_POLICY,))


def kept(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "adapters").iterdir())


async def test_the_newest_stay_and_the_others_cannot_be_had(tmp_path: Path) -> None:
    process = Process(tmp_path, keep=1, keep_policies=3)
    _, published = await went_on(process, START, 6)
    assert kept(tmp_path) == ["v000004", "v000005", "v000006"]
    with pytest.raises(PolicyError, match="was not published by this run"):
        await process.publisher.files(published[2])


async def test_all_stay_where_none_are_to_go(tmp_path: Path) -> None:
    await went_on(Process(tmp_path), START, 4)
    assert kept(tmp_path) == [f"v{version:06d}" for version in range(1, 5)]


@pytest.mark.parametrize(
    ("settings", "lag", "expected"),
    [
        ((), 2, ["v000005", "v000006", "v000007", "v000008"]),  # step 7, which was saved, names 5 to 7
        (EMA, 0, ["ema-v000007", "ema-v000008", "v000007", "v000008"]),
        (SYNC, 0, ["v000006", "v000007", "v000008"]),  # the copy of step 6 still teaches
    ],
)
async def test_what_is_in_flight_or_saved_or_teaches_stays(
    tmp_path: Path, settings: tuple[str, ...], lag: int, expected: list[str]
) -> None:
    process = Process(tmp_path, *settings, every=7, keep=1, keep_policies=1)
    await went_on(process, START, 8, lag)
    assert kept(tmp_path) == expected


async def test_a_resumed_run_finds_what_its_checkpoints_name_and_drops_the_rest(tmp_path: Path) -> None:
    first = Process(tmp_path, every=2, keep=2, keep_policies=1)
    await went_on(first, START, 5, lag=1)
    assert kept(tmp_path) == ["v000001", "v000002", "v000003", "v000004", "v000005"]
    second = Process(tmp_path, every=2, keep=1, keep_policies=1)
    restored = second.checkpoints.restore()
    assert restored is not None
    assert restored.next_step == 4
    await went_on(second, restored, 6, lag=1)
    assert kept(tmp_path) == ["v000005", "v000006"]
