"""`make` on a fresh clone: pip's noise goes to a log, and a terminal shows how far the installation is."""

from __future__ import annotations

import os
import pty
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
PYTHON = """#!/bin/sh
[ "$1" = -c ] && exit 0
mkdir -p .venv/bin
cat >.venv/bin/pip <<'END'
#!/bin/sh
echo "WARNING: Location is ignored" >&2
case "$*" in *--editable*) sleep 1.5; exit $STATUS;; esac
END
printf '#!/bin/sh\\necho trained "$@"\\n' >.venv/bin/cepo
chmod +x .venv/bin/*
"""


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A clone whose Python makes an environment with a pip that installs nothing and warns."""
    for name in ("Makefile", "pyproject.toml", "deploy/requirements/cpu.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    (tmp_path / "python").write_text(PYTHON)
    (tmp_path / "python").chmod(0o755)
    return tmp_path


def make(clone: Path, status: int, **streams: int) -> subprocess.CompletedProcess[str]:
    words = ["make", "--no-print-directory", "train", "PYTHON=./python", f"STATUS={status}"]
    return subprocess.run(words, cwd=clone, text=True, **streams)  # type: ignore[call-overload]


def test_a_pipe_gets_two_lines_and_the_log_gets_what_pip_says(clone: Path) -> None:
    ended = make(clone, 0, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert (ended.returncode, ended.stderr) == (0, "")
    first, second, trained = ended.stdout.splitlines()
    assert first.startswith("installing into .venv (about 4 GB")
    assert second.endswith("source .venv/bin/activate")
    assert trained == "trained train deploy/runs/tiny_cepo.toml"
    assert (clone / ".venv" / "install.log").read_text().count("WARNING") == 3


def test_a_terminal_shows_how_much_is_installed(clone: Path) -> None:
    reader, writer = pty.openpty()
    ended = make(clone, 0, stdout=writer, stderr=writer)
    os.close(writer)
    said = os.read(reader, 65536).decode()
    os.close(reader)
    assert ended.returncode == 0
    assert " of about 4000 MB" in said
    assert "WARNING" not in said


def test_an_installation_that_fails_shows_its_last_lines_and_is_not_taken_for_done(clone: Path) -> None:
    ended = make(clone, 1, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert ended.returncode == 2
    assert "WARNING: Location is ignored\nthe installation failed; see .venv/install.log\n" in ended.stderr
    assert not (clone / ".venv" / ".installed").exists()
