"""Trained samples per second end to end, against TRL's GRPOTrainer: the same model, prompts, lengths, LoRA and method.

Both train with GRPO on the same cores, in turns. TRL's settings are those of the run file in its own words, with what
makes it fast here (`_trl.py`). `--wide` takes longer prompts and responses of mixed lengths (`_wide.py`). `--gpu` takes
a random model of a real size, against a plain loop of transformers and PEFT (`_plain.py`).
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


def task(config: RunConfig) -> Row:
    """A run file in the words of `_trl.py` and `_plain.py`; `rows` are all prompts, as the feeder takes them."""
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
    """Our steps, and the seconds of the other's and of their parts, a round of each in turn."""
    ours: list[Row] = []
    theirs: dict[str, list[float]] = {}
    with services(tiny("grpo", *overrides)) as engines, TemporaryDirectory() as folder:
        for turn in range(rounds):
            config = tiny("grpo", *overrides, f"loop.steps={steps + 1}", f"loop.seed={turn}")
            ours += trained(engines, config, f"grpo-{turn}")
            for part, figures in _peer.trained(Path(folder), task(config), plain=plain).items():
                theirs.setdefault(part, []).extend(figures)
    return ours, theirs


def measured(asked: argparse.Namespace) -> dict[str, Any]:
    """What is compared, in medians over the steps."""
    quick = asked.quick
    rounds, steps = (1, 3 if asked.wide else 6) if quick else (2, 4 if asked.wide else 8)
    if asked.gpu:
        rounds, steps = 1, 2 if quick else 5
    with TemporaryDirectory() as folder:
        overrides = []
        if asked.gpu:
            overrides = _gpu.overrides(Path(folder), asked.gpu)
        elif asked.wide:
            overrides = _wide.overrides(Path(folder))
        config = tiny("grpo", *overrides)
        rows, theirs = measure(rounds, steps, *overrides, plain=bool(asked.gpu))
        samples = config.sampling.prompts * config.sampling.samples
        both = [medians(rows, TIMES), {part: round(statistics.median(row), 4) for part, row in theirs.items()}]
        ours, alternative = (
            {"samples_per_second": round(samples / figures["step_seconds"], 2), **figures}
            | (_gpu.rates(config, figures) if asked.gpu else {})
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
    """Prints the result and writes it."""
    parser = _report.arguments(__doc__, "a third of the steps; a minute, most of it starting", _gpu.SHAPES)
    parser.add_argument("--wide", action="store_true", help="prompts of 256 tokens, responses of any length up to 512")
    asked = parser.parse_args()
    if not asked.gpu:
        _peer.install()
    besides: dict[str, Any] = {"peer": _peer.TRL}
    if asked.gpu:
        besides = {"peer": "transformers and PEFT", "prime_rl": _gpu.PRIME_RL.get(asked.gpu), **_gpu.about(asked.gpu)}
    case = asked.gpu or ("wide" if asked.wide else None)
    _report.write("train", case, **measured(asked), aim=AIM, **besides)


if __name__ == "__main__":
    main()
