"""What every benchmark writes: one JSON object, printed and kept under benchmarks/results/."""

from __future__ import annotations

import datetime
import json
import os
import platform
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"


def cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0))


def machine() -> str:
    """What the figures depend on."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    return f"{model or platform.machine()}, {cores()} cores, Python {platform.python_version()}"


def write(
    name: str, *, ours: Any, alternative: Any, ratio: float, aim: float, command: str, besides: bool = True, **more: Any
) -> None:
    """Prints a result and writes benchmarks/results/NAME.json.

    Args:
        ratio: what is compared with the aim; at least the aim is good.
        besides: what else the aim asks for.
        more: whatever else helps to read the figures.
    """
    result = {
        "name": name,
        "ours": ours,
        "alternative": alternative,
        "ratio": round(ratio, 3),
        "aim": aim,
        "met": ratio >= aim and besides,
        "command": command,
        "machine": machine(),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        **more,
    }
    text = json.dumps(result, indent=2)
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / f"{name}.json").write_text(text + "\n")
    print(text)  # noqa: T201 what it is for
