"""Trained samples per second end to end, against TRL's GRPOTrainer: the same model, prompts, lengths, LoRA and method.

Both train with GRPO on the same cores, in turns. TRL's settings are those of the run file in its own words, with what
makes it fast here (`_trl.py`).
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from pathlib import Path

from benchmarks import _peer, _report
from benchmarks._stack import Row, medians, services, tiny, trained
from cepo.data import load_problems
from cepo.rendering import Renderer
from cepo.runconfig import RunConfig

AIM = 3.0
PARTS = {
    "step_seconds": "time/step_seconds",
    "rollout_seconds": "time/rollout_seconds",
    "train_seconds": "time/train_seconds",
    "publish_seconds": "time/publish_seconds",
    "accuracy": "accuracy/train",
}


def prompts(config: RunConfig) -> list[Row]:
    """The prompts of every step as the feeder takes them, for TRL."""
    problems, count = load_problems(config, Renderer(config.model.path)), config.loop.steps * config.sampling.prompts
    chosen = [problems.at(position, config.loop.seed) for position in range(count)]
    return [{"prompt": [m.model_dump() for m in p.messages], "solution": p.answer} for p in chosen]


def options(config: RunConfig) -> list[str]:
    """A run file as `_trl.py` takes it."""
    words = {
        "--model": config.model.path,
        "--prompts": config.sampling.prompts,
        "--samples": config.sampling.samples,
        "--max-tokens": config.sampling.max_tokens,
        "--rank": config.lora.rank,
        "--alpha": config.lora.alpha,
        "--steps": config.loop.steps,
        "--seed": config.loop.seed,
        "--lr": config.optim.lr,
        "--threads": _report.cores(),
    }
    return [*(str(word) for pair in words.items() for word in pair), "--targets", *config.lora.targets]


def measure(rounds: int, steps: int) -> tuple[list[Row], dict[str, list[float]]]:
    """Our steps, and the seconds of TRL's and of their parts, a round of each in turn."""
    ours: list[Row] = []
    theirs: dict[str, list[float]] = {}
    with services(tiny("grpo")) as engines, tempfile.TemporaryDirectory() as folder:
        for turn in range(rounds):
            config = tiny("grpo", f"loop.steps={steps + 1}", f"loop.seed={turn}")
            ours += trained(engines, config, f"grpo-{turn}")
            for part, seconds in _peer.trained(Path(folder), prompts(config), *options(config)).items():
                theirs.setdefault(part, []).extend(seconds)
    return ours, theirs


def main() -> None:
    """Prints the result and writes it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="six steps of each; a minute, most of it starting")
    quick = parser.parse_args().quick
    rounds, steps = (1, 6) if quick else (2, 8)
    _peer.install()
    ours, theirs = measure(rounds, steps)
    config = tiny("grpo")
    samples = config.sampling.prompts * config.sampling.samples
    mine = medians(ours, PARTS)
    peer = {f"{part}_seconds": round(statistics.median(seconds), 4) for part, seconds in theirs.items()}
    mine, peer = ({"samples_per_second": round(samples / f["step_seconds"], 1), **f} for f in (mine, peer))
    _report.write(
        "train",
        ours=mine,
        alternative=peer,
        ratio=mine["samples_per_second"] / peer["samples_per_second"],
        aim=AIM,
        command=f"python -m benchmarks.train{' --quick' * quick}",
        peer=_peer.TRL,
        samples_a_step=samples,
        steps_of_each=len(ours),
    )


if __name__ == "__main__":
    main()
