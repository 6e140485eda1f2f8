"""Tasks are a function of the seed and the step."""

from __future__ import annotations

from dataclasses import replace

import pytest

from cepo.data.problems import Problem, Problems
from cepo.messages.groups import (
    BASE_POLICY,
    Message,
    Placement,
    PromptTask,
    Purpose,
    Reward,
    Sampling,
    Stage,
    TeachWhen,
)
from cepo.testing import MemoryBus
from services.trainer.feeder import Feeder
from tests.helpers.factories import POLICY, make_config

SMALL = ("sampling.prompts=4", "sampling.samples=3", "loop.steps=8", "eval.prompts=5")
FULL, SHORT = (Stage.ROLLOUT, Stage.VERIFY, Stage.TEACH), (Stage.ROLLOUT, Stage.VERIFY)


def make_problems(count: int, name: str) -> Problems:
    return Problems(
        tuple(Problem((Message(role="user", content=f"{name} {i}"),), str(i)) for i in range(count)), dropped=()
    )


def make_feeder(*overrides: str, bus: MemoryBus | None = None) -> Feeder:
    config = make_config(*SMALL, *overrides)
    return Feeder(config, "run", make_problems(10, "train"), make_problems(6, "eval"), bus or MemoryBus())


def questions(tasks: tuple[PromptTask, ...]) -> list[str]:
    return [task.messages[0].content for task in tasks]


def test_a_steps_tasks_depend_on_nothing_but_seed_step_and_policy() -> None:
    feeder = make_feeder()
    late_first = [feeder.tasks(step, POLICY, POLICY) for step in (3, 1, 2)]
    assert late_first == [make_feeder().tasks(step, POLICY, POLICY) for step in (3, 1, 2)]
    again = make_feeder().tasks(1, BASE_POLICY, BASE_POLICY)
    assert again == tuple(
        task.model_copy(update={"policy": BASE_POLICY, "teacher": BASE_POLICY}) for task in late_first[1]
    )


def test_steps_follow_each_other_through_the_epochs() -> None:
    feeder = make_feeder()
    seen = [question for step in range(5) for question in questions(feeder.tasks(step, BASE_POLICY, BASE_POLICY))]
    assert sorted(seen[:10]) == sorted(seen[10:]) == sorted(f"train {i}" for i in range(10))
    assert seen[:10] != seen[10:]


def test_another_seed_gives_other_problems_and_other_samples() -> None:
    one, two = (make_feeder(f"loop.seed={seed}").tasks(0, BASE_POLICY, BASE_POLICY) for seed in (1, 2))
    assert questions(one) != questions(two)
    assert not {task.seed for task in one} & {task.seed for task in two}


def test_no_two_tasks_of_a_run_share_a_seed_or_a_name() -> None:
    feeder = make_feeder()
    tasks = [task for step in range(8) for task in feeder.tasks(step, BASE_POLICY, BASE_POLICY)]
    tasks += feeder.eval_tasks(0, BASE_POLICY)
    assert len({task.seed for task in tasks}) == len({task.group_id for task in tasks}) == len(tasks) == 37


def test_a_task_carries_what_the_config_says() -> None:
    task = make_feeder("sampling.temperature=0.7", "sampling.top_k=5", "data.hint=It is {answer}").tasks(
        2, POLICY, POLICY
    )[1]
    assert (task.run, task.step, task.index, task.purpose) == ("run", 2, 1, Purpose.TRAIN)
    assert (task.samples, task.hint, task.policy, task.teacher) == (3, "It is {answer}", POLICY, POLICY)
    assert (task.sampling.temperature, task.sampling.top_k, task.sampling.max_tokens) == (0.7, 5, 48)
    assert f"train {task.reference_answer}" == task.messages[0].content


def test_held_out_problems_are_sampled_as_the_eval_section_says() -> None:
    settings = ("eval.temperature=0.6", "eval.top_p=0.9", "eval.top_k=40", "eval.presence_penalty=2.0")
    feeder = make_feeder(*settings, "sampling.top_k=5")
    assert {task.sampling for task in feeder.eval_tasks(0, POLICY)} == {
        Sampling(temperature=0.6, top_p=0.9, top_k=40, presence_penalty=2.0, max_tokens=48)
    }
    assert {task.sampling for task in feeder.tasks(0, POLICY, POLICY)} == {Sampling(top_k=5, max_tokens=48)}


