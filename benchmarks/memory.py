"""Memory of a run's processes with the teacher as a service and with it in the trainer, on the shipped tiny model.

Proportional set sizes, which count once what processes share. The tiny model itself is 2 MB: what is saved here is a
process; with a larger one its weights come on top. `--gpu` takes a random model of a real size, and a GPU's memory.
"""

from __future__ import annotations

import os
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from pathlib import Path

from benchmarks import _gpu, _report
from benchmarks._processes import PARENT, members, memory, stats

ROOT = Path(__file__).resolve().parents[1]
RUN = ROOT / "deploy" / "runs" / "tiny_cepo.toml"
SETTINGS = ("data.eval=", "sampling.prompts=8", "engine.max_num_seqs=64")
LAYOUTS = ("service", "colocated")
SAMPLES = 8
SAMPLE_SECONDS = 0.5
START_SECONDS = 300.0


def measure(layout: str, *overrides: str) -> dict[str, int]:
    """Bytes of each service with its children, once steps go by: medians over some seconds."""
    settings = (*SETTINGS, *overrides, f"engine.teacher={layout}", "loop.steps=100000")
    words = [word for setting in settings for word in ("--set", setting)]
    with tempfile.TemporaryDirectory() as folder:
        run_dir = Path(folder) / "run"
        command = [sys.executable, "-m", "cepo", "train", str(RUN), "--run-dir", str(run_dir), *words]
        launcher = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            deadline, metrics = time.monotonic() + START_SECONDS, run_dir / "metrics.jsonl"
            while not metrics.exists() or len(metrics.read_text().splitlines()) < 3:
                if launcher.poll() is not None or time.monotonic() > deadline:
                    raise RuntimeError(f"the run did not start: {launcher.poll()}")
                time.sleep(SAMPLE_SECONDS)
            seen: dict[str, list[int]] = defaultdict(list)
            for _ in range(SAMPLES):
                for name, size in _sizes(launcher.pid).items():
                    seen[name].append(size)
                time.sleep(SAMPLE_SECONDS)
        finally:
            for _ in range(2):  # the second does not wait for the step at hand
                launcher.send_signal(signal.SIGINT)
                time.sleep(SAMPLE_SECONDS)
            launcher.wait()
    return {name: round(statistics.median(sizes)) for name, sizes in seen.items()}


def _sizes(launcher: int) -> dict[str, int]:
    """Bytes by service; Redis and the launcher, which are in both layouts, are left out."""
    sessions: dict[str, int] = {}
    for pid, fields in stats():
        if int(fields[PARENT]) == launcher:  # each of its children leads a session
            words = Path(f"/proc/{pid}/cmdline").read_text().split("\0")
            sessions |= {word.removeprefix("services."): pid for word in words if word.startswith("services.")}
    return memory((name, pid) for name, pid, _ in members(sessions))


def main() -> None:
    """Prints the result and writes it."""
    options = _report.arguments(__doc__, "one round; under two minutes", _gpu.SHAPES).parse_args()
    rounds = 1 if options.quick else 3
    found: dict[str, list[dict[str, int]]] = {layout: [] for layout in LAYOUTS}
    with tempfile.TemporaryDirectory() as folder:
        overrides = _gpu.overrides(Path(folder), options.gpu) if options.gpu else []
        for _ in range(rounds):
            for layout in LAYOUTS:
                found[layout].append(measure(layout, *overrides))
    apart, colocated = (
        {name: round(statistics.median(one[name] for one in found[layout]) / 1e6) for name in sorted(found[layout][0])}
        for layout in LAYOUTS
    )
    _report.write(
        "memory",
        options.gpu,
        ours={"megabytes": sum(colocated.values()), "services": colocated},
        alternative={"megabytes": sum(apart.values()), "services": apart},
        ratio=sum(apart.values()) / sum(colocated.values()),
        aim=1.0,
        rounds=rounds,
        load=os.getloadavg()[0],
        **_gpu.about(options.gpu),
    )


if __name__ == "__main__":
    main()
