"""The policy and the teacher that each step in flight is pinned to."""

from __future__ import annotations

import pytest

from cepo.messages.groups import BASE_POLICY, PolicyRef
from services.trainer.pipeline import Pinned, Pipeline


def version(number: int) -> PolicyRef:
    return PolicyRef(version=number, sha256=f"{number:064x}") if number else BASE_POLICY


def advanced(pipeline: Pipeline, steps: int) -> list[Pipeline]:
    """The pipeline before and after each step; the teacher stays the base model."""
    seen = [pipeline]
    for _ in range(steps):
        seen.append(seen[-1].advanced(version(seen[-1].next_step + 1), BASE_POLICY))
    return seen


def versions(pipeline: Pipeline) -> list[int]:
    return [pinned.policy.version for pinned in pipeline.pinned]


@pytest.mark.parametrize("lag", [0, 1, 3])
def test_a_step_samples_from_the_policy_of_lag_steps_ago(lag: int) -> None:
    for pipeline in advanced(Pipeline.start(lag), 6):
        assert list(pipeline.steps) == [pipeline.next_step + i for i in range(lag + 1)]
        for step in pipeline.steps:
            assert pipeline.of(step) == Pinned(version(max(0, step - lag)), BASE_POLICY)
        assert pipeline.newest.policy.version == pipeline.next_step


@pytest.mark.parametrize(("lag", "expected"), [(0, [4]), (1, [3, 4]), (2, [2, 3, 4]), (4, [2, 2, 2, 3, 4])])
def test_a_run_resumes_with_another_lag(lag: int, expected: list[int]) -> None:
    saved = advanced(Pipeline.start(lag=2), 4)[-1]
    assert versions(saved) == [2, 3, 4]
    assert versions(saved.resized(lag)) == expected
    assert saved.resized(lag).next_step == 4
