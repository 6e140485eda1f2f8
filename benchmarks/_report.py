"""The result of a benchmark: one JSON object, printed and written to benchmarks/results/."""

from __future__ import annotations

import argparse
import datetime
import json
import os
import platform
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"


def cores() -> int:
    """Number of cores that this process may use."""
    return len(os.sched_getaffinity(0))


def machine() -> str:
    """The machine that the figures depend on."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    return f"{model or platform.machine()}, {cores()} cores, Python {platform.python_version()}"


def arguments(about: str | None, quick: str, shapes: Iterable[str] = ()) -> argparse.ArgumentParser:
    """Parses the options of a benchmark.

    Args:
        quick: help text of `--quick`.
        shapes: the model sizes that `--gpu` accepts, if the benchmark has a profile for a GPU.
    """
    parser = argparse.ArgumentParser(description=about)
    parser.add_argument("--quick", action="store_true", help=quick)
    if shapes:
        about_gpu = "random weights of this size on the GPU (the CPU without one)"
        parser.add_argument("--gpu", choices=shapes, help=about_gpu)
    return parser


def write(
    name: str,
    tried_on: str | None = None,
    *,
    ours: Any,
    alternative: Any,
    ratio: float,
    aim: float,
    besides: bool = True,
    **more: Any,
) -> None:
    """Prints a result and writes benchmarks/results/NAME.json, with the command of this process.

    Args:
        name: name of the benchmark.
        tried_on: a case with its own result file, NAME-CASE.json.
        ratio: the figure that is compared with the aim; the aim is met if it is at least as large.
        besides: a further condition of the aim.
        more: further fields that help to read the figures.
    """
    case = f"{name}-{tried_on}" if tried_on else name
    result = {
        "name": case,
        "ours": ours,
        "alternative": alternative,
        "ratio": round(ratio, 3),
        "aim": aim,
        "met": ratio >= aim and besides,
        "command": " ".join([f"python -m benchmarks.{name}", *sys.argv[1:]]),
        "machine": machine(),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        **more,
    }
    text = json.dumps(result, indent=2)
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / f"{case}.json").write_text(text + "\n")
    print(text)  # noqa: T201 printing is its purpose