def test_a_task_says_where_the_hint_stands_and_how_the_problem_is_solved() -> None:
    feeder = make_feeder("data.placement=system", "data.solution=steps", "algorithm.positive=solution")
    solved = tuple(replace(problem, solution=f"by {problem.answer}") for problem in feeder.train.problems)
    task = replace(feeder, train=replace(feeder.train, problems=solved)).tasks(0, POLICY, BASE_POLICY)[0]
    assert (task.placement, task.reference_solution) == (Placement.SYSTEM, f"by {task.reference_answer}")
    assert (task.policy, task.teacher) == (POLICY, BASE_POLICY)


def test_a_task_says_how_its_answers_are_compared() -> None:
    (task, *_) = make_feeder('data.answer_kind="number tolerance=1%"').tasks(0, POLICY, POLICY)
    assert task.answer_kind == "number tolerance=1%"


def test_after_the_last_step_there_is_nothing_to_do() -> None:
    assert make_feeder().tasks(7, BASE_POLICY, BASE_POLICY)
    assert make_feeder().tasks(8, BASE_POLICY, BASE_POLICY) == ()


@pytest.mark.parametrize(
    ("overrides", "step", "asked"),
    [
        ([], 0, True),
        (["algorithm.decay_steps=3"], 2, True),
        (["algorithm.decay_steps=3"], 3, False),
        (["algorithm.lam=0.0"], 0, False),
        (['algorithm={name="grpo"}'], 0, False),
    ],
    ids=["cepo", "before-the-end-of-the-decay", "decayed", "no-share", "grpo"],
)
def test_evidence_that_cannot_matter_is_not_asked_for(overrides: list[str], step: int, asked: bool) -> None:
    feeder = make_feeder(*overrides)
    for task in feeder.tasks(step, POLICY, POLICY):
        assert task.asks == (feeder.config.algorithm.asks if asked else ())
        assert task.route == (FULL if asked else SHORT)
        assert task.teach_when is TeachWhen.REWARD_SPREAD


def test_the_base_models_share_of_the_teacher_travels_with_training_tasks_alone() -> None:
    feeder = make_feeder('algorithm.teacher={source="trust_region", actor_share=0.25}')
    assert {task.base_share for task in feeder.tasks(0, POLICY, POLICY)} == {0.75}
    assert {task.base_share for task in feeder.eval_tasks(0, POLICY)} == {0.0}


def test_evaluation_is_the_same_every_time_and_skips_the_teacher() -> None:
    feeder = make_feeder("eval.samples=2", "eval.temperature=0.5", "sampling.top_p=0.9")
    before, after = feeder.eval_tasks(0, BASE_POLICY), feeder.eval_tasks(3, POLICY)
    unchanged = {"step": 0, "policy": BASE_POLICY, "teacher": BASE_POLICY}
    assert tuple(task.model_copy(update=unchanged) for task in after) == before
    assert questions(before) == [f"eval {i}" for i in range(5)]
    task = before[0]
    assert (task.purpose, task.asks, task.route, task.samples) == (Purpose.EVAL, (), SHORT, 2)
    assert (task.sampling.temperature, task.sampling.top_p) == (0.5, 1.0)


def test_without_held_out_problems_nothing_is_evaluated() -> None:
    feeder = Feeder(make_config(*SMALL), "run", make_problems(10, "train"), None, MemoryBus())
    assert feeder.eval_tasks(0, BASE_POLICY) == ()


async def test_tasks_arrive_on_the_rollout_stream() -> None:
    bus = MemoryBus()
    feeder = make_feeder(bus=bus)
    tasks = feeder.tasks(0, POLICY, POLICY)
    await feeder.publish(tasks)
    await feeder.publish(())
    assert [item.message for item in await bus.receive("rollout", "w", 10, 0)] == list(tasks)


def test_the_reward_travels_with_training_tasks_alone() -> None:
    feeder = make_feeder("reward={accuracy=0.9, format=0.1}")
    assert {task.reward for task in feeder.tasks(0, BASE_POLICY, BASE_POLICY)} == {Reward(accuracy=0.9, format=0.1)}
    assert {task.reward for task in feeder.eval_tasks(0, BASE_POLICY)} == {Reward()}
