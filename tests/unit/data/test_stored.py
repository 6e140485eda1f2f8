"""The problems in a run folder: written once, verified by their digests, unchanged by a resume."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from cepo.cli import main
from cepo.cli.preflight.checks import run_checks
from cepo.cli.preflight.preflight import Preflight
from cepo.data.problems import Problem, Problems
from cepo.data.stored import begin, digests, stored
from cepo.errors import UserError
from cepo.messages.groups import Message
from cepo.run.config import RunConfig
from cepo.run.folder import RunDir
from tests.helpers.factories import RUNS, make_config
from tests.helpers.runs import begin_run
from tests.helpers.vision import BLANK

TINY = str(RUNS / "tiny_cepo.toml")
GOOD = [{"question": f"{i} + 1 = ?", "answer": str(i + 1)} for i in range(4)]
UNGRADABLE = {"question": "What is a half?", "answer": "\\frac{1}{2"}


def config_of(folder: Path, *rows: dict[str, Any], settings: tuple[str, ...] = ()) -> RunConfig:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return make_config(f"data.train={path}", "data.eval=''", *settings)


def contents(run: RunDir) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in run.problems.iterdir()}


def test_problems_of_every_kind_are_read_as_they_were_written(tmp_path: Path) -> None:
    asked = (Message(role="system", content="é\u2028\n"), Message(role="user", content='"\ud800\\ <image>'))
    problems = (
        Problem(asked[1:], "7", row=3, tokens=9),
        Problem(asked, "7", row=5, images=(BLANK.ref, BLANK.ref), solution="3 + 4 = 7"),
        Problem(asked[1:], "a chosen response", row=0, rejected="a rejected one"),
    )
    run = RunDir(tmp_path / "run")
    begin(run, make_config(), {"train": Problems(problems, ())}, resume=False)
    found = stored(run, "train").problems
    assert found == problems
    assert [(p.row, p.solution) for p in found] == [(3, ""), (5, "3 + 4 = 7"), (0, "")]


def test_the_digests_are_those_of_sha256sum(tmp_path: Path) -> None:
    run = RunDir(tmp_path / "run")
    begin_run(run, make_config())
    assert sorted(digests(run)) == ["eval", "train"]
    subprocess.run(["sha256sum", "--check", "--strict", "SHA256SUMS"], cwd=run.problems, check=True)


def test_a_run_resumes_on_the_same_problems_alone(tmp_path: Path) -> None:
    run, config = RunDir(tmp_path / "run"), config_of(tmp_path, *GOOD)
    begin_run(run, config)
    before = contents(run)
    begin_run(run, config.model_copy(update={"name": "renamed"}), resume=True)
    assert contents(run) == before
    path = Path(str(config.data.train))
    path.write_text(path.read_text().replace('"4"', '"5"'))
    with pytest.raises(UserError) as caught:
        begin_run(run, config, resume=True)
    said = str(caught.value)
    assert said.startswith(f"data.train={path} gives other problems than this run has (sha256 ")
    assert f", {digests(run)['train'][:12]} in {run.problems}/train.jsonl); restore the file" in said
    assert contents(run) == before
    assert "renamed" in run.config.read_text()


def test_the_command_refuses_to_resume_on_other_data_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = RunDir(tmp_path / "run")
    config = config_of(tmp_path, *GOOD)
    begin_run(run, config)
    config_of(tmp_path, *GOOD, {"question": "5 + 1 = ?", "answer": "6"})
    words = ["train", str(run.config), "--run-dir", str(run.path), "--resume"]
    assert main(words) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"cepo: data.train={config.data.train} gives other problems than this run has (sha256 ")
    assert line.endswith("; restore the file and its [data] keys, or start a new run")


def test_held_out_problems_may_be_named_later_and_left_out_again(tmp_path: Path) -> None:
    run = RunDir(tmp_path / "run")
    config = config_of(tmp_path, *GOOD)
    begin_run(run, config)
    later = config.model_copy(update={"data": config.data.model_copy(update={"eval": config.data.train})})
    begin_run(run, later, resume=True)
    both = contents(run)
    assert len(stored(run, "eval").problems) == 4
    begin_run(run, config, resume=True)
    assert contents(run) == both


def test_rows_that_a_run_left_out_stay_out_of_it(tmp_path: Path) -> None:
    config = config_of(tmp_path, *GOOD, UNGRADABLE, settings=("data.on_bad_row=drop",))
    run = RunDir(tmp_path / "run")
    first = Preflight(config, run.path)
    list(run_checks(first))
    begin(run, config, first.sets, resume=False, excluded=first.excluded)
    assert [problem.row for problem in stored(run, "train").problems] == [0, 1, 2, 3]
    again = Preflight(config, run.path, resume=True)
    list(run_checks(again))
    begin(run, config, again.sets, resume=True, excluded=again.excluded)
    assert list(run.excluded_rows()["train"]) == [4]


def test_a_row_that_cannot_be_graded_at_a_resume_stays_in_the_run(tmp_path: Path) -> None:
    run, config = RunDir(tmp_path / "run"), config_of(tmp_path, *GOOD, UNGRADABLE, settings=("data.on_bad_row=drop",))
    begin_run(run, config)  # without the verifier
    again = Preflight(config, run.path, resume=True)
    notes = [finding.text for finding in run_checks(again) if finding.state == "note"]
    assert "train: 1 rows of the run cannot be graded, the first are 4" in notes
    begin(run, config, again.sets, resume=True, excluded=again.excluded)
    assert not run.excluded.exists()


@pytest.mark.parametrize("name", ["train.jsonl", "SHA256SUMS"])
def test_a_folder_of_an_older_version_gets_its_problems_by_a_resume(tmp_path: Path, name: str) -> None:
    run, config = RunDir(tmp_path / "run"), config_of(tmp_path, *GOOD)
    begin_run(run, config)
    whole = contents(run)
    (run.problems / name).unlink()
    with pytest.raises(UserError, match=r"train.jsonl is missing: .*--resume`, which writes the file"):
        stored(run, "train")
    begin_run(run, config, resume=True)
    assert contents(run) == whole


def test_a_file_that_was_changed_is_refused(tmp_path: Path) -> None:
    run = RunDir(tmp_path / "run")
    begin_run(run, config_of(tmp_path, *GOOD))
    path = run.problems / "train.jsonl"
    path.write_text(path.read_text().replace("1 + 1", "1 + 2"))
    with pytest.raises(UserError, match=f"{path} was changed after the run began"):
        stored(run, "train")


def test_what_an_interrupted_start_left_is_written_anew(tmp_path: Path) -> None:
    run = RunDir(tmp_path / "run")
    begin_run(run, config_of(tmp_path, *GOOD))
    run.config.unlink()
    begin_run(run, config_of(tmp_path, *GOOD[:2]))
    assert len(stored(run, "train").problems) == 2
