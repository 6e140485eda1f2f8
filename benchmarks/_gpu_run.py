"""Runs the parts of the GPU benchmark one after another and writes one JSON file and one page: `benchmarks/gpu.sh`.

Each part is a process with a time limit, so that a part that fails or hangs costs only its own figures. The parts run
one at a time, because each measures the whole GPU.
"""

from __future__ import annotations

import argparse
import datetime
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks import _report
from benchmarks._gpu_page import page
from benchmarks._vllm import ENVIRONMENT
from cepo.net.environment import child_environment

TOTAL_SECONDS = 470.0
END_SECONDS = 15.0
"""What a part gets to end after its time."""
ALLOCATOR = {"PYTORCH_ALLOC_CONF": "expandable_segments:True"}


@dataclass(frozen=True)
class Part:
    """One process of the benchmark."""

    name: str
    question: str
    seconds: float
    """The most that it may take; the last part may take what the others left."""


PARTS = (
    Part("environment", "What was measured on what?", 40),
    Part("plan", "Does a pass take the memory that `cepo plan` counts?", 60),
    Part("score", "Scoring a group under r+ and r-: the tree against padded rows", 60),
    Part("learner", "Forward and backward: the tree against plain PEFT, and a long sequence against prime-rl", 70),
    Part("vllm", "Scoring the same group with vLLM alone", 60),
    Part("vllm_lora", "Loading an adapter with vLLM alone, to the first token", 90),
    Part("system", "The canary, publishing to the first token, and a step of CEPO against one of GRPO", 330),
)


def run(part: Part, shape: str, folder: Path, seconds: float) -> dict[str, Any]:
    """The figures of a part, or its `error`; `took_seconds` in both cases."""
    begun = time.monotonic()
    words = [sys.executable, "-m", "benchmarks._gpu_parts", part.name, shape, str(folder), f"{seconds:.0f}"]
    log = folder / f"{part.name}.log"
    try:
        with log.open("w") as output:
            ended = subprocess.run(
                words,
                stdout=subprocess.PIPE,
                stderr=output,
                text=True,
                env=child_environment(ALLOCATOR | (ENVIRONMENT if part.name.startswith("vllm") else {})),
                timeout=seconds + END_SECONDS,
            )
        if ended.returncode == 0 and (lines := ended.stdout.strip().splitlines()):
            figures = json.loads(lines[-1])
        else:
            figures = {"error": last_line(log) or f"no result, exit status {ended.returncode}"}
    except subprocess.TimeoutExpired:
        figures = {"error": f"not finished after {seconds:.0f} s"}
    return figures | {"took_seconds": round(time.monotonic() - begun, 1)}


def last_line(log: Path) -> str:
    lines = [line for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1][:500] if lines else ""


def measured(parts: Sequence[Part], shape: str, total: float) -> dict[str, Any]:
    """The figures of every part by its name; a part for which no time is left has the `error` "no time left"."""
    deadline, figures = time.monotonic() + total, {}
    with tempfile.TemporaryDirectory(prefix="cepo-gpu-") as folder:
        for part in parts:
            left = deadline - time.monotonic() - END_SECONDS
            print(f"{part.name}: {part.question}", flush=True)  # noqa: T201
            figures[part.name] = (
                run(part, shape, Path(folder), min(part.seconds, left)) if left > 0 else {"error": "no time left"}
            )
            said = figures[part.name].get("error", "measured")
            print(f"  {said} ({figures[part.name].get('took_seconds', 0)} s)", flush=True)  # noqa: T201
    return figures


def write(figures: Mapping[str, Any], shape: str, out: Path) -> None:
    """Writes gpu.json and gpu.md."""
    result = {
        "name": "gpu",
        "shape": shape,
        "command": " ".join(["benchmarks/gpu.sh", *sys.argv[1:]]),
        "machine": _report.machine(),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "parts": figures,
    }
    out.mkdir(parents=True, exist_ok=True)
    (out / "gpu.json").write_text(json.dumps(result, indent=2) + "\n")
    (out / "gpu.md").write_text(page(result, {part.name: part.question for part in PARTS}))


def main() -> int:
    """Measures and writes the results; the exit status is 1 if a part failed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tiny", action="store_true", help="toy sizes; also runs on the CPU")
    parser.add_argument("--shape", default="qwen3-0.6b", help="the size of the random model, of benchmarks/_gpu.py")
    parser.add_argument("--out", type=Path, default=Path("runs") / "gpu", help="the folder of gpu.json and gpu.md")
    options = parser.parse_args()
    shape = "tiny" if options.tiny else options.shape
    figures = measured(PARTS, shape, TOTAL_SECONDS)
    write(figures, shape, options.out)
    print(f"written: {options.out / 'gpu.json'} and {options.out / 'gpu.md'}")  # noqa: T201
    return int(any("error" in part for part in figures.values()))


if __name__ == "__main__":
    sys.exit(main())
