"""The four services in one table: the command that starts each, its ports and its settings.

The local launcher, docker-compose.yml and deploy/k8s follow the table, and a test compares them with it.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cepo.net.environment import variable
from cepo.net.settings import Settings

if TYPE_CHECKING:
    from cepo.run.config import RunConfig

REDIS_OPTIONS = ("--appendonly", "yes", "--save", "", "--auto-aof-rewrite-min-size", "1gb")
"""Options of every Redis that is started for a run. With Redis's default of 64 MB, a fork would rewrite the append-only
file several times per second, because groups are added and deleted all the time."""


@dataclass(frozen=True)
class Spec:
    """One service. The ports apply where the service has its own address: on its own machine or in a container."""

    name: str
    grpc_port: int
    http_port: int
    concurrency: int
    """Groups that its stage holds at once. The teacher scores these in one batch, so `loop.deterministic` sets 1."""
    follows_run: bool = True
    """Whether the run file decides its settings. The verifier reads everything it needs from its messages."""

    def command(self, *arguments: str) -> list[str]:
        """The arguments of the Python interpreter, such as `["-m", "services.trainer", "RUN_DIR"]`."""
        return ["-m", f"services.{self.name}", *arguments]

    def container_command(self, run_file: str, *arguments: str) -> list[str]:
        """The command of the service's container; a service that follows the run starts through `cepo serve`."""
        if not self.follows_run:
            return ["python", *self.command()]
        return ["python", "-m", "cepo", "serve", self.name, run_file, *arguments]

    def settings(self, config: RunConfig, base: Settings) -> Settings:
        """The base settings with the values that the run decides: model, lengths and engine sizes."""
        on_cpu = config.engine.device == "cpu"
        alone = self.name == "teacher" and config.loop.deterministic
        return base.model_copy(
            update={
                "concurrency": 1 if alone else self.concurrency,
                "model": config.model.path,
                "chat_template_arguments": json.dumps(config.data.template),
                "dtype": config.model.dtype,
                "device": config.engine.device,
                "threads": base.threads or (self._cpu_threads(config) if on_cpu else 0),
                "max_model_len": config.model.max_length + (config.hint_tokens if self.name == "teacher" else 0),
                "max_num_seqs": config.engine.max_num_seqs,
                "max_lora_rank": config.engine.max_lora_rank,
                "lora_targets": ",".join(config.lora.targets),
                "max_loras": config.max_loras,
                "gpu_memory_utilization": config.engine.gpu_memory_utilization,
                "tensor_parallel": config.engine.tensor_parallel,
                "raw_logprobs": config.raw_logprobs,
                "environments": ",".join(config.data.environments) if self.name == "rollout" else "",
            }
        )

    def _cpu_threads(self, config: RunConfig) -> int:
        """Half of the cores, because the rollout works while the teacher and the trainer do, and waiting threads spin.

        An on-policy trainer without a colocated teacher gets all cores: the other services wait while it updates.
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
"""In start order: the engines take longest, and the trainer waits for them."""


def processes(config: RunConfig) -> list[Spec]:
    """The services that a run starts as processes; a colocated teacher has no process."""
    return [spec for spec in SPECS.values() if (spec.name, config.engine.teacher) != ("teacher", "colocated")]


def environment(settings: Settings, service: str = "") -> dict[str, str]:
    """The environment of a service's process: its settings, and variables that silence its libraries and set threads.

    vLLM spawns its engine process, as its own server does. A forked process would not load plugins, and PyTorch's
    threads can fail in it. On a GPU the passes of teacher and trainer have many sizes, and PyTorch's allocator would
    hold blocks of each; expandable segments avoid that. vLLM does not take them everywhere.
    """
    quiet = {
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_LOGGING_LEVEL": "WARNING",
        "VLLM_WORKER_MULTIPROC_METHOD": "spawn",
        "TOKENIZERS_PARALLELISM": "false",
    }
    if settings.device == "cuda" and service in ("teacher", "trainer"):
        quiet["PYTORCH_ALLOC_CONF"] = variable("PYTORCH_ALLOC_CONF") or "expandable_segments:True"
    if not settings.threads:
        return {**settings.to_environment(), **quiet}
    return {
        **settings.to_environment(),
        **quiet,
        "OMP_NUM_THREADS": str(settings.threads),
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_CPU_KVCACHE_SPACE": "1",  # GiB
    }
