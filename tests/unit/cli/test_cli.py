"""Every command: its help, options and start-up cost; a bad path, a closed pipe and Ctrl-C print no traceback."""

from __future__ import annotations

import inspect
import json
import os
import re
import signal
import subprocess
import sys
import tomllib
from importlib import import_module
from pathlib import Path
from typing import get_args

import pytest

from cepo.cli import main
from cepo.cli.commands import COMMANDS, Command
from cepo.cli.serve import Service
from cepo.cli.verify import verify
from cepo.errors import UserError
from cepo.net.environment import child_environment
from cepo.run.deployment import SPECS
from tests.helpers.factories import RUNS

OPTIONS = {
    "train": "--run-dir --set --resume --allow-change --redis",
    "resume": "--set --allow-change --redis",
    "sweep": "--run-dir --set --seeds --redis",
    "compare": "--html",
    "check": "--set --run-dir --redis --all --html --engine --json",
    "eval": "--set --run-dir --policy --samples --sampling --limit --out --redis",
    "credit": "--model --adapter --html --compare --json",
    "verify": "",
    "export": "--policy --merge",
    "status": "--json --watch",
    "dashboard": "--compare --port",
    "replay": "--html --model",
    "up": "--set --redis",
    "down": "",
    "serve": "--set --run-dir",
    "certs": "--host --days",
    "plan": "--gpu --set",
}
HELP_CPU_SECONDS = 0.6
"""Ten times what `cepo --help` takes on a quiet core; an import of PyTorch takes more."""
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
    """Starts a command whose output is larger than a pipe's buffer, so that it waits for its reader."""
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
    """Some editors begin UTF-8 files with a byte order mark."""
    file = tmp_path / "rows.jsonl"
    file.write_text(LINE, encoding="utf-8-sig")
    assert main(["verify", str(file)]) == 0
    assert '"outcome":"correct"' in capsys.readouterr().out


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_shows_its_help_and_options(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    for option in ("--help", "-h"):
        assert main([command, option]) == 0
        said = capsys.readouterr().out
        assert said.startswith(f"Usage: cepo {command} ")
        assert COMMANDS[command].help in said
        options = re.findall(r"^  (?:-h, )?(--[a-z-]+)", said, re.MULTILINE)
        assert options == [*OPTIONS[command].split(), "--help"]


def test_the_help_lists_every_command_with_its_whole_purpose(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    said = capsys.readouterr().out
    assert all(
        re.search(rf"^  {name} +{re.escape(entry.help)}$", said, re.MULTILINE) for name, entry in COMMANDS.items()
    )
    assert set(COMMANDS) == set(OPTIONS)


HELPS = [["--help"], ["--version"], *([name, "--help"] for name in COMMANDS)]
MODULES_AFTER_EACH = """
import json, os, sys
from cepo.cli import main
for words in json.loads(sys.argv[1]):
    if os.fork() == 0:  # a fresh state for each command, without the start of another interpreter
        main(words)
        print(json.dumps(sorted(sys.modules)), flush=True)
        os._exit(0)
    os.wait()
"""


@pytest.fixture(scope="module")
def imported() -> dict[str, set[str]]:
    """The modules that are imported after each of HELPS."""
    command = [sys.executable, "-c", MODULES_AFTER_EACH, json.dumps(HELPS)]
    ended = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    modules = [set(json.loads(line)) for line in ended.stdout.splitlines() if line.startswith("[")]
    return dict(zip(map(" ".join, HELPS), modules, strict=True))


@pytest.mark.parametrize("words", HELPS, ids=" ".join)
def test_help_imports_neither_pytorch_nor_another_command(words: list[str], imported: dict[str, set[str]]) -> None:
    loaded = imported[" ".join(words)]
    assert not loaded & {"torch", "transformers", "vllm", "numpy", "datasets", "pyarrow"}
    modules = {entry.module for entry in COMMANDS.values()}
    needed = {COMMANDS[words[0]].module} if words[0] in COMMANDS else set()
    assert loaded & modules == needed | ({"cepo.cli.train"} if words[0] == "sweep" else set())
    if not needed:
        assert not loaded & {"pydantic", "rich", "httpx", "grpc", "cepo.cli.arguments"}


def test_help_costs_little() -> None:
    before = os.times()
    subprocess.run([sys.executable, "-m", "cepo", "--help"], check=True, capture_output=True, cwd=ROOT)
    after = os.times()
    spent = after.children_user + after.children_system - before.children_user - before.children_system
    assert spent < HELP_CPU_SECONDS


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ([], "missing command. Try 'cepo --help'."),
        (["trian"], "no such command 'trian'. Did you mean 'train'? Try 'cepo --help'."),
        (["--quiet"], "no such option: --quiet. Try 'cepo --help'."),
        (["train"], "missing argument 'RUN.toml'. Try 'cepo train --help'."),
        (["train", "a", "b"], "got unexpected extra argument(s) (b). Try 'cepo train --help'."),
        (
            ["train", "a", "--resum"],
            "no such option: --resum (Possible options: --redis, --resume). Try 'cepo train --help'.",
        ),
        (["train", "a", "--set"], "option '--set' requires an argument. Try 'cepo train --help'."),
        (["serve", "verifier", "a"], "invalid value for 'SERVICE': 'verifier' is not one of 'rollout', 'teacher', "),
        (["dashboard", "a", "--port", "x"], "invalid value for '--port': Input should be a valid integer"),
        (["check", "a", "--json", "--html", "b"], "--html and --json exclude each other; give one of them"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_usage_error_is_one_line_and_exit_2(words: list[str], says: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(words) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith(f"cepo: {says}")
    assert printed.err.count("\n") == 1


def test_the_version_is_that_of_the_project(capsys: pytest.CaptureFixture[str]) -> None:
    version = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"cepo {version}\n"


def test_only_the_services_that_follow_a_run_file_are_served() -> None:
    assert set(get_args(Service)) == {name for name, spec in SPECS.items() if spec.follows_run}


@pytest.mark.parametrize(
    ("words", "completions"),
    [
        ("cepo s", ["sweep", "status", "serve"]),
        ("cepo train --re", ["--resume", "--redis"]),
        ("cepo eval a.toml --sampling ", ["paper", "run"]),
    ],
)
def test_the_shell_completes_commands_options_and_choices(words: str, completions: list[str]) -> None:
    cursor = str(words.count(" "))
    variables = child_environment({"_CEPO_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": cursor})
    command = [sys.executable, "-m", "cepo"]
    ended = subprocess.run(command, capture_output=True, text=True, env=variables, cwd=ROOT)
    assert (ended.stdout.split(), ended.stderr) == (completions, "")


def test_completion_is_installed_for_the_shell(tmp_path: Path) -> None:
    script = f"{sys.executable} -m cepo --install-completion; true"  # the last word keeps the shell as the parent
    variables = child_environment({"HOME": str(tmp_path)})
    ended = subprocess.run(["bash", "-c", script], capture_output=True, text=True, env=variables, cwd=ROOT)
    assert "bash completion installed" in ended.stdout, ended.stderr
    assert "_CEPO_COMPLETE=complete_bash" in (tmp_path / ".bash_completions" / "cepo.sh").read_text()


@pytest.mark.parametrize("command", COMMANDS.values(), ids=lambda command: command.function)
def test_every_command_is_a_function_that_python_can_call(command: Command) -> None:
    """Options are keyword arguments whose defaults are plain values, as on the command line."""
    function = getattr(import_module(command.module), command.function)
    for parameter in inspect.signature(function).parameters.values():
        if parameter.default is parameter.empty:
            assert parameter.kind is parameter.POSITIONAL_OR_KEYWORD
        else:
            assert parameter.kind is parameter.KEYWORD_ONLY
            assert isinstance(parameter.default, str | int | bool | Path | None)


def test_a_command_called_from_python_prints_and_raises(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text(LINE)
    verify(file)
    assert '"outcome":"correct"' in capsys.readouterr().out
    with pytest.raises(UserError, match="cannot be read: No such file"):
        verify(tmp_path / "absent")
