import json
from itertools import islice
from pathlib import Path

import pytest

from cepo.tiny.task import DATA, SumProblem, problems, write


def rows(name: str) -> list[dict[str, str]]:
    return [json.loads(line) for line in (DATA / name).read_text(encoding="utf-8").splitlines()]


def evaluate(question: str) -> int:
    first, left, second, right, third = question.removesuffix(" = ?").split()
    total = int(first) + int(left + second)
    return total + int(right + third)


def test_same_seed_gives_the_same_problems() -> None:
    assert list(islice(problems(7, held_out=False), 50)) == list(islice(problems(7, held_out=False), 50))


def test_another_seed_gives_other_problems() -> None:
    assert list(islice(problems(7, held_out=False), 50)) != list(islice(problems(8, held_out=False), 50))


def test_problems_do_not_repeat() -> None:
    drawn = list(islice(problems(3, held_out=True), 500))
    assert len(set(drawn)) == len(drawn)


def test_splits_are_disjoint_whatever_the_seed() -> None:
    train = {problem.question for problem in islice(problems(0, held_out=False), 2000)}
    held_out = {problem.question for seed in range(3) for problem in islice(problems(seed, held_out=True), 500)}
    assert not train & held_out


@pytest.mark.parametrize(
    ("problem", "question", "answer"),
    [
        (SumProblem(23, 45, 17, "+-"), "23 + 45 - 17 = ?", 51),
        (SumProblem(90, 45, 45, "--"), "90 - 45 - 45 = ?", 0),
        (SumProblem(99, 99, 99, "++"), "99 + 99 + 99 = ?", 297),
    ],
)
def test_problem_states_its_question_and_answer(problem: SumProblem, question: str, answer: int) -> None:
    assert problem.question == question
    assert problem.answer == answer


@pytest.mark.parametrize(("name", "count"), [("train.jsonl", 2048), ("eval.jsonl", 256)])
def test_shipped_answers_are_right(name: str, count: int) -> None:
    shipped = rows(name)
    assert len({row["question"] for row in shipped}) == count
    assert all(int(row["answer"]) == evaluate(row["question"]) >= 0 for row in shipped)


def test_shipped_splits_are_disjoint() -> None:
    train, held_out = ({row["question"] for row in rows(name)} for name in ("train.jsonl", "eval.jsonl"))
    assert not train & held_out


@pytest.mark.parametrize(("name", "seed", "count"), [("train.jsonl", 0, 2048), ("eval.jsonl", 1, 256)])
def test_shipped_files_are_what_the_generator_writes(tmp_path: Path, name: str, seed: int, count: int) -> None:
    write(tmp_path / name, islice(problems(seed, held_out=name == "eval.jsonl"), count))
    assert (tmp_path / name).read_text(encoding="utf-8") == (DATA / name).read_text(encoding="utf-8")
