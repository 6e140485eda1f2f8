"""Trained samples per second end to end, against TRL's GRPOTrainer: the same model, prompts, lengths, LoRA and method.

Both train with GRPO on the same cores, in turns. TRL's settings are those of the run file in its own words, with what
makes it fast here (`_trl.py`). `--wide` takes longer prompts and responses of mixed lengths (`_wide.py`).
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from pathlib import Path

from benchmarks import _peer, _report, _wide
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
    "response_tokens": "length/mean",
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
        "--reward": "digits" if config.reward.functions else "accuracy",
    }
    return [*(str(word) for pair in words.items() for word in pair), "--targets", *config.lora.targets]


def measure(rounds: int, steps: int, *overrides: str) -> tuple[list[Row], dict[str, list[float]]]:
    """Our steps, and the seconds of TRL's and of their parts, a round of each in turn."""
    ours: list[Row] = []
    theirs: dict[str, list[float]] = {}
    with services(tiny("grpo", *overrides)) as engines, tempfile.TemporaryDirectory() as folder:
        for turn in range(rounds):
            config = tiny("grpo", *overrides, f"loop.steps={steps + 1}", f"loop.seed={turn}")
            ours += trained(engines, config, f"grpo-{turn}")
            for part, figures in _peer.trained(Path(folder), prompts(config), *options(config)).items():
                theirs.setdefault(part, []).extend(figures)
    return ours, theirs


def main() -> None:
    """Prints the result and writes it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a third of the steps; a minute, most of it starting")
    parser.add_argument("--wide", action="store_true", help="prompts of 256 tokens, responses of any length up to 512")
    asked = parser.parse_args()
    rounds, steps = (1, 3 if asked.wide else 6) if asked.quick else (2, 4 if asked.wide else 8)
    _peer.install()
    with tempfile.TemporaryDirectory() as folder:
        overrides = _wide.overrides(Path(folder)) if asked.wide else []
        config = tiny("grpo", *overrides)
        ours, theirs = measure(rounds, steps, *overrides)
    samples = config.sampling.prompts * config.sampling.samples
    mine = medians(ours, PARTS)
    names = {"length": "response_tokens"}
    peer = {names.get(part, f"{part}_seconds"): round(statistics.median(row), 4) for part, row in theirs.items()}
    mine, peer = ({"samples_per_second": round(samples / f["step_seconds"], 2), **f} for f in (mine, peer))
    _report.write(
        "train-wide" if asked.wide else "train",
        ours=mine,
        alternative=peer,
        ratio=peer["step_seconds"] / mine["step_seconds"],
        aim=AIM,
        command=f"python -m benchmarks.train{' --wide' * asked.wide}{' --quick' * asked.quick}",
        peer=_peer.TRL,
        samples_a_step=samples,
        steps_of_each=len(ours),
    )


if __name__ == "__main__":
    main()
