"""The warning on `rollout/logp_gap`: once, on-policy, by data type, with the cause."""

from __future__ import annotations

import pytest

from services.trainer.gap import GapWatch
from tests.helpers.factories import make_config

CUT = ('algorithm={name="grpo"}', "sampling.top_p=0.7")


@pytest.mark.parametrize(
    ("settings", "gaps", "warned_at"),
    [
        ((), [1e-7, 9e-4, 2e-3, 5e-3], [2]),
        (("model.dtype=bfloat16",), [6e-4, 0.09, 1.05, 0.9], [2]),
        (("loop.lag=1",), [1e-7, 0.2], []),
        (("loop.lag=1",), [0.2, 0.2], [0]),
        (CUT, [1e-7, 0.2], [1]),
        ((*CUT, "sampling.temperature=0.8"), [0.2, 0.3], []),
        (('algorithm={name="grpo"}', "sampling.top_k=20", "sampling.temperature=1.2"), [0.2, 0.3], []),
    ],
)
def test_the_first_gap_above_the_bound_is_told(
    settings: tuple[str, ...], gaps: list[float], warned_at: list[int]
) -> None:
    """At a temperature other than 1 a cut adds the log of the kept mass to the gap of a right engine."""
    watch = GapWatch(make_config(*settings))
    said = [watch.warning(gap, step) for step, gap in enumerate(gaps)]
    assert [step for step, text in enumerate(said) if text] == warned_at
    assert all(f"nats a token at step {step}, above" in said[step] for step in warned_at)
    assert all(
        said[step].endswith(
            "compare rope, sliding window, quantisation and the data type of its cache with the trainer's"
        )
        for step in warned_at
    )
