"""The warning on `rollout/logp_gap`: once, on-policy, by data type, with the cause."""

from __future__ import annotations

import logging
from dataclasses import replace

import pytest
import torch

from services.trainer.learning.batch import pack
from services.trainer.learning.gap import GapWatch
from services.trainer.learning.learner import Learner
from tests.helpers.factories import make_config, make_ragged

torch.set_num_threads(1)


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [each.message for each in caplog.records if each.name == "services.trainer.learning.gap"]


@pytest.mark.parametrize(
    ("settings", "gaps", "warned_at"),
    [
        ((), [1e-7, 9e-4, 2e-3, 5e-3], [2]),
        (("model.dtype=bfloat16",), [6e-4, 0.09, 1.05, 0.9], [2]),
        (("loop.lag=1",), [1e-7, 0.2], []),
        (("loop.lag=1",), [0.2, 0.2], [0]),
    ],
)
def test_the_first_gap_above_the_bound_is_told(
    settings: tuple[str, ...], gaps: list[float], warned_at: list[int], caplog: pytest.LogCaptureFixture
) -> None:
    watch = GapWatch(make_config(*settings))
    for step, gap in enumerate(gaps):
        watch.watch(gap, step)
    said = warnings(caplog)
    assert len(said) == len(warned_at)
    assert all(f"nats a token at step {step}, above" in line for step, line in zip(warned_at, said, strict=True))


def test_a_learner_watches_its_steps(caplog: pytest.LogCaptureFixture) -> None:
    learner = Learner(make_config())
    batch = pack(make_ragged([(4, 6), (3, 5)], 1))
    with caplog.at_level(logging.WARNING):
        for step in (0, 1):
            learner.learn(replace(batch, rollout_logp_BT=batch.rollout_logp_BT - batch.mask_BT), step)
    (said,) = warnings(caplog)
    assert said.endswith("compare rope, sliding window, quantisation and the data type of its cache with the trainer's")
