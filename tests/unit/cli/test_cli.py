"""What every command does alike: a path that cannot be used, a reader that leaves and Ctrl-C are no tracebacks."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from cepo.cli import main
from tests.helpers.factories import RUNS

ROOT = RUNS.parents[1]
LINE = '{"response": "\\\\boxed{1}", "answer": "1"}\n'


@pytest.mark.parametrize(
    "words", [["certs", "{file}/out"], ["train", str(RUNS / "tiny_cepo.toml"), "--run-dir", "{file}"]]
)
def test_a_path_that_cannot_be_written_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str]
) -> None:
    file = tmp_path / "file"
    file.write_text("a file, where a folder is to be made")
    assert main([word.replace("{file}", str(file)) for word in words]) == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith(f"cepo: {file}")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def _start(folder: Path) -> subprocess.Popen[str]:
    """A command that has more to say than a pipe holds, and so waits for its reader."""
    file = folder / "rows.jsonl"
    file.write_text(LINE * 1000)
    command = [sys.executable, "-m", "cepo", "verify", str(file)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT)


def test_a_reader_that_has_enough_ends_the_command(tmp_path: Path) -> None:
    process = _start(tmp_path)
    assert process.stdout is not None
    assert process.stderr is not None
    assert process.stdout.readline().startswith('{"outcome":"correct"')
    process.stdout.close()
    assert process.stderr.read() == ""
    assert process.wait() == 0
    process.stderr.close()


def test_ctrl_c_ends_a_command_without_a_traceback(tmp_path: Path) -> None:
    process = _start(tmp_path)
    assert process.stdout is not None
    process.stdout.readline()
    process.send_signal(signal.SIGINT)
    _, said = process.communicate()
    assert (said, process.returncode) == ("cepo: interrupted\n", 130)


def test_a_mark_of_byte_order_is_no_mistake(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Some editors put one before what they save as UTF-8."""
    file = tmp_path / "rows.jsonl"
    file.write_text(LINE, encoding="utf-8-sig")
    assert main(["verify", str(file)]) == 0
    assert '"outcome":"correct"' in capsys.readouterr().out
