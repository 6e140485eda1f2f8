"""Sampled tokens per second while an environment takes 200 ms to answer each turn, against one that answers at once.

The same trajectories of the tiny tools model, in vLLM, with twice as many at once as the engine has sequences.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks import _report
from cepo.data.problems import load_problems
from cepo.messages.groups import BASE_POLICY, PromptTask, RolloutGroup
from cepo.net.environment import child_environment, variable
from cepo.net.settings import Settings
from cepo.prompts.renderer import Renderer
from cepo.run.config import RunConfig
from cepo.run.deployment import SPECS, environment
from cepo.run.file import load
from cepo.service.adapters import trainer_cache
from cepo.service.killable import preload
from cepo.testing import MemoryBus
from services.rollout.environments.calculator import Calculator
from services.rollout.environments.pool import Environments
from services.rollout.handler import make_handler
from services.rollout.vllm_patches import vllm_names
from services.trainer.feeder import Feeder

AIM = 0.8
SECONDS = 0.2
SEQUENCES = 32
PROMPTS, ROUNDS = 24, 5
STARTED = "CEPO_BENCHMARK_ENVIRONMENTS"
"""Set in the process that measures, whose environment is that of the rollout service."""
FILE = Path(__file__).parents[1] / "deploy" / "runs" / "tiny_tools_cepo.toml"


class SlowCalculator(Calculator):
    """A calculator that takes 200 ms for each turn, as a sandbox or a search would."""

    def step(self, message: dict[str, Any]) -> tuple[str | bool, float]:
        time.sleep(SECONDS)
        return super().step(message)


NAMES = {
    "alternative": "services.rollout.environments.calculator:Calculator",
    "ours": "benchmarks.environments:SlowCalculator",
}


def tasks_of(config: RunConfig, renderer: Renderer, name: str, count: int) -> tuple[PromptTask, ...]:
    """The first tasks of the run, in an environment."""
    feeder = Feeder(config, "benchmark", load_problems(config, renderer), None, MemoryBus())
    tasks = feeder.tasks(0, BASE_POLICY, BASE_POLICY)[:count]
    assert tasks[0].environment is not None
    played = tasks[0].environment.model_copy(update={"name": name})
    return tuple(
        task.model_copy(update={"environment": played.model_copy(update={"row": task.environment.row})})
        for task in tasks
        if task.environment is not None
    )


def sampled(groups: list[RolloutGroup]) -> int:
    """The number of tokens that the engine sampled."""
    return sum(completion.length for group in groups for completion in group.completions)


async def measure(config: RunConfig, prompts: int, rounds: int) -> dict[str, list[float]]:
    """Tokens per second of each round, by environment; the trajectories are the same."""
    with vllm_names():
        from services.rollout.engine import VllmGenerator

    settings, renderer = Settings.from_environment("rollout"), Renderer(config.model.path)
    generator = VllmGenerator(settings, renderer, trainer_cache("rollout", settings))
    speeds: dict[str, list[float]] = {name: [] for name in NAMES}
    found: dict[str, list[RolloutGroup]] = {}
    try:
        async with Environments(list(NAMES.values()), at_once=2 * SEQUENCES) as environments:
            handler = make_handler(generator, renderer, settings.max_model_len, environments)
            for turn in range(rounds + 1):
                for name, environment_name in NAMES.items():
                    begun = time.perf_counter()
                    groups = await asyncio.gather(*map(handler, tasks_of(config, renderer, environment_name, prompts)))
                    if turn:  # the first round warms up
                        speeds[name].append(sampled(groups) / (time.perf_counter() - begun))
                    found[name] = groups
    finally:
        generator.close()
    texts = [[c.token_ids for group in groups for c in group.completions] for groups in found.values()]
    if texts[0] != texts[1]:
        raise SystemExit("the two environments gave different trajectories")
    return speeds


def main() -> None:
    """Measures, prints the result and writes it to benchmarks/results/."""
    asked = _report.arguments(__doc__, "three rounds of 12 prompts; a minute").parse_args()
    config = load(FILE, [f"engine.max_num_seqs={SEQUENCES}", "sampling.prompts=24", "sampling.samples=8"])
    if variable(STARTED) is None:
        settings = SPECS["rollout"].settings(config, Settings())
        variables = child_environment({**environment(settings), STARTED: "1"})
        os.execve(sys.executable, [sys.executable, "-m", "benchmarks.environments", *sys.argv[1:]], variables)
    for module in ("services.rollout.handler", "services.trainer.feeder"):
        preload(module)  # each process of an environment imports the module that was started, and what that imports
    prompts, rounds = (12, 3) if asked.quick else (PROMPTS, ROUNDS)
    speeds = asyncio.run(measure(config, prompts, rounds))
    ours, alternative = median(speeds["ours"]), median(speeds["alternative"])
    _report.write(
        "environments",
        ours={"tokens_per_second": round(ours, 1)},
        alternative={"tokens_per_second": round(alternative, 1)},
        ratio=round(ours / alternative, 3),
        aim=AIM,
        environment_seconds=SECONDS,
        trajectories=prompts * config.sampling.samples,
        engine_sequences=SEQUENCES,
        trajectories_at_once=2 * SEQUENCES,
    )


if __name__ == "__main__":
    main()
