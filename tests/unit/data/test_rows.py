"""Reading and choosing rows: CSV, `datasets` folders, conventional column names, conditions and limits."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import datasets
import pytest

import cepo.tiny
from cepo.data.problems import Problems, load_problems
from cepo.data.rows import read_rows
from cepo.errors import UserError
from cepo.prompts.renderer import Renderer
from tests.helpers.factories import make_config

ROWS = [{"question": f"{i} + 1 = ?", "answer": str(i + 1), "level": i % 3, "tags": ["sum", f"t{i}"]} for i in range(12)]


@pytest.fixture(scope="module")
def renderer() -> Renderer:
    return Renderer(str(cepo.tiny.path()))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return written(tmp_path, ROWS)


def written(folder: Path, rows: list[dict[str, Any]]) -> Path:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def loaded(renderer: Renderer, path: Path, *overrides: str, held_out: bool = False) -> Problems:
    key = "data.eval" if held_out else "data.train"
    return load_problems(make_config(f"{key}={path}", *overrides), renderer, held_out=held_out)


def answers(problems: Problems) -> list[str]:
    return [problem.answer for problem in problems.problems]


def test_csv_with_quotes_line_ends_and_a_byte_order_mark(tmp_path: Path, renderer: Renderer) -> None:
    path = tmp_path / "rows.csv"
    path.write_bytes('\ufeffquestion,answer\r\n"1, or ""one""\n+ 1",2\r\n3 + 4,7\r\n'.encode())
    found = loaded(renderer, path)
    assert answers(found) == ["2", "7"]
    assert found.problems[0].messages[0].content.startswith('1, or "one"\n+ 1\n')


def test_a_csv_row_with_a_cell_too_few_is_named(tmp_path: Path, renderer: Renderer) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("question,answer\n1 + 1,2\n3 + 4\n")
    with pytest.raises(UserError, match=r"rows\.csv, row 1: column 'answer' holds None, which is not an answer"):
        loaded(renderer, path)


def test_a_folder_that_save_to_disk_wrote_with_and_without_splits(tmp_path: Path, renderer: Renderer) -> None:
    rows = datasets.Dataset.from_list(ROWS)
    rows.save_to_disk(tmp_path / "one")
    datasets.DatasetDict({"train": rows, "test": rows.select([5])}).save_to_disk(tmp_path / "two")
    assert answers(loaded(renderer, tmp_path / "one")) == [row["answer"] for row in ROWS]
    assert answers(loaded(renderer, tmp_path / "two", held_out=True)) == ["6"]
    with pytest.raises(UserError, match=r"data\.train=.*two has no split 'validation'; its splits are train, test"):
        loaded(renderer, tmp_path / "two", "data.split=validation")


def test_a_folder_of_files_is_loaded_by_datasets(tmp_path: Path, renderer: Renderer) -> None:
    folder = tmp_path / "files"
    folder.mkdir()
    written(folder, ROWS).rename(folder / "train.jsonl")
    assert len(loaded(renderer, folder).problems) == 12
    with pytest.raises(UserError, match=r"data\.train=.*files, split 'dev', cannot be loaded: .*; set data\.split$"):
        loaded(renderer, folder, "data.split=dev")


def test_a_file_without_its_path_is_told_from_a_hugging_face_name(renderer: Renderer) -> None:
    with pytest.raises(UserError, match=r"data\.train=rows\.jsonl is a Hugging Face name; .* write \./rows\.jsonl"):
        loaded(renderer, Path("rows.jsonl"))


@pytest.mark.parametrize(
    ("row", "columns"),
    [
        ({"question": "1 + 1", "answer": "2"}, "columns question (text) and answer (text) (CEPO's names)"),
        ({"problem": "1 + 1", "answer": 2}, "columns problem (text) and answer (number) (EasyR1's names)"),
        (
            {"prompt": [{"role": "user", "content": "1 + 1"}], "solution": "\\boxed{2}"},
            "columns prompt (chat messages) and solution (text) (TRL's names)",
        ),
        (
            {"prompt": [{"role": "user", "content": "1 + 1"}], "reward_model": {"ground_truth": "2"}},
            "columns prompt (chat messages) and reward_model.ground_truth (text) (verl's names)",
        ),
        ({"problem": "1 + 1", "solution": "So \\boxed{2}"}, "columns problem (text) and solution (text) (TRL's names)"),
    ],
)
def test_known_conventions_are_recognised(
    tmp_path: Path, renderer: Renderer, row: dict[str, Any], columns: str
) -> None:
    found = loaded(renderer, written(tmp_path, [row]))
    assert str(found.columns) == columns
    assert answers(found) == ["2"]
    assert found.problems[0].messages[0].content.startswith("1 + 1\n")


def test_a_column_that_is_named_is_kept_and_the_other_recognised(tmp_path: Path, renderer: Renderer) -> None:
    path = written(tmp_path, [{"prompt": "1 + 1", "problem": "3 + 3", "answer": "6", "solution": "2"}])
    assert answers(loaded(renderer, path, "data.answer=solution")) == ["2"]
    named = loaded(renderer, path, "data.answer=solution", "data.question=problem")
    assert str(named.columns) == "columns problem (text) and solution (text)"


def test_unknown_columns_are_listed_even_where_bad_rows_are_dropped(tmp_path: Path, renderer: Renderer) -> None:
    path = written(tmp_path, [{"q": "1 + 1", "a": "2"}])
    with pytest.raises(UserError) as refused:
        loaded(renderer, path, "data.on_bad_row=drop")
    assert str(refused.value) == (
        f"data.train={path}, row 0: no column 'question'; the columns are q, a; name the right one in data.question"
    )


@pytest.mark.parametrize(
    ("where", "kept"),
    [
        ('["level=1"]', ["2", "5", "8", "11"]),
        ('["tags~t7"]', ["8"]),
        ('["tags.1=t7"]', ["8"]),
        ('["question~1 +"]', ["2", "12"]),
        ('["level = 2", "question~1"]', ["3", "6", "9", "12"]),
        ("[]", [row["answer"] for row in ROWS]),
    ],
)
def test_filters_keep_rows_of_which_all_conditions_hold(
    path: Path, renderer: Renderer, where: str, kept: list[str]
) -> None:
    found = loaded(renderer, path, f"data.where={where}")
    assert answers(found) == kept
    assert [ROWS[problem.row]["answer"] for problem in found.problems] == kept


def test_each_set_has_its_own_filter(path: Path, renderer: Renderer) -> None:
    split = ('data.where=["level=0"]', 'data.eval_where=["level=1"]')
    train, held_out = (loaded(renderer, path, *split, held_out=each) for each in (False, True))
    assert (answers(train), answers(held_out)) == (["1", "4", "7", "10"], ["2", "5", "8", "11"])


@pytest.mark.parametrize(
    ("where", "says"),
    [
        ('["kind=1"]', r"data\.where 'kind=1': no column 'kind'; the columns are question, answer, level, tags\.0"),
        ('["level=7"]', r"none of 12 rows passes data\.where=\['level=7'\]; loosen it"),
    ],
)
def test_a_filter_that_fits_nothing_is_refused(path: Path, renderer: Renderer, where: str, says: str) -> None:
    with pytest.raises(UserError, match=says):
        loaded(renderer, path, f"data.where={where}")


def test_a_limit_draws_rows_with_the_seed_and_leaves_the_held_out_set_alone(path: Path, renderer: Renderer) -> None:
    drawn = [answers(loaded(renderer, path, "data.limit=5", f"loop.seed={seed}")) for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] != drawn[2]
    assert len(drawn[0]) == 5
    assert drawn[0] == sorted(drawn[0], key=int)
    assert len(loaded(renderer, path, "data.limit=50").problems) == 12
    assert len(loaded(renderer, path, "data.limit=5", held_out=True).problems) == 12


def test_rows_found_bad_before_are_dropped_with_their_reason(path: Path, renderer: Renderer) -> None:
    config = make_config(f"data.train={path}", "data.on_bad_row=drop")
    found = load_problems(config, renderer, excluded={3: "it cannot be graded"})
    assert len(found.problems) == 11
    assert found.dropped == (f"data.train={path}, row 3: it cannot be graded",)


def test_a_name_that_datasets_stumbles_over_is_refused_with_its_key() -> None:
    with pytest.raises(UserError, match=r"data\.train=:main, split 'train', cannot be loaded: .*; check the name and"):
        read_rows(":main", "train", "data.train")
