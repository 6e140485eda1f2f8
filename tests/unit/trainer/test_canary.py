"""The canary's places, and what its differences tell about an engine."""

from __future__ import annotations

import pytest

import cepo.tiny
from cepo.prompts.canary import FIRST_PLACES, canary_places
from cepo.prompts.renderer import Renderer
from services.trainer.canary import canary_bounds, canary_fault

PLACES = canary_places(1000)
TRAINER = [-0.1 * place**0.3 for place in range(len(PLACES))]


def moved(gaps: dict[int, float]) -> list[float]:
    """The trainer's log-probs, changed at some places."""
    return [logp + gaps.get(place, 0.0) for logp, place in zip(TRAINER, PLACES, strict=True)]


def test_places_reach_the_end_and_do_not_depend_on_it() -> None:
    assert canary_places(100) == (*range(1, 16), 16, 24, 32, 48, 64, 96)
    assert canary_places(5) == (1, 2, 3, 4)
    for length in (16, 17, 160, 1023, 40_000):
        places = canary_places(length)
        assert places == tuple(place for place in canary_places(10**6) if place < length)
        assert places[-1] >= 2 * length // 3 - 1
    assert len(canary_places(32_768)) < 40


@pytest.mark.parametrize("length", [4, 16, 159, 1023])
def test_a_longer_canary_begins_with_the_shorter_one(length: int) -> None:
    renderer = Renderer(str(cepo.tiny.path()))
    assert len(renderer.canary_ids(length)) == length
    assert renderer.canary_ids(2048)[:length] == renderer.canary_ids(length)


def test_rounding_is_let_pass_by_data_type() -> None:
    noise = {place: (-1) ** i * 0.08 for i, place in enumerate(PLACES)}
    assert canary_fault(moved(noise), TRAINER, "bfloat16", 28) == ""
    assert canary_fault(moved(noise), TRAINER, "float32", 28) != ""
    assert canary_fault(moved({place: gap * 1e-3 for place, gap in noise.items()}), TRAINER, "float32", 28) == ""
    assert canary_fault([*moved({}), -7.0], TRAINER, "float32", 28) == ""


def test_far_positions_that_differ_name_the_positions() -> None:
    """One nat a token beyond position 64 in bfloat16, as with other rotary factors; the first tokens agree."""
    far = {place: 1.0 * (-1) ** place for place in PLACES if place > 64} | {96: -1.2}
    fault = canary_fault(moved(far), TRAINER, "bfloat16", 28)
    assert "most at position 96 by 1.2 (at most 0.1 and 1 in bfloat16): the engine computes far positions" in fault


@pytest.mark.parametrize(
    "gaps",
    [
        dict.fromkeys(PLACES, 0.06),
        {place: 0.12 * (-1) ** place for place in PLACES},
        {3: 1.1},
    ],
    ids=["shifted", "scattered", "one token"],
)
def test_each_bound_counts(gaps: dict[int, float]) -> None:
    assert "the engine does not serve the weights" in canary_fault(moved(gaps), TRAINER, "bfloat16", 28)


def test_bounds_grow_with_the_layers_and_the_spacing_of_the_data_type() -> None:
    bounds = [canary_bounds("bfloat16", layers) for layers in (4, 28, 64)]
    assert [each.mean for each in bounds] == pytest.approx([0.056, 0.102, 0.147], abs=1e-3)
    assert [each.largest for each in bounds] == pytest.approx([0.56, 1.02, 1.47], abs=1e-2)
    assert canary_bounds("float32", 64) == canary_bounds("float32", 4)
    scattered = {place: 0.12 * (-1) ** place for place in PLACES}
    assert canary_fault(moved(scattered), TRAINER, "bfloat16", 64) == ""
    assert "(at most 0.056 and 0.56 in bfloat16)" in canary_fault(moved(scattered), TRAINER, "bfloat16", 4)


def test_nothing_is_accepted_before_the_trainer_has_scored() -> None:
    assert canary_fault(TRAINER, (), "float32", 28) == "the trainer has not scored the canary yet"
    assert FIRST_PLACES == 16
