"""Memory of a run's processes with the teacher inside the trainer, against the teacher as a service, on the tiny model.

Sizes are proportional set sizes, which count shared pages once. The tiny model has only 2 MB, so this measures the
memory of a process; with a larger model, its weights are saved too. `--gpu` measures GPU memory with a random model.
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
    """Bytes of each service with its children, as medians over four seconds of a run in progress."""
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
            for _ in range(2):  # the second signal does not wait for the current step
                launcher.send_signal(signal.SIGINT)
                time.sleep(SAMPLE_SECONDS)
            launcher.wait()
    return {name: round(statistics.median(sizes)) for name, sizes in seen.items()}


def _sizes(launcher: int) -> dict[str, int]:
    """Bytes by service, without Redis and the launcher, which are the same in both layouts."""
    sessions: dict[str, int] = {}
    for pid, fields in stats():
        if int(fields[PARENT]) == launcher:  # each child of the launcher leads a session
            words = Path(f"/proc/{pid}/cmdline").read_text().split("\0")
            sessions |= {word.removeprefix("services."): pid for word in words if word.startswith("services.")}
    return memory((name, pid) for name, pid, _ in members(sessions))


def main() -> None:
    """Measures, prints the result and writes it to benchmarks/results/."""
    options = _report.arguments(__doc__, "one round; under two minutes", _gpu.SHAPES).parse_args()
    rounds = 1 if options.quick else 3
    sizes: dict[str, list[dict[str, int]]] = {layout: [] for layout in LAYOUTS}
    with tempfile.TemporaryDirectory() as folder:
        overrides = _gpu.overrides(Path(folder), options.gpu) if options.gpu else []
        for _ in range(rounds):
            for layout in LAYOUTS:
                sizes[layout].append(measure(layout, *overrides))
    apart, colocated = (
        {name: round(statistics.median(one[name] for one in sizes[layout]) / 1e6) for name in sorted(sizes[layout][0])}
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
