"""Values from continuations: which continuations are sampled, and the credit of their values against plain loops."""

from __future__ import annotations

import math
from dataclasses import replace
from statistics import fmean
from typing import Any

import pytest
import torch
from pydantic import ValidationError

from cepo.algo.batch import TrainBatch
from cepo.algo.methods.continuations import Continued
from cepo.algo.methods.spo import SpoChain
from cepo.algo.methods.vineppo import VinePpo
from cepo.algo.variants import ALGORITHMS
from cepo.messages.groups import EvidencedGroup, Outcome, Stage
from services.trainer.learning.batch import pack
from tests.parity.support import golden, make_batch, tensor
from tests.unit.algo.continuing import Prompts, prompts, sampled, step

SEGMENTS = golden("segment_methods")
SEEDS = range(4)
METHODS = [VinePpo(), SpoChain(interval=2)]


def values(groups: list[EvidencedGroup], index: int, sample: int) -> dict[int, float | None]:
    """Returns the mean reward of the continuations of each prefix, by prefix length; None if all of them failed."""
    value_at: dict[int, float | None] = {}
    for group in groups:
        origin = group.task.origin
        if origin is not None and origin.index == index and origin.sample in (sample, -1):
            rewards = [verdict.reward for verdict in group.scored.verdicts if not verdict.failed]
            value_at[len(group.task.prefix)] = fmean(rewards) if rewards else None
    return value_at


def vine_credit(ends: tuple[int, ...], reward: float, value: dict[int, float | None]) -> list[float]:
    """Returns A_k = r_k + V(s_{k+1}) - V(s_k) of each token; an unknown value is replaced by r_k + V(s_{k+1})."""
    starts, advantages, after = [0, *ends[:-1]], [], 0.0
    for k in reversed(range(len(ends))):
        earned = (reward if k == len(ends) - 1 else 0.0) + after
        before = value.get(starts[k])
        before = earned if before is None else before
        advantages.append(earned - before)
        after = before
    advantages.reverse()
    return [advantages[k] for k in range(len(ends)) for _ in range(starts[k], ends[k])]


def chain_credit(logps: tuple[float, ...], reward: float, value: dict[int, float | None], interval: int) -> list[float]:
    """Returns V(end of segment) - V(start of segment) for each token of probability below 0.9, and 0 for the others."""
    decided = [at for at, logp in enumerate(logps) if math.exp(logp) < 0.9]
    cuts = [at for at in decided[::interval] if value.get(at) is not None]
    ends = [*cuts[1:], len(logps)] if cuts else []
    rewards = [*(value[cut] for cut in cuts[1:]), reward] if cuts else []
    credit = [0.0] * len(logps)
    for start, end, after in zip(cuts, ends, rewards, strict=True):
        for at in range(start, end):
            credit[at] = (after - value[start]) * (at in decided)
    return credit


@pytest.mark.parametrize("unjudged", [0.0, 0.6], ids=["judged", "mostly-unjudged"])
@pytest.mark.parametrize("algorithm", METHODS, ids=lambda a: a.name)
@pytest.mark.parametrize("seed", SEEDS)
def test_the_credit_is_that_of_a_loop_over_the_equation(seed: int, algorithm: Continued, unjudged: float) -> None:
    algorithm = algorithm.model_copy(update={"continuations": 2 if unjudged else 9})
    groups, _ = step(algorithm, prompts(algorithm, seed=seed), unjudged)
    batch = pack(groups)
    adv_BT = algorithm.advantages(batch, 0).adv_BT
    row, unknown = 0, 0
    for group in groups[:3]:
        for sample, completion in enumerate(group.scored.rollout.completions):
            value_at = values(groups, group.task.index, sample)
            unknown += sum(value is None for value in value_at.values())
            reward = group.scored.verdicts[sample].reward
            if isinstance(algorithm, VinePpo):
                expected = vine_credit(completion.step_ends, reward, value_at)
            else:
                expected = chain_credit(tuple(completion.logps), reward, value_at, 2)
            width = len(completion.token_ids)
            assert adv_BT[row, :width].tolist() == pytest.approx(expected, abs=1e-6)
            assert not adv_BT[row, width:].any()
            row += 1
    assert (unknown > 0) == (unjudged > 0)
    assert adv_BT.any()


