"""A run folder made by hand: rows, groups and failures as a trainer writes them, without a trainer."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cepo.data.problems import load_sets
from cepo.data.stored import begin
from cepo.prompts.images import ImageStore
from cepo.prompts.renderer import Renderer
from cepo.run.config import RunConfig
from cepo.run.folder import Excluded, RunDir
from tests.helpers.factories import make_config

ADVANTAGE = {"correct": 1.5, "wrong": -0.5}


def make_run(path: Path, steps: int = 0, *overrides: str) -> RunDir:
    """A run with some steps done."""
    run = RunDir(path)
    run.create(make_config(*overrides), resume=False)
    for step in range(steps):
        run.append(make_metrics(step))
    return run


def begin_run(folder: RunDir, config: RunConfig, *, resume: bool = False, excluded: Excluded | None = None) -> None:
    """Makes the folder of a run with its problems, as the launcher does, so that a trainer can start in it."""
    store = ImageStore(folder.images)
    sets = load_sets(config, Renderer(config.model.path), excluded=excluded, store=store)
    begin(folder, config, sets, resume=resume, excluded=excluded)


def make_metrics(step: int, **changes: Any) -> dict[str, Any]:
    """A row of metrics.jsonl; the curves go where those of a good run go."""
    gain, noise = 1 - math.exp(-step / 8), 0.03 * math.sin(step * 2.4)
    row = {
        "step": step,
        "policy_version": step,
        "reward/mean": 0.5 + 0.4 * gain + noise,
        "accuracy/train": 0.5 + 0.4 * gain + noise,
        "length/mean": 27.0 + noise,
        "length/max": 29.0,
        "credit/lambda": max(0.0, 0.5 - step / 40),
        "credit/delta_pos_fraction_correct": 0.6 + noise,
        "credit/delta_pos_fraction_wrong": 0.3 - noise,
        "credit/delta_neg_fraction_correct": 0.2 - noise,
        "credit/delta_neg_fraction_wrong": 0.5 + noise,
        "credit/delta_mean_correct": 0.8 + noise,
        "credit/delta_mean_wrong": -0.4 + noise,
        "credit/clip_fraction": 0.08 + noise,
        "clip/ppo_low": 0.0,
        "clip/ppo_high": 0.01,
        "version/rollout": float(step),
        "version/teacher": float(step),
        "queue/rollout_max": 12.0 + step % 3,
        "queue/teach_max": 4.0,
        "grad_norm": 0.01 + noise / 10,
        "time/rollout_seconds": 1.2 + noise,
        "time/train_seconds": 0.9,
        "time/publish_seconds": 0.05,
        "time/eval_seconds": 0.4 if step % 5 == 4 else 0.0,
        "time/teacher_seconds": 0.7,
        "time/step_seconds": 2.2 + noise + (0.4 if step % 5 == 4 else 0.0),
    }
    if step % 5 == 4:
        row["accuracy/eval"] = 0.55 + 0.35 * gain
    return row | changes


def make_sample(answer: str, outcome: str) -> dict[str, Any]:
    """A response whose last digits got most of the credit."""
    tokens = ["2", "0", "+", "3", "0", "=", "5", "0", "\n", "\\", "boxed", "{", answer[:1], answer[1:], "}"]
    right, base = outcome == "correct", ADVANTAGE[outcome]
    delta = [0.0] * 12 + ([2.0, 1.0] if right else [-2.0, -1.0]) + [0.0]
    return {
        "text": "".join(tokens),
        "token_ids": list(range(10, 10 + len(tokens))),
        "tokens": tokens,
        "outcome": outcome,
        "extracted": answer,
        "reward": float(right),
        "reason": "" if right else "differs from 50",
        "advantage": [base * (1 + 0.25 * (d != 0)) for d in delta],
        "evidence": [
            {"context": "ANSWER", "reason": "ASKED", "answer": "50", "source": -1, "logps": [-1.0 for _ in delta]},
            {"context": "REJECTED", "reason": "ASKED", "answer": "60", "source": 1, "logps": [-1.0 - d for d in delta]},
        ],
    }


def write_groups(run: RunDir, step: int, count: int = 2, images: Sequence[str] = ()) -> None:
    """The groups of a step."""
    samples = [make_sample("50", "correct"), make_sample("60", "wrong")]
    prompt = [{"role": "user", "content": f"20 + 30 = ? (step {step})"}]
    group = {"prompt": prompt, "images": list(images), "answer": "50", "samples": samples}
    lines = [json.dumps({"group": f"{run.name}/{step}/{index}", **group}) for index in range(count)]
    run.rollouts_of(step).write_text("\n".join(lines) + "\n")


def make_failure(step: int, index: int = 0, **changes: Any) -> dict[str, Any]:
    """A row of failures.jsonl."""
    about = {"step": step, "group": f"run/{step}/{index}", "policy_version": step, "sample": None}
    return about | {"stage": "verify", "error": "the grader ended", "deliveries": 5} | changes


def make_status(run: RunDir, phase: str, step: int, steps: int = 20, **changes: Any) -> dict[str, Any]:
    """The content that a trainer writes to status.json."""
    now = time.time()
    said = {"run": run.name, "phase": phase, "phase_since": now, "step": step, "steps": steps, "policy_version": step}
    return said | {"queues": {"rollout": 3, "verify": 0, "teach": 1, "ready": 0}, "metrics": {}, "time": now} | changes
