"""Runs the alternative in a separate process: TRL, or a plain loop of transformers and PEFT.

TRL has its own virtual environment with the same versions of PyTorch, transformers, PEFT and vLLM.
"""

from __future__ import annotations

import json
import subprocess
import sys
import venv
from pathlib import Path
from typing import Any

from cepo.net.environment import child_environment

HERE = Path(__file__).parent
TRL = "trl==1.16.0"
TORCH = "torch==2.13.0"
FOLDER = HERE / ".venv-trl"
LOCK = HERE.parent / "deploy" / "requirements" / "cpu.txt"


def install() -> None:
    """Creates the environment if it does not exist: a few minutes and 4 GB."""
    done = FOLDER / f".{TRL}"
    if done.exists():
        return
    print(f"installing {TRL} into {FOLDER}", file=sys.stderr, flush=True)  # noqa: T201 it takes minutes
    venv.create(FOLDER, with_pip=True, clear=True)
    pip = [FOLDER / "bin" / "python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    for what in ([TORCH], ["--no-deps", "--requirement", str(LOCK)], ["--no-deps", TRL]):
        subprocess.run([*map(str, pip), *what], check=True, stderr=subprocess.DEVNULL)
    done.touch()


def trained(folder: Path, task: dict[str, Any], *, plain: bool) -> dict[str, list[float]]:
    """Runs `_trl.py` or `_plain.py` and returns the result that it prints.

    Args:
        task: the task as returned by `train.task`.
    """
    file, log = folder / "task.json", folder / "peer.log"
    file.write_text(json.dumps(task))
    python = sys.executable if plain else FOLDER / "bin" / "python"
    with log.open("w") as errors:
        done = subprocess.run(
            [str(word) for word in (python, HERE / ("_plain.py" if plain else "_trl.py"), file)],
            cwd=folder,
            env=child_environment({"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}),
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            check=False,
        )
    if done.returncode:
        raise SystemExit(f"the other's run ended with {done.returncode}:\n{log.read_text()[-2000:]}")
    found: dict[str, list[float]] = json.loads(done.stdout.strip().rpartition("\n")[2])
    return found