@pytest.mark.parametrize("algorithm", METHODS, ids=lambda a: a.name)
def test_continuations_are_graded_tasks_with_seeds_and_names_of_their_own(algorithm: Continued) -> None:
    tasks = prompts(algorithm)
    groups, sent = step(algorithm, tasks)
    assert sent
    assert len({task.seed for task in [*tasks, *sent]}) == len(tasks) + len(sent)
    assert sorted(task.index for task in sent) == list(range(3, 3 + len(sent)))
    for task in sent:
        assert (task.samples, task.route, task.asks) == (9, (Stage.ROLLOUT, Stage.VERIFY), ())
        assert task.origin is not None
        origin = groups[task.origin.index]
        assert task.messages == origin.task.messages
        assert task.sampling == origin.task.sampling
        if task.prefix:
            response = origin.scored.rollout.completions[task.origin.sample].token_ids
            assert task.prefix == response[: len(task.prefix)] != response
        else:
            assert task.origin.sample == -1
    assert sum(not task.prefix for task in sent) <= 3


@pytest.mark.parametrize("name", ["vineppo", "spo-chain", "spo-tree"])
def test_follow_ups_are_a_function_of_the_groups_and_the_same_once_they_came_back(name: str) -> None:
    algorithm = ALGORITHMS[name](name=name)
    tasks = prompts(algorithm)
    first = algorithm.follow_up([sampled(task) for task in tasks], 0, Prompts(3))
    assert algorithm.follow_up([sampled(task) for task in tasks], 0, Prompts(3)) == first
    groups, sent = step(algorithm, tasks)
    assert algorithm.follow_up(groups, 0, Prompts(3)) == tuple(sent)


def test_a_lost_prompt_changes_no_other_continuation() -> None:
    algorithm, groups = VinePpo(), [sampled(task) for task in prompts(VinePpo())]
    whole = {(t.origin, t.prefix): t.seed for t in algorithm.follow_up(groups, 0, Prompts(3))}
    rest = {(t.origin, t.prefix): t.seed for t in algorithm.follow_up(groups[1:], 0, Prompts(3))}
    assert rest == {key: seed for key, seed in whole.items() if key[0].index > 0}


def test_no_more_states_of_a_response_are_valued_than_the_bound() -> None:
    few = VinePpo(max_states=2)
    groups, sent = step(few, prompts(few))
    per_response: dict[Any, int] = {}
    for task in sent:
        if task.prefix:
            per_response[task.origin] = per_response.get(task.origin, 0) + 1
    assert max(per_response.values()) == 1  # the bound of 2 also counts the prompt
    adv_BT = few.advantages(pack(groups), 0).adv_BT
    row = 0
    for group in groups[:3]:
        for sample, completion in enumerate(group.scored.rollout.completions):
            expected = vine_credit(
                completion.step_ends, group.scored.verdicts[sample].reward, values(groups, group.task.index, sample)
            )
            assert adv_BT[row, : len(expected)].tolist() == pytest.approx(expected, abs=1e-6)
            row += 1


def one_row(length: int, reward: float, **changes: Any) -> TrainBatch:
    batch = make_batch(torch.ones(1, length), torch.tensor([reward]), torch.tensor([0]))
    return replace(batch, **changes)


@pytest.mark.parametrize("case", SEGMENTS["vineppo"])
def test_vineppo_reproduces_the_published_step_advantages(case: dict[str, Any]) -> None:
    assert not any(case["step_rewards"][:-1])  # only the last step has a reward
    known = [math.nan if value is None else value for value in case["values"]]
    count = len(case["step_rewards"])
    batch = one_row(
        count,
        case["step_rewards"][-1],
        step_ends=[tuple(range(1, count + 1))],
        prefix_value_BT1=torch.tensor([known]),
    )
    assert VinePpo().advantages(batch, 0).adv_BT[0].tolist() == pytest.approx(case["advantages"], abs=1e-6)


