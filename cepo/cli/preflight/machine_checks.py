"""Checks of the machine: Redis, device, disk, memory."""

from __future__ import annotations

import shutil

from cepo.cli.preflight import sizes
from cepo.cli.preflight.preflight import Findings, Preflight
from cepo.errors import UserError
from cepo.net.connections import no_redis, shown
from cepo.net.settings import Settings
from cepo.net.tls import redis_options
from cepo.run import embedded
from cepo.service.bus import ADDRESS_HINT


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
    """The disk of the run folder has room for adapters and checkpoints."""
    existing = next(folder for folder in (run.folder.resolve(), *run.folder.resolve().parents) if folder.exists())
    free, needed = shutil.disk_usage(existing).free, run.sizes.disk_bytes
    if free < needed:
        raise UserError(
            f"{existing} has {sizes.shown(free)} free and the run writes about {sizes.shown(needed)}; "
            "free space or give another --run-dir"
        )
    yield "ok", f"about {sizes.shown(needed)} for adapters and checkpoints, {sizes.shown(free)} free"


def memory(run: Preflight) -> Findings:
    """Estimates the memory of the run; it is not compared with the machine."""
    estimate, engine = run.sizes, run.config.engine
    share = f", within {engine.gpu_memory_utilization:.0%} of the GPU with its weights" * (engine.device == "cuda")
    yield (
        "ok",
        f"estimate: weights {len(estimate.holders)} x {sizes.shown(estimate.weights_bytes)} "
        f"({', '.join(estimate.holders)}), LoRA and optimiser {sizes.shown(estimate.training_bytes)}, "
        f"KV cache up to {sizes.shown(estimate.cache_bytes)} for "
        f"{engine.max_num_seqs} full sequences{share}; activations come on top",
    )
