"""`cepo check --engine`: starts vLLM with the user's model for one prompt, and estimates the hours of the run."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from cepo.cli.preflight.preflight import Findings, Preflight
from cepo.errors import UserError
from cepo.net.environment import child_environment
from cepo.net.files import append_lines, open_log
from cepo.net.processes import die_with_parent
from cepo.net.settings import Settings
from cepo.run.causes import root_cause

if TYPE_CHECKING:
    from cepo.run.config import RunConfig


def engine(run: Preflight) -> Findings:
    """Samples the first training problem with the base model, as many responses at once as the run would.

    Raises:
        UserError: the engine does not start, with its own error.
    """
    from cepo.run.deployment import SPECS

    config = run.config
    if config.algorithm.offline:
        yield "ok", "none: the run trains on pairs"
        return
    problem, sampling = run.train.problems[0], config.sampling
    request = {
        "prompt_ids": run.renderer.prompt_ids(problem.messages),
        "samples": min(config.engine.max_num_seqs, sampling.prompts * sampling.samples),
        "sampling": {
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "top_k": sampling.top_k,
            "max_tokens": sampling.max_tokens,
        },
        "seed": config.loop.seed,
    }
    settings = SPECS["rollout"].settings(config, Settings.from_environment("rollout"))
    reply = _tried(request, settings)
    speed, mean = reply["tokens"] / reply["sample_seconds"], reply["tokens"] / reply["samples"]
    yield (
        "ok",
        f"vLLM started in {reply['start_seconds']:.0f} s: {speed:.0f} tokens a second over {reply['samples']:.0f} "
        f"responses of {mean:.0f} tokens on average",
    )
    yield "ok", estimate(config, speed, mean)


def estimate(config: RunConfig, tokens_per_second: float, mean_tokens: float) -> str:
    """The hours of sampling in the run, with the formula.

    Example: "about 1.4 h of sampling: 100 steps x 32 prompts x 8 samples x 200 tokens / 1000 tokens a second".
    """
    steps, sampling = config.loop.steps, config.sampling
    hours = steps * sampling.prompts * sampling.samples * mean_tokens / tokens_per_second / 3600
    return (
        f"about {hours:.2g} h of sampling: {steps} steps x {sampling.prompts} prompts x {sampling.samples} samples x "
        f"{mean_tokens:.0f} tokens / {tokens_per_second:.0f} tokens a second; scoring, training and evaluation come on "
        "top"
    )


def _tried(request: dict[str, object], settings: Settings) -> dict[str, float]:
    """The reply of `services.rollout.trial` in a process of its own, whose log is read only if it fails."""
    from cepo.run.deployment import environment

    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder) / "engine.log"
        with open_log(log) as file:
            done = subprocess.run(
                [sys.executable, "-m", "services.rollout.trial"],
                input=json.dumps(request).encode(),
                stdout=subprocess.PIPE,
                stderr=file,
                env=child_environment(environment(settings)),
                preexec_fn=die_with_parent,
                check=False,
            )
        lines = done.stdout.decode(errors="replace").strip().splitlines()
        if done.returncode == 0 and lines:
            return dict(json.loads(lines[-1]))
        append_lines(log, done.stdout)
        text = log.read_text(errors="replace").strip().splitlines() or ["no output"]
        why = text[-1].removeprefix("cepo rollout: ") if done.returncode == 2 else root_cause(log) or text[-1]
        raise UserError(f"the engine does not start with {settings.model}: {why}")
