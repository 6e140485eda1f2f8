"""Checks of the machine: Redis, device, disk, memory."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from cepo.cli.preflight import sizes
from cepo.cli.preflight.memory_plan import ENGINES, GpuCard, fitting_settings, plan_memory, planned_cache, refusal
from cepo.cli.preflight.preflight import Findings, Preflight
from cepo.errors import UserError
from cepo.net.connections import no_redis, shown
from cepo.net.settings import Settings
from cepo.net.tls import redis_options
from cepo.run import embedded
from cepo.service import gpu
from cepo.service.bus import ADDRESS_HINT
from cepo.service.gpu import GpuMemory

if TYPE_CHECKING:
    from cepo.run.config import RunConfig

UNCHECKED_BYTES = 80 * 10**9
"""The card of the plan on a machine without a GPU."""


def redis(run: Preflight) -> Findings:
    """The Redis of `--redis` answers, or the embedded Redis is installed."""
    if run.redis_url:
        from redis import Redis
        from redis.backoff import NoBackoff
        from redis.exceptions import RedisError
        from redis.retry import Retry

        address = shown(run.redis_url).partition("://")[2]
        options = {"retry": Retry(NoBackoff(), 0), "socket_connect_timeout": 3}
        options |= redis_options(run.redis_url, Settings.from_environment().certificates)
        try:
            with Redis.from_url(run.redis_url, **options) as client:
                client.ping()
        except ValueError:
            raise UserError(f"--redis: {ADDRESS_HINT}") from None  # the cause would quote a password
        except (RedisError, OSError) as error:
            raise no_redis(run.redis_url, error, "leave --redis out for an embedded one") from error
        yield "ok", f"{address} answers"
    else:
        embedded.program()
        yield "ok", "embedded"


def device(run: Preflight) -> Findings:
    """PyTorch finds the device, and as many GPUs as the services that start here use."""
    import torch

    engine, gpus = run.config.engine, torch.cuda.device_count()
    if engine.device == "cpu":
        yield "ok", "cpu"
    elif torch.cuda.is_available():
        for service, key in (("rollout", "tensor_parallel"), ("trainer", "trainer_processes")):
            if service in run.starts and getattr(engine, key) > gpus:
                raise UserError(f"engine.{key}={getattr(engine, key)}: PyTorch sees {gpus} GPU(s) here; lower it")
        yield "ok", f"{gpus} x {torch.cuda.get_device_name()}, {sizes.shown(torch.cuda.mem_get_info()[1])}"
    elif run.starts:
        raise UserError(
            'engine.device="cuda": PyTorch sees no GPU here; install its CUDA build, or set engine.device = "cpu"'
        )
    else:
        yield "note", 'PyTorch sees no GPU here; train on a machine with one, or set engine.device = "cpu"'


def disk(run: Preflight) -> Findings:
    """The disk of the run folder has room for adapters, checkpoints and rollouts, and the engines' cache for theirs."""
    free = _room(run.folder, run.sizes.disk_bytes, "the run writes", "free space or give another --run-dir")
    yield "ok", f"about {sizes.shown(run.sizes.disk_bytes)} for adapters and checkpoints, {sizes.shown(free)} free"
    engines = [name for name in ("rollout", "teacher") if name in (run.starts or run.sizes.holders)]
    cache, needed = Settings.from_environment().adapter_cache, len(engines) * run.sizes.cached_bytes
    if engines:
        what = f"the engines ({', '.join(engines)}) keep adapters of"
        free = _room(cache, needed, what, "enlarge it, or set CEPO_ADAPTER_CACHE to a folder of another file system")
        yield "ok", f"about {sizes.shown(needed)} for the engines' adapters in {cache}, {sizes.shown(free)} free"


def _room(folder: Path, needed: int, writes: str, fix: str) -> int:
    """The free bytes where a folder is or will be.

    Raises:
        UserError: they are too few.
    """
    existing = next(place for place in (folder.resolve(), *folder.resolve().parents) if place.exists())
    free = shutil.disk_usage(existing).free
    if free < needed:
        raise UserError(f"{existing} has {sizes.shown(free)} free and {writes} about {sizes.shown(needed)}; {fix}")
    return free


def memory(run: Preflight) -> Findings:
    """The plan of the GPU's memory, which must fit the card; on the CPU an estimate that is not compared."""
    if run.config.engine.device == "cuda":
        yield from _planned(run)
        return
    estimate, engine = run.sizes, run.config.engine
    yield (
        "ok",
        f"estimate: weights {len(estimate.holders)} x {sizes.shown(estimate.weights_bytes)} "
        f"({', '.join(estimate.holders)}), LoRA and optimiser {sizes.shown(estimate.training_bytes)}, "
        f"KV cache up to {sizes.shown(estimate.cache_bytes)} for "
        f"{engine.max_num_seqs} full sequences; activations come on top",
    )


def kv_cache_bytes(config: RunConfig) -> int:
    """The KV cache that the plan gives the rollout engine on each GPU of this machine.

    vLLM would measure how much memory is free, and count what teacher and trainer load meanwhile as its own.

    Returns:
        Bytes; 0 on the CPU, without a GPU here, and for a model that cannot be counted or does not fit.
    """
    cards = gpu.memory()
    if config.engine.device == "cpu" or not cards:
        return 0
    try:
        measured = sizes.measure(config)
    except UserError:
        return 0
    return planned_cache(measured, GpuCard(min(card.total for card in cards), len(cards)))


def _planned(run: Preflight) -> Findings:
    cards = gpu.memory()
    services = [name for name in ENGINES if not run.starts or name in run.starts]
    whole = len(services) == len(ENGINES)
    smallest = min(cards, key=lambda card: card.total - card.used, default=GpuMemory(UNCHECKED_BYTES, 0))
    # services that start beside others have what these leave free
    card = GpuCard(smallest.total, used_bytes=0 if whole else smallest.used)
    try:
        count = sizes.pass_counter(run.sizes)
        plan = plan_memory(run.sizes, card, count, services)
    except UserError as error:
        yield "note", f"not planned: {error}"
        return
    for line in plan.lines():
        yield "ok", line
    if not plan.problem:
        unchecked = "" if cards else "; no GPU was found here, so it was compared with no other card: see `cepo plan`"
        yield ("ok" if cards else "note"), f"the plan fits {card.title}{unchecked}"
        return
    line = refusal(plan, fitting_settings(run.sizes, card, count, services))
    apart = replace(card, count=len(cards))
    if not cards:
        yield "note", f"no GPU was found here, and the plan does not fit {card.title}: {line}"
    elif not run.starts and not (several := plan_memory(run.sizes, apart, count)).shared and not several.problem:
        yield "note", f"the plan fits {apart.title} only with cards of its own for each service: {line}"
    else:
        raise UserError(line)


def trackers(run: Preflight) -> Findings:
    """The configured trackers are installed, and the user's can be imported."""
    from services.trainer.trackers import openers

    named = [name.removeprefix("telemetry.") for name in openers(run.config.telemetry)]
    yield "ok", ", ".join(["metrics.jsonl", *named])
