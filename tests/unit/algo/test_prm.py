"""Process rewards as credit, against plain loops over steps, and responses without scores."""

from __future__ import annotations

import math
import random
from dataclasses import replace
from statistics import fmean, stdev
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from cepo.algo.batch import TrainBatch
from cepo.algo.methods.prm import Prm
from tests.parity.support import make_batch

SEEDS = range(4)
FORMS = ["score", "difference", "min", "progress"]


def scored_batch(seed: int) -> TrainBatch:
    """Returns three groups of four. Rows 5, 2 and 9 are empty, failed and without scores; steps may share ends."""
    draw = random.Random(seed)
    lengths = [draw.randrange(1, 9) for _ in range(12)]
    lengths[5] = 0
    mask_BT = (torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]).float()
    reward_B = torch.tensor([float(draw.random() < 0.5) for _ in lengths])
    reward_B[2] = math.nan
    mask_BT[2] = 0
    ends = [(*sorted(draw.randrange(length + 1) for _ in range(draw.randrange(4))), length) for length in lengths]
    scores = [tuple(draw.random() for _ in end) if at not in (5, 9) else () for at, end in enumerate(ends)]
    batch = make_batch(mask_BT, reward_B, torch.arange(12) // 4)
    return replace(batch, response_ids=[(2,) * n for n in lengths], step_ends=ends, step_rewards=scores)


def earned(batch: TrainBatch, row: int, algorithm: Prm) -> list[tuple[int, float]]:
    """Returns (end, reward) of every step of a response that has a token; steps with the same end are added up."""
    length, outcome = len(batch.response_ids[row]), float(batch.reward_B[row]) * algorithm.outcome
    scores, ends = batch.step_rewards[row], batch.step_ends[row]
    if math.isnan(outcome) or length == 0:
        return []
    if not scores:
        return [(length, outcome)]
    reward_at: dict[int, float] = {}
    for k, (end, score) in enumerate(zip(ends, scores, strict=True)):
        if end == 0:
            continue
        before = scores[k - 1] if k else 0.0
        match algorithm.form:
            case "score":
                reward_at[end] = reward_at.get(end, 0.0) + score
            case "difference":
                reward_at[end] = reward_at.get(end, 0.0) + score - before
            case "progress":
                reward_at[end] = outcome + algorithm.progress * (score - before if k else 0.0)
    if algorithm.form == "min":
        reward_at[length] = min(score for score, end in zip(scores, ends, strict=True) if end > 0)
    if algorithm.form != "progress":
        reward_at[length] += outcome
    return sorted(reward_at.items())


@pytest.mark.parametrize("scale", ["std", "none"])
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("seed", SEEDS)
def test_the_credit_is_that_of_a_loop_over_the_steps(seed: int, form: Any, scale: Any) -> None:
    options: dict[str, Any] = {"progress": 0.5} if form == "progress" else {}
    algorithm, batch = Prm(form=form, outcome=0.7, advantage_scale=scale, **options), scored_batch(seed)
    adv_BT = algorithm.advantages(batch, 0).adv_BT
    for group in range(3):
        rows = range(4 * group, 4 * group + 4)
        everything = [reward for row in rows for _, reward in earned(batch, row, algorithm)]
        mean, spread = fmean(everything), stdev(everything) + 1e-6 if scale == "std" else 1.0
        for row in rows:
            steps, expected = earned(batch, row, algorithm), [0.0] * adv_BT.shape[1]
            for k, (end, reward) in enumerate(steps):
                start = steps[k - 1][0] if k and form == "progress" else 0
                for at in range(start, end):
                    expected[at] += (reward - mean) / spread
            assert adv_BT[row].tolist() == pytest.approx(expected, abs=1e-4)
    assert not adv_BT[2].any()
    assert adv_BT.any()


def test_scores_and_outcomes_that_are_all_equal_give_no_credit() -> None:
    batch = replace(scored_batch(0), reward_B=torch.ones(12))
    equal = replace(batch, step_rewards=[()] * 12)
    assert not Prm().advantages(equal, 0).adv_BT.any()


def test_a_batch_in_which_nothing_was_judged_has_no_credit() -> None:
    batch = replace(scored_batch(0), reward_B=torch.full((12,), math.nan))
    assert not Prm().advantages(batch, 0).adv_BT.any()


def test_it_wants_steps_and_a_scorer() -> None:
    assert (Prm().reasoning_delimiter, Prm().scores_steps) == ("\n", True)


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"estimator": "rloo"}, "estimator has no effect"),
        ({"progress": 2.0}, "progress has no effect with form='score'"),
        ({"kl_coef": 0.1, "kl_in": "reward"}, "has no effect"),
    ],
)
def test_options_that_do_nothing_are_refused(option: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        Prm(**option)
