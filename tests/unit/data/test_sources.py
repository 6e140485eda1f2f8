"""Several sources of training problems: their columns, their shares and their order, and the draw by pass rates."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

import cepo.tiny
from cepo.data.drawing import LEAST_WEIGHT, Problem, Problems, weight
from cepo.data.problems import load_problems, load_sets
from cepo.data.stored import begin, stored
from cepo.errors import UserError
from cepo.messages.groups import Message, Reward
from cepo.prompts.renderer import Renderer
from cepo.run.config import RunConfig
from cepo.run.file import load
from cepo.run.folder import RunDir
from cepo.run.resuming import changes, class_of
from tests.helpers.factories import RUNS, make_config

RENDERER = Renderer(str(cepo.tiny.path()))
ECHO = "tests.unit.rollout.hostile_environments:Echo"


def write(path: Path, *rows: dict[str, Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def mixed(folder: Path, *overrides: str) -> RunConfig:
    """A run on sums, whose columns are conventional, and on letters, whose columns are not."""
    sums = write(folder / "sums.jsonl", *({"question": f"{i} + 1 = ?", "answer": i + 1} for i in range(4)))
    letters = write(folder / "letters.jsonl", *({"ask": f"Letter {i}?", "key": c} for i, c in enumerate("ABC")))
    run = folder / "run.toml"
    run.write_text(
        f'base = "{RUNS / "tiny_cepo.toml"}"\n[data]\n[[data.train]]\npath = "./sums.jsonl"\nshare = 3\n'
        f'[[data.train]]\npath = "{letters}"\nname = "abc"\nquestion = "ask"\nanswer = "key"\nanswer_kind = "choice"\n'
        'instruction = "Name a letter."\nreward = {format = 0.5}\nmax_turns = 3\n'
        f'environment = "{ECHO}"\n'
    )
    assert str(sums) == load(run, overrides).data.names[0]
    return load(run, overrides)


def problems_of(counts: Sequence[int], shares: tuple[float, ...]) -> Problems:
    message = (Message(role="user", content="?"),)
    problems = [
        Problem(message, f"{s}{i}", s * 100 + i, source=f"s{s}") for s, n in enumerate(counts) for i in range(n)
    ]
    return Problems(tuple(problems), (), shares=shares)


def test_each_source_has_its_own_columns_and_its_rows_are_numbered_through(tmp_path: Path) -> None:
    loaded = load_problems(mixed(tmp_path), RENDERER)
    assert [(p.source, p.row, p.answer) for p in loaded.problems] == [
        ("sums", 0, "1"), ("sums", 1, "2"), ("sums", 2, "3"), ("sums", 3, "4"),
        ("abc", 4, "A"), ("abc", 5, "B"), ("abc", 6, "C"),
    ]  # fmt: skip
    assert loaded.problems[4].messages[0].content == "Letter 0?\nName a letter."
    assert "step by step" in loaded.problems[0].messages[0].content
    assert (loaded.problems[0].columns, json.loads(loaded.problems[4].columns)) == (
        "",
        {"ask": "Letter 0?", "key": "A"},
    )
    assert (loaded.rows, loaded.shares) == (7, (3.0, 1.0))


def test_a_bad_row_of_a_source_is_named_with_the_source(tmp_path: Path) -> None:
    config = mixed(tmp_path)
    write(tmp_path / "letters.jsonl", {"ask": "Letter?", "key": "A"}, {"ask": "Letter?"})
    with pytest.raises(UserError, match=r"data.train\[abc\]=.*letters.jsonl, row 1: no column 'key'"):
        load_problems(config, RENDERER)


def test_excluded_rows_are_those_of_the_numbers_of_all_sources(tmp_path: Path) -> None:
    config = mixed(tmp_path, "data.on_bad_row=drop")
    kept = load_problems(config, RENDERER, excluded={1: "bad", 5: "worse"})
    assert [problem.row for problem in kept.problems] == [0, 2, 3, 4, 6]
    assert [reason.rpartition(", ")[2] for reason in kept.dropped] == ["row 1: bad", "row 1: worse"]


def test_stored_problems_keep_their_source_and_their_row(tmp_path: Path) -> None:
    config, folder = mixed(tmp_path), RunDir(tmp_path / "run")
    sets = load_sets(config, RENDERER)
    begin(folder, config, sets, resume=False)
    again = stored(folder, "train").problems
    assert [(p.source, p.columns, p.row) for p in again] == [
        (p.source, p.columns, p.row) for p in sets["train"].problems
    ]
    assert load(folder.config) == config


def test_a_source_has_the_keys_of_data_and_its_own(tmp_path: Path) -> None:
    config = mixed(tmp_path)
    assert (config.data.of("abc").answer_kind, config.data.of("sums").answer_kind) == ("choice", "")
    assert (config.data.of("abc").max_turns, config.data.of("sums").max_turns) == (3, 8)
    assert config.reward_of("abc") == Reward(format=0.5)
    assert config.reward_of("sums") == config.reward_of("") == Reward()
    assert config.data.environments == (ECHO,)
    assert make_config("data.train=[{path='openai/gsm8k:main'}]").data.sources[0].title == "main"


@pytest.mark.parametrize(
    ("override", "says"),
    [
        ("data.train=[]", "config key data.train="),
        ("data.train=[{path='a', shar=2}]", "data.train.0.shar is unknown; .* did you mean data.train.0.share"),
        ("data.train=[{path='a', share=0}]", "data.train.0.share=0: Input should be greater than 0"),
        ("data.train=[{path='a'}, {path='b/a'}]", "two sources are named 'a'; give each its own name"),
        ("data.train=[{path='a', answer_kind='x'}]", r"data.train\[a\].answer_kind: answer kind 'x' is unknown"),
        ("data.train=[{path='a', reward={accurac=1}}]", "data.train.0.reward.accurac is unknown; known here: accuracy"),
        ("data.train=[{path='a', reward={judge='environment'}}]", "reward.judge has no effect: .* source 'a' have"),
        ("reward.environment=1", "reward.environment has no effect: the problems have no environment"),
        ("data.environment=calculator", "data.environment='calculator': String should match"),
        ("data.curriculum=hard", "data.curriculum='hard'"),
    ],
)  # fmt: skip
def test_a_mistake_in_the_sources_is_one_line_that_names_the_key(override: str, says: str) -> None:
    with pytest.raises(UserError, match=says):
        make_config(override)


@pytest.mark.parametrize("name", ["vineppo", "spo-chain", "spo-tree", "dpo"])
def test_methods_that_cannot_replay_an_environment_are_refused(name: str) -> None:
    with pytest.raises(UserError, match=f"does not fit algorithm.name='{name}', which trains on given responses or"):
        make_config(f"algorithm.name={name}", f"data.environment={ECHO}")


def test_a_resume_may_not_change_what_the_sources_compute(tmp_path: Path) -> None:
    was = mixed(tmp_path)
    share = was.data.sources[0].model_copy(update={"share": 2.0})
    now = was.model_copy(update={"data": was.data.model_copy(update={"train": (share, was.data.sources[1])})})
    assert [(change.key, class_of(change.key)) for change in changes(was, now)] == [("data.train.0.share", "fixed")]
    assert class_of("data.train.1.path") == class_of("data.train.1.question") == "problems"


def test_sources_take_turns_by_their_shares_and_each_is_shuffled_by_itself() -> None:
    problems = problems_of((6, 4), (3.0, 1.0))
    order = [problems.at(position, 7) for position in range(48)]
    assert [problem.source for problem in order[:8]] == ["s0", "s0", "s1", "s0"] * 2
    first = [problem.answer for problem in order if problem.source == "s0"]
    assert Counter(first[:6]) == Counter(first[6:12]) == Counter(f"0{i}" for i in range(6))
    assert first[:6] != first[6:12]
    assert [problems.at(position, 7) for position in reversed(range(48))] == order[::-1]


def test_one_source_has_the_order_that_it_had_without_sources() -> None:
    alone = problems_of((9,), (1.0,))
    order = list(range(9))
    random.Random("3-0").shuffle(order)
    assert [alone.at(position, 3).row for position in range(9)] == order


def test_pass_rates_draw_problems_that_are_answered_sometimes() -> None:
    problems = problems_of((40,), (1.0,))
    rates = {row: 1.0 if row < 20 else 0.0 for row in range(40)} | {30: 0.5, 31: 0.25}
    drawn = Counter(p.row for step in range(200) for p in problems.drawn(step, 4, 0, rates))
    assert set(dict(drawn.most_common(2))) == {30, 31}
    assert min(drawn[30], drawn[31]) > 5 * max(drawn[row] for row in range(40) if row not in (30, 31))
    assert len(drawn) == 40


def test_a_draw_is_a_function_of_seed_step_and_rates_and_takes_no_problem_twice() -> None:
    problems = problems_of((12, 3), (1.0, 1.0))
    step = problems.drawn(5, 8, 1, {})
    assert problems.drawn(5, 8, 1, {}) == step
    assert problems.drawn(6, 8, 1, {}) != step
    assert problems.drawn(5, 8, 2, {}) != step
    assert len({problem.row for problem in step if problem.source == "s0"}) == 4
    assert Counter(problem.source for problem in step) == {"s0": 4, "s1": 4}  # s1 has three problems


def test_weights() -> None:
    assert [weight(rate) for rate in (None, 0.5, 0.25, 0.0, 1.0)] == [1.0, 1.0, 0.75, LEAST_WEIGHT, LEAST_WEIGHT]
