"""The four services in one table: what starts each, where it listens, what its surroundings are.

The local launcher, docker-compose.yml and deploy/k8s follow it, and a test holds them to it.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cepo.net.settings import Settings

if TYPE_CHECKING:
    from cepo.run.config import RunConfig

REDIS_OPTIONS = ("--appendonly", "yes", "--save", "", "--auto-aof-rewrite-min-size", "1gb")
"""Of every Redis that is started for a run. Groups come and go: at Redis's own 64 MB the file would be rewritten, by a
fork, several times a second."""


@dataclass(frozen=True)
class Spec:
    """One service; its ports hold where it has an address of its own, on a machine or in a container."""

    name: str
    grpc_port: int
    http_port: int
    concurrency: int
    """Groups its stage holds at once; the teacher scores those together, so with `loop.deterministic` it has one."""
    follows_run: bool = True
    """Whether the run file decides its settings; the verifier reads everything from its messages."""

    def command(self, *arguments: str) -> list[str]:
        """What follows the Python interpreter: the process itself."""
        return ["-m", f"services.{self.name}", *arguments]

    def container_command(self, run_file: str, *arguments: str) -> list[str]:
        """What a container starts: the process, for a service that follows the run by way of `cepo serve`."""
        if not self.follows_run:
            return ["python", *self.command()]
        return ["python", "-m", "cepo", "serve", self.name, run_file, *arguments]

    def settings(self, config: RunConfig, surroundings: Settings) -> Settings:
        """The surroundings with what the run decides: model, lengths and engine sizes."""
        on_cpu = config.engine.device == "cpu"
        alone = self.name == "teacher" and config.loop.deterministic
        return surroundings.model_copy(
            update={
                "concurrency": 1 if alone else self.concurrency,
                "model": config.model.path,
                "dtype": config.model.dtype,
                "device": config.engine.device,
                "threads": surroundings.threads or (self._cpu_threads(config) if on_cpu else 0),
                "max_model_len": config.model.max_length + (config.hint_tokens if self.name == "teacher" else 0),
                "max_num_seqs": config.engine.max_num_seqs,
                "max_lora_rank": config.engine.max_lora_rank,
                "lora_targets": ",".join(config.lora.targets),
                "max_loras": config.max_loras,
                "gpu_memory_utilization": config.engine.gpu_memory_utilization,
                "tensor_parallel": config.engine.tensor_parallel,
            }
        )

    def _cpu_threads(self, config: RunConfig) -> int:
        """Half the cores, for rollout works while teacher and trainer do, and threads that wait for a core spin.

        On policy a trainer that is nothing else has them all: while it updates the others wait for it.
        """
        cores = len(os.sched_getaffinity(0))
        alone = self.name == "trainer" and not config.loop.lag and config.engine.teacher == "service"
        return cores if alone else max(1, cores // 2)


SPECS = {
    spec.name: spec
    for spec in (
        Spec("rollout", grpc_port=7052, http_port=8052, concurrency=256),
        Spec("verifier", grpc_port=7054, http_port=8054, concurrency=16, follows_run=False),
        Spec("teacher", grpc_port=7053, http_port=8053, concurrency=16),
        Spec("trainer", grpc_port=7051, http_port=8051, concurrency=256),
    )
}
"""In the order of starting: engines take longest, and the trainer waits for them."""


def processes(config: RunConfig) -> list[Spec]:
    """Those of a run: a colocated teacher has none."""
    return [spec for spec in SPECS.values() if (spec.name, config.engine.teacher) != ("teacher", "colocated")]


def environment(settings: Settings) -> dict[str, str]:
    """The variables of a service's process: its settings, and what quietens and binds its libraries.

    vLLM starts its engine as its own server does, anew: a process that is forked does not call plugins, and PyTorch's
    threads can fail in it.
    """
    quiet = {
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_LOGGING_LEVEL": "WARNING",
        "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
        "TOKENIZERS_PARALLELISM": "false",
    }
    if not settings.threads:
        return {**settings.to_environment(), **quiet}
    return {
        **settings.to_environment(),
        **quiet,
        "OMP_NUM_THREADS": str(settings.threads),
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_CPU_KVCACHE_SPACE": "1",  # GiB
    }
