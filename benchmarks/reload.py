"""Publish to first token: from the trainer's decision to publish an adapter to vLLM's first token with it.

The clock starts before the adapter is serialised, and stops when vLLM has sampled a token with it. The time includes
writing the file, the announcement, the transfer over gRPC, the digest, vLLM's load and the proof. Every version has new
weights, and a task for it is published at once. `--gpu SIZE` uses a random model of that size.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from benchmarks import _gpu, _report
from benchmarks._stack import Services, services, tiny, trainer
from cepo.messages.groups import EvidencedGroup

AIM_SECONDS = 0.25
PUBLISHED_SECONDS = {
    "prime-rl, the interval it polls in": 1.0,
    "TRL, rank 1 on 1.5 B, three replicas": 5.8,
    "TRL, the same, two replicas": 8.5,
}
"""Published figures of other projects, on GPUs: seconds from new weights to an engine that uses them. From TRL's blog
post about asynchronous GRPO with LoRA through a bucket (huggingface.co/blog), and from the polling interval of
prime-rl's file watcher (github.com/PrimeIntellect-ai/prime-rl)."""


async def measure(engines: Services, versions: int, *overrides: str) -> dict[str, list[float]]:
    """Seconds of each version by name of the interval, without the first version, which warms up."""
    seconds: dict[str, list[float]] = {"first_token": [], "publish": [], "first_group": []}
    config = tiny("grpo", *overrides, f"loop.steps={versions + 1}", "sampling.prompts=1")
    async with trainer(engines, config, engines.folder / "reload") as run:
        for step in range(versions + 1):
            with torch.no_grad():
                for parameter in run.learner.parameters:
                    parameter.add_(torch.randn_like(parameter), alpha=1e-3)
            begun = time.time()
            policy = await run.publisher.publish(step + 1)
            published = time.time()
            tasks = run.feeder.tasks(step, policy, policy)
            run.collector.expect(tasks)
            await run.feeder.publish(tasks)
            (group,) = await run.collector.take(tasks)
            done = time.time()
            if not isinstance(group, EvidencedGroup):
                raise SystemExit(f"the group of version {step + 1} failed: {group.error}")
            first = group.scored.rollout.proof.first_token_at
            for name, at in (("publish", published), ("first_token", first), ("first_group", done)):
                seconds[name].append(at - begun)
    return {name: values[1:] for name, values in seconds.items()}


def main() -> None:
    """Measures, prints the result and writes it to benchmarks/results/."""
    about = "ten versions; takes half a minute, most of it for starting"
    options = _report.arguments(__doc__, about, _gpu.SHAPES).parse_args()
    versions = 10 if options.quick else 40
    with TemporaryDirectory() as folder:
        overrides = _gpu.overrides(Path(folder), options.gpu) if options.gpu else []
        with services(tiny("grpo", *overrides)) as engines:
            seconds = asyncio.run(measure(engines, versions, *overrides))
    ours = {f"{name}_seconds": round(statistics.median(values), 4) for name, values in seconds.items()}
    fastest = min(PUBLISHED_SECONDS.values())
    _report.write(
        "reload",
        options.gpu,
        ours=ours | {"first_token_slowest_seconds": round(max(seconds["first_token"]), 4)},
        alternative=PUBLISHED_SECONDS,
        ratio=fastest / ours["first_token_seconds"],
        aim=fastest / AIM_SECONDS,
        aim_seconds=AIM_SECONDS,
        versions=versions,
        **_gpu.about(options.gpu),
    )


if __name__ == "__main__":
    main()
