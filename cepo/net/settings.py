"""The settings of a process, from environment variables: addresses, paths and engine sizes, never a hyper-parameter."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from cepo.errors import UserError
from cepo.net.environment import variable

PREFIX = "CEPO_"
_TMPFS = Path("/dev/shm")


class Settings(BaseModel):
    """The settings of a service. Example: the variable of `redis_url` is CEPO_REDIS_URL."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    redis_url: str = Field(default="redis://127.0.0.1:6379/0", repr=False)
    """URL of Redis, which may contain a password; `rediss://` for TLS."""
    host: str = "127.0.0.1"
    """Address to listen on; loopback by default."""
    exposure: Literal["secure", "cleartext", "open"] = "secure"
    """What a service needs to listen beyond loopback: a token and certificates (secure), a token, in a network that is
    private to the run (cleartext), or nothing (open)."""
    grpc_port: int = Field(default=0, ge=0, le=65535)
    """gRPC port; 0 takes a free port."""
    http_port: int = Field(default=0, ge=0, le=65535)
    trainer_address: str = "127.0.0.1:7051"
    """gRPC address of the trainer, from which adapters are fetched."""
    machine: str = ""
    """Name of the machine. Its engines fetch each adapter over the network once, and then from one another. Empty: the
    host name; on Kubernetes, where every pod has a host name of its own, the name of the node."""
    verifier_address: str = ""
    """gRPC address of the verifier, which grades the responses of credit requests without r- or rewards. Empty: the
    teacher rejects such requests."""
    token: str = Field(default="", repr=False)
    """Bearer token of REST and gRPC. Empty, and without `token_file`: no token is needed."""
    token_file: str = ""
    """Alternative to `token`: a file with one token per line, read again when it changes. All of them are accepted; the
    first is sent."""
    certificates: str = ""
    """Folder of ca.crt, tls.crt and tls.key, or of one such folder per service, as `cepo certs` writes it. Empty: no
    TLS."""
    mutual_tls: bool = True
    """Whether clients need a certificate that is signed by ca.crt."""
    requests_per_second: float = Field(default=200.0, gt=0)
    """Limit of REST requests per client address. A burst may be twice as large."""
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    otlp_endpoint: str = Field(default="", pattern=r"^$|^https?://")
    """OTLP collector for traces over HTTP, such as http://collector:4318. Empty: no traces."""
    concurrency: int = Field(default=64, ge=1)
    """Largest number of groups that a stage processes at once."""
    claim_seconds: float = Field(default=10.0, gt=0)
    """An item whose worker has not renewed its claim for this long is given to another worker."""
    max_deliveries: int = Field(default=5, ge=1)

    reward_functions: str = Field(default="", pattern=r"^$|^[\w.]+:\w+(,[\w.]+:\w+)*$")
    """Reward functions that the verifier may call, as comma-separated `module:function`. Messages cannot add any."""
    step_scorers: str = Field(default="", pattern=r"^$|^https?://[^\s,]+(,https?://[^\s,]+)*$")
    """Comma-separated URLs that the verifier may call to score reasoning steps. Messages cannot add any."""
    environments: str = Field(
        default="", pattern=r"^$|^([\w.]+:[\w-]+|https?://[^\s,]+)(,([\w.]+:[\w-]+|https?://[^\s,]+))*$"
    )
    """Environments that the rollout service may run, as comma-separated `module:Class` and URLs. Messages cannot add
    any."""
    environment_processes: int = Field(default=64, ge=1)
    """Trajectories that are played in environments at the same time; one of a class takes a process."""

    model: str = ""
    """Hugging Face name or folder of the base model (rollout and teacher)."""
    chat_template_arguments: str = "{}"
    """Arguments of the model's chat template as a JSON object, such as {"enable_thinking": false}."""
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    device: Literal["cpu", "cuda"] = "cpu"
    threads: int = Field(default=0, ge=0)
    """CPU threads of the engine; 0 uses the engine's default."""
    max_model_len: int = Field(default=1024, ge=8)
    max_num_seqs: int = Field(default=128, ge=1)
    max_lora_rank: int = Field(default=16, ge=1)
    lora_targets: str = "q_proj,k_proj,v_proj,o_proj,gate_proj,up_proj,down_proj"
    """Modules that adapters may change in the rollout engine; fewer are faster. Never `lm_head`."""
    max_loras: int = Field(default=2, ge=1)
    """Largest number of loaded adapters; at least lag + 2."""
    gpu_memory_utilization: float = Field(default=0.6, gt=0, lt=1)
    kv_cache_memory_bytes: int = Field(default=0, ge=0)
    """KV cache of the rollout engine on each GPU. 0: vLLM takes what its share leaves, measured while other processes
    may be loading."""
    raw_logprobs: bool = False
    """Whether the rollout engine returns log-probs of the model's whole distribution, before temperature, top_p, top_k
    and penalties. Otherwise they are of the distribution that it samples from."""
    tensor_parallel: int = Field(default=1, ge=1)
    """GPUs that the rollout engine splits the model over."""
    vllm_cpu_patches: bool = True
    """Whether CEPO's faster LoRA kernels and scheduler replace vLLM's on the CPU. With vLLM's, requests for the base
    model get wrong log-probs while `max_loras` adapters are loaded."""
    adapter_cache: Path = (_TMPFS if _TMPFS.is_dir() else Path("/tmp")) / "cepo-adapters"
    """Folder of fetched adapters; by default on tmpfs if there is one."""

    @field_validator("chat_template_arguments")
    @classmethod
    def _is_an_object(cls, text: str) -> str:
        if not isinstance(json.loads(text), dict):
            raise ValueError("must be a JSON object")
        return text

    @property
    def machine_name(self) -> str:
        """The name of the machine that this process runs on."""
        return self.machine or socket.gethostname()

    @property
    def template(self) -> dict[str, Any]:
        """The arguments of the model's chat template."""
        return dict(json.loads(self.chat_template_arguments))

    @classmethod
    def from_environment(cls, service: str = "client") -> Self:
        """Reads CEPO_* variables.

        Args:
            service: the service whose certificate is used, if the folder has one for each service.

        Raises:
            UserError: a value is invalid; the message names the variable.
        """
        given = {name: variable(PREFIX + name.upper()) for name in cls.model_fields}
        values = {name: value for name, value in given.items() if value is not None}
        if values.get("certificates") and (own := Path(values["certificates"]) / service).is_dir():
            values["certificates"] = str(own)
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            first = error.errors()[0]
            key = PREFIX + str(first["loc"][0]).upper()
            raise UserError(f"{key}={first['input']!r}: {first['msg']}") from error

    def to_environment(self) -> dict[str, str]:
        """The environment variables of these settings, for a child process."""
        return {PREFIX + name.upper(): str(getattr(self, name)) for name in type(self).model_fields}