@pytest.mark.parametrize("case", [case for case in SEGMENTS["spo_chain"] if case["cutpoints"] in ([], [-1, 2, 5])])
def test_spo_chain_reproduces_the_published_advantages(case: dict[str, Any]) -> None:
    logp_BT = tensor([case["response_prob"]]).log()
    value_BT1 = torch.full((1, logp_BT.shape[1] + 1), math.nan)
    for cut, value in zip(case["cutpoints"], case["cutpoint_values"], strict=True):
        value_BT1[0, cut + 1] = value
    batch = one_row(logp_BT.shape[1], case["score"], rollout_logp_BT=logp_BT, prefix_value_BT1=value_BT1)
    _, expected = case["out_token_values_and_advantages"]
    torch.testing.assert_close(SpoChain(interval=2).advantages(batch, 0).adv_BT, tensor([expected]))


def test_only_decisions_are_in_the_loss_of_spo() -> None:
    logp_BT = torch.tensor([[0.5, 0.95, 0.9, 0.99]]).log()
    assert SpoChain().loss_mask_BT(one_row(4, 1.0, rollout_logp_BT=logp_BT)).tolist() == [[1.0, 0.0, 1.0, 0.0]]
    everything = SpoChain(confident=1.0).loss_mask_BT(one_row(4, 1.0, rollout_logp_BT=logp_BT))
    assert everything.tolist() == [[1.0] * 4]


@pytest.mark.parametrize("algorithm", METHODS, ids=lambda a: a.name)
def test_an_empty_response_has_no_state_and_no_credit(algorithm: Continued) -> None:
    batch = one_row(0, 1.0, step_ends=[(0,)])
    assert algorithm.advantages(batch, 0).adv_BT.shape == (1, 0)
    group = sampled(prompts(algorithm)[0])
    empty = group.scored.rollout.completions[0].model_copy(update={"token_ids": (), "logps": (), "step_ends": (0,)})
    assert algorithm.states(empty) == []


def test_a_response_without_a_boundary_is_one_step_worth_the_reward_minus_the_prompts_value() -> None:
    value_BT1 = torch.tensor([[0.25, math.nan, math.nan, math.nan]])
    batch = one_row(3, 1.0, step_ends=[(3,)], prefix_value_BT1=value_BT1)
    assert VinePpo().advantages(batch, 0).adv_BT.tolist() == [[0.75] * 3]


@pytest.mark.parametrize("algorithm", METHODS, ids=lambda a: a.name)
def test_without_any_value_there_is_no_credit(algorithm: Continued) -> None:
    logp_BT = torch.full((1, 3), -1.0)
    batch = one_row(3, 1.0, step_ends=[(1, 3)], rollout_logp_BT=logp_BT)
    assert not algorithm.advantages(batch, 0).adv_BT.any()
    unknown = replace(batch, prefix_value_BT1=torch.full((1, 4), math.nan))
    assert not algorithm.advantages(unknown, 0).adv_BT.any()
    assert algorithm.advantages(unknown, 0).metrics["value/states"] == 0.0


@pytest.mark.parametrize("algorithm", METHODS, ids=lambda a: a.name)
def test_a_response_without_a_verdict_is_not_continued(algorithm: Continued) -> None:
    group = sampled(prompts(algorithm)[0])
    timeout = group.scored.verdicts[0].model_copy(update={"outcome": Outcome.TIMEOUT})
    scored = group.scored.model_copy(update={"verdicts": (timeout, *group.scored.verdicts[1:])})
    tasks = algorithm.follow_up([group.model_copy(update={"scored": scored})], 0, Prompts(1))
    assert tasks
    assert not any(task.origin is not None and task.origin.sample == 0 for task in tasks)


def test_the_diagnostics_say_how_many_values_there_are_and_how_they_spread() -> None:
    value_BT1 = torch.tensor([[0.25, math.nan, 0.75, math.nan]])
    metrics = VinePpo().advantages(one_row(3, 1.0, step_ends=[(2, 3)], prefix_value_BT1=value_BT1), 0).metrics
    assert (metrics["value/states"], metrics["value/mean"], metrics["value/std"]) == (2.0, 0.5, 0.25)


@pytest.mark.parametrize("name", ["vineppo", "spo-chain", "spo-tree"])
@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"estimator": "rloo"}, "estimator has no effect"),
        ({"advantage_scale": "none"}, "advantage_scale has no effect"),
        ({"kl_in": "reward"}, 'kl_in="reward" has no effect'),
    ],
)
def test_options_that_compare_responses_are_refused(name: str, option: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        ALGORITHMS[name](name=name, **option)
