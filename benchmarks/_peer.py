"""TRL in a virtual environment of its own, with the versions of PyTorch, transformers, PEFT and vLLM that we use."""

from __future__ import annotations

import json
import subprocess
import sys
import venv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cepo.settings import child_environment

HERE = Path(__file__).parent
TRL = "trl==1.16.0"
TORCH = "torch==2.13.0"
FOLDER = HERE / ".venv-trl"
LOCK = HERE.parent / "deploy" / "requirements" / "cpu.txt"


def install() -> None:
    """Makes the environment unless it is there: a few minutes and 4 GB."""
    done = FOLDER / f".{TRL}"
    if done.exists():
        return
    print(f"installing {TRL} into {FOLDER}", file=sys.stderr, flush=True)  # noqa: T201 it takes minutes
    venv.create(FOLDER, with_pip=True, clear=True)
    pip = [FOLDER / "bin" / "python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    for what in ([TORCH], ["--no-deps", "--requirement", str(LOCK)], ["--no-deps", TRL]):
        subprocess.run([*map(str, pip), *what], check=True, stderr=subprocess.DEVNULL)
    done.touch()


def trained(folder: Path, rows: Sequence[dict[str, Any]], *options: str) -> dict[str, list[float]]:
    """One run of TRL's GRPOTrainer in a process of its own: what `_trl.py` prints."""
    data, log = folder / "trl.jsonl", folder / "trl.log"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    command = [FOLDER / "bin" / "python", HERE / "_trl.py", "--rows", data, *options]
    with log.open("w") as errors:
        done = subprocess.run(
            [str(word) for word in command],
            cwd=folder,
            env=child_environment({"HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}),
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            check=False,
        )
    if done.returncode:
        raise SystemExit(f"TRL ended with {done.returncode}:\n{log.read_text()[-2000:]}")
    return json.loads(done.stdout.strip().rpartition("\n")[2])
