"""Qwen3-VL in vLLM with the image processor of the teacher and the trainer, and without video.

Written against vLLM 0.32. Its own model uses transformers' torchvision processors. Their resized pixels differ slightly
from Pillow's, and torchvision has no build for some machines. Without this module rollout log-probs of prompts with
images differ from the trainer's.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from transformers.models.qwen3_vl import Qwen3VLProcessor
from vllm.model_executor.models.qwen3_vl import (
    Qwen3VLDummyInputsBuilder,
    Qwen3VLForConditionalGeneration,
    Qwen3VLMultiModalProcessor,
    Qwen3VLProcessingInfo,
)
from vllm.multimodal import MULTIMODAL_REGISTRY

from cepo.prompts.pixels import image_processor


class ImagesProcessor(Qwen3VLProcessor):
    """Turns text and images into token ids and pixels."""

    @classmethod
    def get_attributes(cls) -> list[str]:
        return ["image_processor", "tokenizer"]

    def __init__(self, image_processor: Any, tokenizer: Any) -> None:
        super().__init__(image_processor, tokenizer)


class ImagesInfo(Qwen3VLProcessingInfo):
    """Answers vLLM's questions about the model's inputs."""

    _processor: ImagesProcessor | None = None

    def get_hf_processor(self, **kwargs: object) -> Qwen3VLProcessor:
        if self._processor is None:
            pixels = image_processor(self.ctx.model_config.model)
            self._processor = ImagesProcessor(image_processor=pixels, tokenizer=self.ctx.tokenizer)
        return self._processor

    def get_supported_mm_limits(self) -> Mapping[str, int | None]:
        return {"image": None}

    def get_mm_max_tokens_per_item(self, seq_len: int, mm_counts: Mapping[str, int]) -> Mapping[str, int]:
        return {"image": self.get_max_image_tokens()}

    def get_supported_mm_processor_kwargs(self) -> dict[str, set[str]]:
        return {"text_kwargs": set(), "images_kwargs": set(), "videos_kwargs": set()}


@MULTIMODAL_REGISTRY.register_processor(
    Qwen3VLMultiModalProcessor, info=ImagesInfo, dummy_inputs=Qwen3VLDummyInputsBuilder
)
class Qwen3VLImages(Qwen3VLForConditionalGeneration):
    """Qwen3-VL for text and images."""
