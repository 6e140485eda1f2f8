"""The whole system on a GPU: the canary, publishing to the first token, and steps of CEPO and GRPO with their MFU.

All are measured on one set of engines, because starting vLLM takes most of a minute. A case is left out if the time
that is left is less than the last case took, scaled to its number of tokens.
"""

from __future__ import annotations

import asyncio
import contextlib
import statistics
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from benchmarks import _gpu, reload, step
from benchmarks._shapes import RESPONSE
from benchmarks._stack import Services, services, tiny, trained, trainer
from cepo.cli.preflight import sizes
from cepo.cli.preflight.memory_plan import GpuCard, plan_memory
from cepo.prompts.renderer import Renderer
from cepo.service import gpu
from services.trainer.canary import canary_bounds

VERSIONS, STEPS = 6, 2
LENGTHS = {RESPONSE: 32, 2048: 8}
"""Prompts of a step by the number of tokens of a response."""
TINY_LENGTHS = {24: 4, 48: 2}
POLL_SECONDS = 0.1


def system(shape: str, folder: Path, seconds: float) -> dict[str, Any]:
    """The figures; `steps` has those of each response length and lag."""
    deadline = time.monotonic() + seconds
    lengths = TINY_LENGTHS if shape == "tiny" else LENGTHS
    longest = f"model.max_length={1024 - RESPONSE + max(lengths)}"
    settings = [*_gpu.overrides(folder / "system", shape), longest, f"sampling.max_tokens={min(lengths)}"]
    begun = time.monotonic()
    with peak() as used, services(tiny("cepo", *settings, "loop.lag=1")) as engines:
        started = time.monotonic() - begun
        figures: dict[str, Any] = {"start_seconds": round(started, 1)}
        figures["canary"] = asyncio.run(canary(engines, *settings))
        figures["reload"] = reloads(engines, *settings)
        trained(
            engines, tiny("cepo", *settings, step.FROZEN, "loop.steps=2"), "warm-up"
        )  # compiles the teacher's kernels
        figures["steps"] = dict(cases(engines, lengths, settings, deadline))
    return figures | {"memory": planned(settings, used)}


async def canary(engines: Services, *settings: str) -> dict[str, Any]:
    """The differences of the canary's log-probs, token by token, between vLLM and the trainer for a trained policy."""
    config = tiny("grpo", *settings, "loop.steps=1", "sampling.prompts=1")
    async with trainer(engines, config, engines.folder / "canary") as run:
        with torch.no_grad():
            for parameter in run.learner.parameters:
                parameter.add_(torch.randn_like(parameter), alpha=1e-2)
        policy = await run.publisher.publish(1)
        tasks = run.feeder.tasks(0, policy, policy)
        run.collector.expect(tasks)
        await run.feeder.publish(tasks)
        (group,) = await run.collector.take(tasks)
        layers = run.learner.layers
        ours = run.learner.canary(Renderer(config.model.path).canary_ids(config.model.max_length - 1))
    if not hasattr(group, "scored"):
        return {"refused": group.error}
    gaps = [theirs - own for theirs, own in zip(group.scored.rollout.proof.canary_logps, ours, strict=False)]
    bounds = canary_bounds(config.model.dtype, layers)
    return {
        "tokens": len(gaps),
        "shift": abs(sum(gaps)) / len(gaps),
        "mean": sum(map(abs, gaps)) / len(gaps),
        "largest": max(map(abs, gaps)),
        "bounds": {"shift": bounds.shift, "mean": bounds.mean, "largest": bounds.largest},
    }


def reloads(engines: Services, *settings: str) -> dict[str, float]:
    """Median seconds from the trainer's decision to publish to vLLM's first token."""
    seconds = asyncio.run(reload.measure(engines, VERSIONS, *settings))
    return {f"{name}_seconds": round(statistics.median(values), 4) for name, values in seconds.items()}


def cases(
    engines: Services, lengths: dict[int, int], settings: list[str], deadline: float
) -> Iterator[tuple[str, dict[str, Any]]]:
    """CEPO beside GRPO for each response length, on policy and one step behind."""
    took, tokens = 0.0, 1
    for length, prompts in lengths.items():
        for lag in (0, 1):
            name, expected = f"{length} tokens, lag {lag}", took * max(1.0, length / tokens)
            if time.monotonic() + expected > deadline:
                yield name, {"left_out": f"about {expected:.0f} s, more than was left"}
                continue
            begun = time.monotonic()
            case = (*settings, f"sampling.max_tokens={length}", f"sampling.prompts={prompts}")
            yield name, compared(engines, lag, *case)
            took, tokens = time.monotonic() - begun, length


def compared(engines: Services, lag: int, *settings: str) -> dict[str, Any]:
    """A run of each method, with the tokens per second and the MFU of both."""
    run = (*settings, step.FROZEN, f"loop.lag={lag}", f"loop.steps={STEPS + 1}")
    name = "-".join(word.rpartition("=")[2] for word in run[-5:])
    rows = {method: trained(engines, tiny(method, *run), f"{method}-{name}") for method in ("cepo", "grpo")}
    figures = step.compared(list(zip(rows["cepo"], rows["grpo"], strict=True)))
    for method, own in (("cepo", figures["ours"]), ("grpo", figures["alternative"])):
        own |= _gpu.rates(tiny(method, *run), own)
    gaps = [row["rollout/logp_gap"] for row in rows["cepo"]]
    return figures | {"rollout_logp_gap": statistics.median(gaps)}


@contextlib.contextmanager
def peak() -> Iterator[list[int]]:
    """The most bytes that were in use on the fullest GPU within the block, as the only entry; empty without a GPU."""
    most: list[int] = []
    ended = threading.Event()

    def watch() -> None:
        while not ended.wait(POLL_SECONDS):
            used = max((card.used for card in gpu.memory()), default=0)
            most[:] = [max([used, *most])] if used else []

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield most
    finally:
        ended.set()
        thread.join()


def planned(settings: list[str], used: list[int]) -> dict[str, Any]:
    """The plan of the run on this card, and the most that was in use."""
    config = tiny("cepo", *settings, "loop.lag=1")
    cards = gpu.memory()
    if not cards or not used:
        return {"used_gib": None}
    run = sizes.measure(config)
    plan = plan_memory(run, GpuCard(cards[0].total), sizes.pass_counter(run))
    return {"planned_gib": round(plan.needed_bytes / 2**30, 2), "used_gib": round(used[0] / 2**30, 2)}
