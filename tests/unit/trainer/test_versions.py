"""Which adapter versions are kept: the newest, and those that a task or a checkpoint refers to."""

from __future__ import annotations

from pathlib import Path

import pytest

from cepo.errors import PolicyError
from cepo.messages.groups import BASE_POLICY, PolicyRef
from cepo.run.best import Best
from cepo.service import adapters
from services.trainer.pipeline import Pipeline
from tests.unit.trainer.test_checkpoint import Process

EMA = ("algorithm.teacher.source=ema", "algorithm.teacher.ema_rate=0.25")
SYNC = ("algorithm.teacher.source=sync", "algorithm.teacher.sync_every=6")


async def published(process: Process, pipeline: Pipeline, until: int) -> tuple[Pipeline, list[PolicyRef]]:
    """Publishes versions as the loop does, without learning; returns the pipeline and the published versions."""
    policies = list[PolicyRef]()
    for version in range(pipeline.next_step + 1, until + 1):
        process.train(version)
        policies.append(await process.publisher.publish(version))
        teacher = await process.teacher.of(policies[-1], pipeline.newest.teacher)
        pipeline = pipeline.advanced(policies[-1], teacher)
        process.checkpoints.maybe_save(pipeline, last=False)
        named = {policy for pinned in pipeline.pinned for policy in (pinned.policy, pinned.teacher)}
        for policy in named - {BASE_POLICY}:  # the tasks of the next steps can fetch every policy they name
            assert adapters.digest(await process.publisher.files(policy)) == policy.sha256
    return pipeline, policies


START = Pipeline.start(lag=0)


def kept(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "adapters").iterdir())


async def test_the_newest_stay_and_the_others_cannot_be_had(tmp_path: Path) -> None:
    process = Process(tmp_path, keep=1, keep_policies=3)
    _, policies = await published(process, START, 6)
    assert kept(tmp_path) == ["v000004", "v000005", "v000006"]
    with pytest.raises(PolicyError, match="was not published by this run"):
        await process.publisher.files(policies[2])


async def test_the_best_policy_stays_however_old_it_is(tmp_path: Path) -> None:
    process = Process(tmp_path, keep=1, keep_policies=2)
    process.checkpoints.best = Best(version=2, chosen=0.9, measured=0.8, low=0.7, high=0.9)
    _, policies = await published(process, START, 6)
    assert kept(tmp_path) == ["v000002", "v000005", "v000006"]
    assert await process.publisher.files(policies[1])


async def test_all_stay_where_none_are_to_go(tmp_path: Path) -> None:
    await published(Process(tmp_path), START, 4)
    assert kept(tmp_path) == [f"v{version:06d}" for version in range(1, 5)]


@pytest.mark.parametrize(
    ("settings", "lag", "expected"),
    [
        ((), 2, ["v000005", "v000006", "v000007", "v000008"]),  # the checkpoint of step 7 refers to 5, 6 and 7
        (EMA, 0, ["ema-v000007", "ema-v000008", "v000007", "v000008"]),
        (SYNC, 0, ["v000006", "v000007", "v000008"]),  # the copy of step 6 is still the teacher
    ],
)
async def test_what_is_in_flight_or_saved_or_teaches_stays(
    tmp_path: Path, settings: tuple[str, ...], lag: int, expected: list[str]
) -> None:
    process = Process(tmp_path, *settings, every=7, keep=1, keep_policies=1)
    await published(process, Pipeline.start(lag), 8)
    assert kept(tmp_path) == expected


async def test_a_resumed_run_finds_what_its_checkpoints_name_and_drops_the_rest(tmp_path: Path) -> None:
    first = Process(tmp_path, every=2, keep=2, keep_policies=1)
    await published(first, Pipeline.start(lag=1), 5)
    assert kept(tmp_path) == ["v000001", "v000002", "v000003", "v000004", "v000005"]
    second = Process(tmp_path, every=2, keep=1, keep_policies=1)
    restored = second.checkpoints.restore()
    assert restored is not None
    assert restored.next_step == 4
    await published(second, restored, 6)
    assert kept(tmp_path) == ["v000005", "v000006"]
