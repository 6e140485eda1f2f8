"""The entry point of `vllm.general_plugins`, which vLLM calls in each of its processes.

Written against vLLM 0.32. Without this module vLLM runs its own Qwen3-VL, and its engine's process outlives a service
that was killed.
"""

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
    """Registers this project's Qwen3-VL in place of vLLM's, and ties the engine's process to the service.

    No model is imported until vLLM needs it. vLLM's Qwen3-VL imports `smart_resize` from a module that needs
    torchvision; the Pillow module has the same function and replaces it. vLLM's engine process stops when its service
    shuts down cleanly; here it also stops when the service is killed.
    """
    from vllm import ModelRegistry

    in_service = Path(sys.argv[0]).parent == Path(__file__).parents[1]  # not another program that uses vLLM
    if in_service and multiprocessing.current_process().name.startswith("EngineCore"):
        die_with_parent()
    if importlib.util.find_spec("torchvision") is None:
        from transformers.models.qwen2_vl import image_processing_pil_qwen2_vl as pillow

        sys.modules["transformers.models.qwen2_vl.image_processing_qwen2_vl"] = pillow
    ModelRegistry.register_model(
        "Qwen3VLForConditionalGeneration", "services.rollout.vllm_patches.vision_model:Qwen3VLImages"
    )


def require_plugin(entries: Iterable[EntryPoint]) -> None:
    """Checks that vLLM will find `register`. Otherwise it would read other pixels than the teacher and the trainer.

    Args:
        entries: the installed entry points of GROUP.

    Raises:
        UserError: `register` is not among them.
    """
    if f"{__name__}:register" not in {entry.value for entry in entries}:
        raise UserError(f"vLLM does not find cepo's plugin ({GROUP}), which images need; reinstall the package")
