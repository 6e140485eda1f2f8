"""Where a process finds things: the only file that reads the environment. Addresses, paths and engine sizes,
never a hyper-parameter.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from cepo.errors import UserError

PREFIX = "CEPO_"
_PLACE = ("RANK", "LOCAL_RANK", "WORLD_SIZE")
_TMPFS = Path("/dev/shm")


class Settings(BaseModel):
    """One service's surroundings; the variable of a field is CEPO_ and its name in capitals."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    redis_url: str = Field(default="redis://127.0.0.1:6379/0", repr=False)
    """`rediss://` for TLS; may hold a password."""
    host: str = "127.0.0.1"
    """Loopback unless told otherwise."""
    exposure: Literal["secure", "cleartext", "open"] = "secure"
    """What listening beyond loopback asks for: a token and certificates (secure), a token on a network that is private
    to the run (cleartext), nothing (open)."""
    grpc_port: int = Field(default=0, ge=0, le=65535)
    """0 takes a free port."""
    http_port: int = Field(default=0, ge=0, le=65535)
    trainer_address: str = "127.0.0.1:7051"
    """gRPC address adapters are fetched from."""
    verifier_address: str = ""
    """gRPC address the teacher has responses graded at, when token credit is asked for without r- or rewards; empty:
    such requests are refused."""
    token: str = Field(default="", repr=False)
    """Bearer token of REST and gRPC; empty, and without a file of them, switches the check off."""
    token_file: str = ""
    """In place of `token`: a file of a token a line, read again when it changes. All are let in, the first is sent."""
    certificates: str = ""
    """Folder of ca.crt, tls.crt and tls.key, which `cepo certs` makes; the services' own folders may be in it. Empty:
    no TLS."""
    mutual_tls: bool = True
    """Whether callers must show a certificate of ca.crt."""
    requests_per_second: float = Field(default=200.0, gt=0)
    """REST requests one address may send; a burst may take two seconds' worth at once."""
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    otlp_endpoint: str = Field(default="", pattern=r"^$|^https?://")
    """OTLP collector that traces are sent to over HTTP, such as http://collector:4318; empty: nothing is traced."""
    concurrency: int = Field(default=64, ge=1)
    """Groups a stage holds at once."""
    claim_seconds: float = Field(default=10.0, gt=0)
    """An item whose worker has been silent for this long is given to another."""
    max_deliveries: int = Field(default=5, ge=1)

    reward_functions: str = Field(default="", pattern=r"^$|^[\w.]+:\w+(,[\w.]+:\w+)*$")
    """The user functions that the verifier runs, `module:function` with commas between; no message adds to them."""
    step_scorers: str = Field(default="", pattern=r"^$|^https?://[^\s,]+(,https?://[^\s,]+)*$")
    """URLs that the verifier may ask to score reasoning steps, with commas between; no message adds to them."""

    model: str = ""
    """Hugging Face name or folder of the base model (rollout and teacher)."""
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    device: Literal["cpu", "cuda"] = "cpu"
    threads: int = Field(default=0, ge=0)
    """CPU threads of the engine; 0 leaves the choice to it."""
    max_model_len: int = Field(default=1024, ge=8)
    max_num_seqs: int = Field(default=128, ge=1)
    max_lora_rank: int = Field(default=16, ge=1)
    lora_targets: str = "q_proj,k_proj,v_proj,o_proj,gate_proj,up_proj,down_proj"
    """Modules the rollout engine can adapt; the fewer, the faster it samples. Never `lm_head`."""
    max_loras: int = Field(default=2, ge=1)
    """Adapters resident at once; at least lag + 2."""
    gpu_memory_utilization: float = Field(default=0.6, gt=0, lt=1)
    tensor_parallel: int = Field(default=1, ge=1)
    """GPUs that the rollout engine splits the model over."""
    vllm_cpu_patches: bool = True
    """Whether CEPO's faster LoRA kernels and scheduler replace vLLM's on the CPU. With vLLM's, requests for the base
    model get wrong log-probs while `max_loras` adapters are loaded."""
    adapter_cache: Path = (_TMPFS if _TMPFS.is_dir() else Path("/tmp")) / "cepo-adapters"
    """Fetched adapters; on tmpfs where there is one."""

    @classmethod
    def from_environment(cls, service: str = "client") -> Self:
        """Reads CEPO_* variables.

        Args:
            service: whose certificate is taken, where the folder of certificates has one for each.

        Raises:
            UserError: a value does not fit; names the variable.
        """
        found = {
            name: os.environ[PREFIX + name.upper()] for name in cls.model_fields if PREFIX + name.upper() in os.environ
        }
        if found.get("certificates") and (own := Path(found["certificates"]) / service).is_dir():
            found["certificates"] = str(own)
        try:
            return cls.model_validate(found)
        except ValidationError as error:
            first = error.errors()[0]
            variable = PREFIX + str(first["loc"][0]).upper()
            raise UserError(f"{variable}={first['input']!r}: {first['msg']}") from error

    def to_environment(self) -> dict[str, str]:
        """The variables that give a child process these settings."""
        return {PREFIX + name.upper(): str(getattr(self, name)) for name in type(self).model_fields}


@dataclass(frozen=True)
class Place:
    """Which of several processes this one is, in the variables of torchrun."""

    rank: int
    local_rank: int
    """Among those of its machine."""
    size: int

    @classmethod
    def from_environment(cls) -> Self | None:
        """None where nobody set them: a process by itself.

        Raises:
            UserError: some are set and others not, or one is no number.
        """
        found = {name: os.environ.get(name, "") for name in _PLACE}
        if not found["RANK"]:
            return None
        if wrong := [name for name, value in found.items() if not value.isdecimal()]:
            raise UserError(
                f"RANK is set, and {wrong[0]}={found[wrong[0]]!r} is no number; start the trainer with torchrun, which "
                f"sets {', '.join(_PLACE)}, or unset RANK"
            )
        return cls(*map(int, found.values()))

    def to_environment(self) -> dict[str, str]:
        """The variables of a process that is to have this place."""
        return dict(zip(_PLACE, map(str, (self.rank, self.local_rank, self.size)), strict=True))


def node_rank() -> int | None:
    """Which of the machines that one torchrun runs over this is, by torchrun's own variables; None without them.

    Raises:
        UserError: they do not say where the machines meet, and which of them this is.
    """
    nodes, rank, address = (os.environ.get(f"PET_{name}", "") for name in ("NNODES", "NODE_RANK", "MASTER_ADDR"))
    if not nodes:
        return None
    if not (nodes.isdecimal() and rank.isdecimal() and int(rank) < int(nodes) and address):
        raise UserError(
            f"PET_NNODES={nodes!r}, PET_NODE_RANK={rank!r}, PET_MASTER_ADDR={address!r}: a trainer over several "
            "machines needs their number, this one's, counted from 0, and the name of number 0; or unset PET_NNODES"
        )
    return int(rank)


def stay_on_loopback() -> None:
    """Has torch.distributed listen on loopback alone, here and in child processes."""
    os.environ.update({"GLOO_SOCKET_IFNAME": "lo", "NCCL_SOCKET_IFNAME": "lo"})


def child_environment(extra: dict[str, str]) -> dict[str, str]:
    """This process's environment with `extra` on top, for a child process."""
    return {**os.environ, **extra}
