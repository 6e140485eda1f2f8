"""What the trainer remembers of its problems: pass rates by step, and the metrics of each source."""

from __future__ import annotations

from dataclasses import replace
from io import BytesIO

import torch

from cepo.data.problems import Problem
from cepo.messages.groups import BASE_POLICY, EvidencedGroup, Outcome
from cepo.testing import MemoryBus
from services.trainer.feeder import Feeder
from services.trainer.sources import MAX_LAG, PassHistory, source_metrics
from tests.helpers.factories import make_config, make_scored, make_task, make_verdict
from tests.unit.trainer.test_feeder import make_problems


def group(index: int, *rewards: float) -> EvidencedGroup:
    return EvidencedGroup(scored=make_scored(rewards, make_task(index=index, samples=len(rewards))))


def problems(*sources: str) -> list[Problem]:
    return [Problem((), str(i), 10 + i, source=source) for i, source in enumerate(sources)]


def test_a_pass_rate_is_known_after_its_step_and_the_newest_counts() -> None:
    history, two = PassHistory(), problems("", "")
    history.record(0, two, [group(0, 1, 0, 0, 0), group(1, 1, 1)])
    history.record(2, two, [group(0, 1, 1, 0, 0)])
    assert [history.before(step) for step in range(4)] == [
        {}, {10: 0.25, 11: 1.0}, {10: 0.25, 11: 1.0}, {10: 0.5, 11: 1.0}
    ]  # fmt: skip


def test_a_sample_without_a_verdict_does_not_count() -> None:
    history = PassHistory()
    failed = make_verdict().model_copy(update={"outcome": Outcome.TIMEOUT, "reward": 0.0, "accuracy": 0.0})
    scored = make_scored(verdicts=[make_verdict(1.0), failed], task=make_task(samples=2))
    history.record(0, problems(""), [EvidencedGroup(scored=scored)])
    assert history.before(1) == {10: 1.0}


def test_old_steps_are_merged_and_a_saved_history_is_the_same() -> None:
    history, again = PassHistory(), PassHistory()
    for step in range(3 * MAX_LAG):
        history.record(step, problems("", ""), [group(step % 2, 1, step % 3 / 2)])
    torch.save(history.state(), file := BytesIO())
    file.seek(0)
    again.load(torch.load(file, weights_only=True))
    newest = 3 * MAX_LAG
    for step in range(newest - MAX_LAG, newest + 1):
        assert again.before(step) == history.before(step) != {}
    assert len(history.state()["recent"]) == MAX_LAG + 1


def test_a_curriculum_draws_by_the_rates_that_are_known_when_the_tasks_are_published() -> None:
    config = make_config("data.curriculum=pass_rate", "sampling.prompts=2", "loop.lag=1", "loop.steps=9")
    numbered = [replace(problem, row=row) for row, problem in enumerate(make_problems(8, "train").problems)]
    train = replace(make_problems(8, "train"), problems=tuple(numbered))
    feeder = Feeder(config, "run", train, None, MemoryBus())
    before = feeder.tasks(2, BASE_POLICY, BASE_POLICY)
    for step in (1, 2):  # the tasks of step 2 were published when step 0 ended
        feeder.history.record(step, feeder.problems(step), [group(0, 1, 1), group(1, 0, 0)])
    assert feeder.tasks(2, BASE_POLICY, BASE_POLICY) == before
    forgetful = Feeder(config, "run", train, None, MemoryBus())
    steps = range(3, 9)
    assert [feeder.problems(step) for step in steps] != [forgetful.problems(step) for step in steps]


def test_each_source_has_its_metrics() -> None:
    metrics = source_metrics(problems("sums", "abc", "sums"), [group(0, 1, 0), group(1, 1, 1), group(2, 0, 0)])
    assert metrics == {
        "source/sums/groups": 2.0, "source/sums/accuracy": 0.25, "source/sums/reward": 0.25,
        "source/sums/no_spread": 0.5,
        "source/abc/groups": 1.0, "source/abc/accuracy": 1.0, "source/abc/reward": 1.0, "source/abc/no_spread": 1.0,
    }  # fmt: skip
    assert source_metrics(problems("", ""), [group(0, 1, 0)]) == {}
