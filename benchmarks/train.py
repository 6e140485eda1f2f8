"""Trained samples per second end to end, against TRL's GRPOTrainer with the same model, prompts, lengths and LoRA.

Both train with GRPO on the same cores and alternate. TRL's settings are those of the run file, with the changes that
make TRL fast on this machine (`_trl.py`). `--wide` uses longer prompts and responses of mixed lengths (`_wide.py`).
`--gpu SIZE` uses a random model of that size, against a plain loop of transformers and PEFT (`_plain.py`).
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks import _gpu, _peer, _report, _wide
from benchmarks._stack import TIMES, Row, medians, services, tiny, trained
from cepo.data.problems import load_problems
from cepo.prompts.renderer import Renderer
from cepo.run.config import RunConfig

AIM = 3.0
"""The aim: TRL's step time divided by ours."""


def task(config: RunConfig) -> Row:
    """The task for `_trl.py` and `_plain.py`: a run file's settings, and its prompts in the order of the feeder."""
    problems, count = load_problems(config, Renderer(config.model.path)), config.loop.steps * config.sampling.prompts
    chosen = [problems.at(position, config.loop.seed) for position in range(count)]
    return {
        "rows": [{"prompt": [m.model_dump() for m in p.messages], "solution": p.answer} for p in chosen],
        "model": config.model.path,
        "prompts": config.sampling.prompts,
        "samples": config.sampling.samples,
        "max_tokens": config.sampling.max_tokens,
        "rank": config.lora.rank,
        "alpha": config.lora.alpha,
        "targets": list(config.lora.targets),
        "steps": config.loop.steps,
        "seed": config.loop.seed,
        "lr": config.optim.lr,
        "threads": _report.cores(),
        "reward": "digits" if config.reward.functions else "accuracy",
    }


def measure(rounds: int, steps: int, *overrides: str, plain: bool = False) -> tuple[list[Row], dict[str, list[float]]]:
    """Trains with both in alternating rounds.

    Returns:
        The rows of our steps, and the seconds of the alternative's steps and of their parts, by name.
    """
    ours: list[Row] = []
    theirs: dict[str, list[float]] = {}
    with services(tiny("grpo", *overrides)) as engines, TemporaryDirectory() as folder:
        for seed in range(rounds):
            config = tiny("grpo", *overrides, f"loop.steps={steps + 1}", f"loop.seed={seed}")
            ours += trained(engines, config, f"grpo-{seed}")
            for name, seconds in _peer.trained(Path(folder), task(config), plain=plain).items():
                theirs.setdefault(name, []).extend(seconds)
    return ours, theirs


def measured(options: argparse.Namespace) -> dict[str, Any]:
    """The comparison, in medians over the steps."""
    quick = options.quick
    rounds, steps = (1, 3 if options.wide else 6) if quick else (2, 4 if options.wide else 8)
    if options.gpu:
        rounds, steps = 1, 2 if quick else 5
    with TemporaryDirectory() as folder:
        overrides = []
        if options.gpu:
            overrides = _gpu.overrides(Path(folder), options.gpu)
        elif options.wide:
            overrides = _wide.overrides(Path(folder))
        config = tiny("grpo", *overrides)
        rows, theirs = measure(rounds, steps, *overrides, plain=bool(options.gpu))
        samples = config.sampling.prompts * config.sampling.samples
        both = [medians(rows, TIMES), {name: round(statistics.median(values), 4) for name, values in theirs.items()}]
        ours, alternative = (
            {"samples_per_second": round(samples / figures["step_seconds"], 2), **figures}
            | (_gpu.rates(config, figures) if options.gpu else {})
            for figures in both
        )
    return {
        "ours": ours,
        "alternative": alternative,
        "ratio": alternative["step_seconds"] / ours["step_seconds"],
        "samples_a_step": samples,
        "steps_of_each": len(rows),
    }


def main() -> None:
    """Measures, prints the result and writes it to benchmarks/results/."""
    parser = _report.arguments(__doc__, "a third of the steps; takes a minute, most of it for starting", _gpu.SHAPES)
    parser.add_argument("--wide", action="store_true", help="prompts of 256 tokens and responses of up to 512")
    options = parser.parse_args()
    if not options.gpu:
        _peer.install()
    about: dict[str, Any] = {"peer": _peer.TRL}
    if options.gpu:
        about = {"peer": "transformers and PEFT", "prime_rl": _gpu.PRIME_RL.get(options.gpu), **_gpu.about(options.gpu)}
    case = options.gpu or ("wide" if options.wide else None)
    _report.write("train", case, **measured(options), aim=AIM, **about)


if __name__ == "__main__":
    main()
