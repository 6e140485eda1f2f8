"""The entry point of `vllm.general_plugins`: vLLM calls it in each of its processes."""

from __future__ import annotations

import importlib.util
import multiprocessing
import sys
from collections.abc import Iterable
from importlib.metadata import EntryPoint
from pathlib import Path

from cepo.errors import UserError
from cepo.net.processes import die_with_parent

GROUP = "vllm.general_plugins"


def register() -> None:
    """Puts our Qwen3-VL in the place of vLLM's own; neither is imported until a model asks for it.

    vLLM's takes `smart_resize` from a module that needs torchvision; Pillow's module has the same function. And the
    engine's process of our service ends with it, which vLLM leaves to a service that can still say so.
    """
    from vllm import ModelRegistry

    ours = Path(sys.argv[0]).parent == Path(__file__).parents[1]  # and not a program of its own where cepo is installed
    if ours and multiprocessing.current_process().name.startswith("EngineCore"):
        die_with_parent()
    if importlib.util.find_spec("torchvision") is None:
        from transformers.models.qwen2_vl import image_processing_pil_qwen2_vl as pillow

        sys.modules["transformers.models.qwen2_vl.image_processing_qwen2_vl"] = pillow
    ModelRegistry.register_model(
        "Qwen3VLForConditionalGeneration", "services.rollout.vllm_patches.vision_model:Qwen3VLImages"
    )


def require_plugin(found: Iterable[EntryPoint]) -> None:
    """Checks that vLLM will find `register`, or it would take other pixels than teacher and trainer.

    Raises:
        UserError: the installed package does not name it.
    """
    if f"{__name__}:register" not in {entry.value for entry in found}:
        raise UserError(f"vLLM finds no plugin of cepo ({GROUP}), which images need; install the package again")
