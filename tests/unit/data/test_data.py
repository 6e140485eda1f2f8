"""Problems from files: formats, columns, the checks of every row, and the training order."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest

import cepo.tiny
from cepo.data.problems import Problem, Problems, load_problems
from cepo.errors import UserError
from cepo.messages.groups import Message
from cepo.messages.hints import INSTRUCTION
from cepo.prompts.renderer import Renderer
from tests.helpers.factories import make_config

ROWS = [{"question": "1 + 2 + 3 = ?", "answer": "6"}, {"question": "9 - 4 + 1 = ?", "answer": 6}]
NESTED = [
    {
        "prompt": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": f"{i} + 1 + 1 = ?"}],
        "reward_model": {"style": "rule", "ground_truth": str(i + 2)},
    }
    for i in range(3)
]
TRUTH = "data.answer=reward_model.ground_truth"


@pytest.fixture(scope="module")
def renderer() -> Renderer:
    return Renderer(str(cepo.tiny.path()))


def written(folder: Path, rows: Any, kind: str = "jsonl") -> Path:
    path = folder / f"rows.{kind}"
    match kind:
        case "jsonl":
            path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
        case "json":
            path.write_text(json.dumps(rows))
        case "parquet":
            pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    return path


def loaded(renderer: Renderer, path: Path, *overrides: str) -> Problems:
    return load_problems(make_config(f"data.train={path}", *overrides), renderer)


def refusal(renderer: Renderer, path: Path, *overrides: str) -> str:
    with pytest.raises(UserError) as refused:
        loaded(renderer, path, *overrides)
    return str(refused.value)


@pytest.mark.parametrize("kind", ["jsonl", "json"])
def test_questions_and_answers_are_read(tmp_path: Path, renderer: Renderer, kind: str) -> None:
    found = loaded(renderer, written(tmp_path, ROWS, kind))
    question = Message(role="user", content=f"1 + 2 + 3 = ?\n{INSTRUCTION}")
    assert found.problems[0] == Problem((question,), "6")
    assert [problem.answer for problem in found.problems] == ["6", "6"]
    assert found.dropped == ()


def test_blank_lines_are_no_rows(tmp_path: Path, renderer: Renderer) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("\n" + "\n\n".join(map(json.dumps, ROWS)) + "\r\n")
    assert len(loaded(renderer, path).problems) == 2


def test_line_separators_within_a_text_do_not_cut_a_row(tmp_path: Path, renderer: Renderer) -> None:
    rows = [{"question": "1\u2028+\u0085 2 = ?", "answer": "3"}]
    assert loaded(renderer, written(tmp_path, rows)).problems[0].messages[0].content.startswith("1\u2028+\u0085 2")


@pytest.mark.parametrize("kind", ["jsonl", "json", "parquet"])
def test_nested_columns_and_chat_messages(tmp_path: Path, renderer: Renderer, kind: str) -> None:
    found = loaded(renderer, written(tmp_path, NESTED, kind), "data.question=prompt", TRUTH)
    assert [problem.answer for problem in found.problems] == ["2", "3", "4"]
    assert [message.role for message in found.problems[1].messages] == ["system", "user"]
    assert found.problems[1].messages[1].content == f"1 + 1 + 1 = ?\n{INSTRUCTION}"


def test_one_turn_of_a_chat_by_its_place(tmp_path: Path, renderer: Renderer) -> None:
    path = written(tmp_path, NESTED, "parquet")
    found = loaded(renderer, path, "data.question=prompt.1.content", TRUTH, "data.instruction=''", "data.system=Hi")
    assert found.problems[2].messages == (
        Message(role="system", content="Hi"),
        Message(role="user", content="2 + 1 + 1 = ?"),
    )


def test_a_solution_is_reduced_to_its_answer(tmp_path: Path, renderer: Renderer) -> None:
    rows = [{"question": "?", "answer": "First 4 + 2.\n#### 6"}, {"question": "?", "answer": "So \\boxed{\\frac12}"}]
    assert [p.answer for p in loaded(renderer, written(tmp_path, rows)).problems] == ["6", "\\frac12"]


@pytest.mark.parametrize(
    ("mapping", "missing"),
    [
        ("data.question=problem", "problem"),
        ("data.answer=reward_model.truth", "reward_model.truth"),
        ("data.question=prompt.7.content", "prompt.7.content"),
    ],
)
def test_a_missing_column_names_the_columns_there_are(
    tmp_path: Path, renderer: Renderer, mapping: str, missing: str
) -> None:
    path = written(tmp_path, NESTED, "parquet")
    message = refusal(renderer, path, "data.question=prompt", TRUTH, mapping)
    assert f"data.train={path}, row 0: no column {missing!r}" in message
    assert message.endswith(f"; name the right one in {mapping.partition('=')[0]}")
    columns = "prompt.0.role, prompt.0.content, reward_model.style, reward_model.ground_truth"
    assert all(column in message for column in columns.split(", "))


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ("", "reference answer '' holds no answer"),
        ("  ", "holds no answer"),
        ("\\boxed{}", "holds no answer"),
        ("x" * 1001, "holds no answer"),
        (None, "column 'answer' holds None, which is not an answer"),
        (True, "column 'answer' holds True, which is not an answer"),
        (["6"], "column 'answer' holds ['6'], which is not an answer"),
    ],
)
def test_a_row_without_a_usable_answer_is_refused_or_dropped(
    tmp_path: Path, renderer: Renderer, answer: Any, reason: str
) -> None:
    path = written(tmp_path, [*ROWS, {"question": "1 + 1 = ?", "answer": answer}])
    message = refusal(renderer, path)
    assert f"data.train={path}, row 2: " in message
    assert reason in message
    assert 'fix the row or set data.on_bad_row = "drop"' in message
    kept = loaded(renderer, path, "data.on_bad_row=drop")
    assert len(kept.problems) == 2
    assert ["row 2" in dropped for dropped in kept.dropped] == [True]


@pytest.mark.parametrize(
    "question",
    ["", 3, [], [{"role": "user"}], [{"role": "user", "content": "1"}, {"role": "assistant", "content": "2"}]],
)
def test_a_row_without_a_question_is_refused(tmp_path: Path, renderer: Renderer, question: Any) -> None:
    message = refusal(renderer, written(tmp_path, [{"question": question, "answer": "6"}]))
    assert "row 0: column 'question'" in message


def test_an_over_long_prompt_is_refused_or_dropped(tmp_path: Path, renderer: Renderer) -> None:
    path = written(tmp_path, [*ROWS, {"question": "7" * 200, "answer": "7"}])
    message = refusal(renderer, path)
    assert "row 2: prompt, hint, sampling.max_tokens=48 and the end token make " in message
    assert "above model.max_length=160" in message
    assert len(loaded(renderer, path, "data.on_bad_row=drop").problems) == 2


def test_the_length_counts_prompt_hint_and_response(tmp_path: Path, renderer: Renderer) -> None:
    path = written(tmp_path, ROWS[:1])
    turn = f"1 + 2 + 3 = ?\n{INSTRUCTION}\nHere is a sample answer: 6"
    needed = len(renderer.prompt_ids([Message(role="user", content=turn)])) + 48 + 1
    assert len(loaded(renderer, path, f"model.max_length={needed}").problems) == 1
    assert f"make {needed} tokens" in refusal(renderer, path, f"model.max_length={needed - 1}")


@pytest.mark.parametrize("kind", ["jsonl", "json"])
def test_an_empty_data_set_is_refused(tmp_path: Path, renderer: Renderer, kind: str) -> None:
    assert refusal(renderer, written(tmp_path, [], kind)).endswith("is empty: it has no rows")


def test_a_data_set_of_which_every_row_is_dropped_is_refused(tmp_path: Path, renderer: Renderer) -> None:
    path = written(tmp_path, [{"q": "1 + 1 = ?", "answer": "2"}])
    message = refusal(renderer, path, "data.on_bad_row=drop", "data.question=q", "model.max_length=60")
    assert "every row was dropped, the first because: " in message
    assert "row 0: prompt, hint, sampling.max_tokens=48 and the end token make " in message


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("rows.txt", b"question,answer", "unknown kind of file; use .jsonl, .json, .csv or .parquet"),
        (
            "rows.csv",
            b"question,answer\n1,2,3\n",
            "cannot be read: line 2 has more cells than the first line",
        ),
        ("rows.csv", b'question,answer\n"1,2\n', "cannot be read: "),
        ("rows.jsonl", b'{"question": "1", "answer": "1"}\n{"question": ', "cannot be read: line 2: "),
        ("rows.jsonl", b'"\xff"', "cannot be read: "),
        ("rows.jsonl", b"3\n", "row 0: it is 3, not an object with columns"),
        ("rows.json", b'{"question": "1"}', "cannot be read: the file is not a list of rows"),
        ("rows.parquet", b"no parquet", "cannot be read: "),
    ],
)
def test_a_file_that_cannot_be_read_is_named(
    tmp_path: Path, renderer: Renderer, name: str, content: bytes, reason: str
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    message = refusal(renderer, path)
    assert message.startswith(f"data.train={path}")
    assert reason in message


def test_a_file_that_is_not_there_is_named_with_its_key(tmp_path: Path, renderer: Renderer) -> None:
    assert refusal(renderer, tmp_path / "absent.jsonl") == f"data.train={tmp_path}/absent.jsonl: no such file"
    config = make_config(f"data.eval={tmp_path}/absent.jsonl")
    with pytest.raises(UserError, match=r"^data\.eval=.*absent\.jsonl: no such file$"):
        load_problems(config, renderer, held_out=True)


def test_the_order_is_a_function_of_seed_and_position() -> None:
    problems = Problems(tuple(Problem((), str(i)) for i in range(20)), ())
    forwards = [problems.at(position, 3).answer for position in range(60)]
    assert [problems.at(position, 3).answer for position in reversed(range(60))] == forwards[::-1]
    epochs = [forwards[i : i + 20] for i in (0, 20, 40)]
    assert all(Counter(epoch) == Counter(map(str, range(20))) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3
    assert [problems.at(position, 4).answer for position in range(20)] != epochs[0]


def solved(solution: object) -> dict[str, object]:
    return {"question": "3 + 4 = ?", "answer": "7", "steps": solution}


def test_a_solution_is_read_and_counts_as_the_hint_where_it_is_shown(tmp_path: Path, renderer: Renderer) -> None:
    path = written(tmp_path, [solved("3 + 4 = 7, " * 3)])
    (problem,) = loaded(renderer, path, "data.solution=steps").problems
    assert problem.solution == "3 + 4 = 7, " * 3
    (shown,) = loaded(renderer, path, "data.solution=steps", "algorithm.positive=solution").problems
    assert shown.tokens > problem.tokens


@pytest.mark.parametrize("solution", ["", " ", 7, None])
def test_a_row_without_the_solution_that_is_shown_is_refused(
    tmp_path: Path, renderer: Renderer, solution: object
) -> None:
    path = written(tmp_path, [solved("fine"), solved(solution)])
    message = refusal(renderer, path, "data.solution=steps", "algorithm.positive=solution")
    assert f"row 1: column 'steps' holds {solution!r}, which is not a solution" in message


def test_held_out_problems_need_no_solution(tmp_path: Path, renderer: Renderer) -> None:
    config = make_config(f"data.eval={written(tmp_path, ROWS)}", "data.solution=steps", "algorithm.positive=solution")
    assert {problem.solution for problem in load_problems(config, renderer, held_out=True).problems} == {""}


def test_a_solution_column_that_is_not_there_is_named(tmp_path: Path, renderer: Renderer) -> None:
    message = refusal(renderer, written(tmp_path, [solved("fine")]), "data.solution=proof")
    assert "no column 'proof'; the columns are question, answer, steps; name the right one in data.solution" in message
