"""The reader of metrics.jsonl: incremental, tolerant of a cut last line and of a replaced file."""

from __future__ import annotations

from pathlib import Path

from cepo.run.folder import RunDir
from cepo.run.lines import Lines, parsed


def test_only_what_was_appended_is_parsed(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    lines = Lines(run.metrics)
    assert lines.refresh() == []
    run.append({"step": 0})
    (first,) = lines.refresh()
    run.append({"step": 1})
    assert lines.refresh() == [{"step": 0}, {"step": 1}]
    assert lines.rows[0] is first
    assert lines.generation == 0


def test_a_cut_last_line_is_read_once_it_is_whole(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 0}\n{"step": 1, "rew')
    lines = Lines(path)
    assert lines.refresh() == [{"step": 0}]
    with path.open("a") as file:
        file.write('ard/mean": 0.5}\n')
    assert lines.refresh() == [{"step": 0}, {"step": 1, "reward/mean": 0.5}]


def test_a_replaced_file_starts_the_rows_over(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    for step in range(3):
        run.append({"step": step})
    lines = Lines(run.metrics)
    lines.refresh()
    run.truncate(1)
    run.append({"step": 1, "again": True})
    assert lines.refresh() == [{"step": 0}, {"step": 1, "again": True}]
    assert lines.generation == 1


def test_the_lines_that_a_resumed_run_keeps_are_unchanged(tmp_path: Path) -> None:
    run = RunDir(tmp_path)
    kept = '{"step": 0, "loss/policy": NaN}\n'
    run.metrics.write_text(kept + '{"step": 1}\nnot json\n{"step": 0')
    run.truncate(1)
    assert run.metrics.read_text() == kept


def test_lines_that_are_no_object_are_left_out() -> None:
    assert parsed(b'[1]\n\nno json\n{"step": 0, "x": NaN, "y": -Infinity}') == [{"step": 0, "x": None, "y": None}]
