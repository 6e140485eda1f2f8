"""Images for a Qwen3-VL: patches of pixels for its vision part, and placeholder tokens in the prompt.

Every service uses the same image processor, transformers' Pillow one, so that all of them read the same pixels. It does
not need torchvision. A prompt has two forms:

- compact: one placeholder per image, as vLLM takes it, such as `5 IMG 6`;
- expanded: one placeholder per image token, as the model reads it, such as `5 IMG IMG IMG 6`.

An image token stands for a square of patches. Legend: P patches of an image, F numbers of a patch.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from io import BytesIO
from typing import TYPE_CHECKING, Any

from cepo.errors import UserError
from cepo.messages.groups import ImageRef

if TYPE_CHECKING:
    from torch import Tensor

MODEL_TYPES = ("qwen3_vl",)
"""The supported values of `model_type` in `config.json`."""
MAX_RATIO = 200
"""The largest ratio of an image's sides that the processor accepts."""


@dataclass(frozen=True)
class Patches:
    """One image as the vision part takes it, cut into patches."""

    sha256: str
    values_PF: Tensor
    grid: tuple[int, int, int]
    """Frames, rows and columns of patches; their product is P."""


class Pixels:
    """The image processor of a model, and the placeholder token of its images."""

    def __init__(self, model: str) -> None:
        """Loads the image processor of a model, given by its Hugging Face name or folder.

        Raises:
            UserError: the model takes no images, or its type is not supported.
        """
        from transformers import AutoConfig

        config = AutoConfig.from_pretrained(model)
        if config.model_type not in MODEL_TYPES:
            reason = f"is a {config.model_type}" if hasattr(config, "vision_config") else "takes no images"
            raise UserError(f"holds images, but model.path={model} {reason}; choose a model of type {MODEL_TYPES[0]}")
        self.placeholder: int = config.image_token_id
        self.processor = image_processor(model)

    def tokens(self, image: ImageRef) -> int:
        """The number of tokens of an image.

        Raises:
            UserError: the image is too narrow for the processor.
        """
        if max(image.width, image.height) > MAX_RATIO * min(image.width, image.height):
            raise UserError(f"holds an image of {image.width} x {image.height} pixels, which is too narrow; crop it")
        return (
            int(self.processor.get_number_of_image_patches(image.height, image.width)) // self.processor.merge_size**2
        )

    def expanded(self, compact_ids: Sequence[int], images: Sequence[ImageRef]) -> tuple[int, ...]:
        """Repeats each placeholder of a compact prompt once per token of its image.

        Raises:
            UserError: the numbers of placeholders and images differ.
        """
        places = sum(token == self.placeholder for token in compact_ids)
        if places != len(images):
            raise UserError(
                f"the prompt has {places} places for {len(images)} images; write <image> where each belongs"
            )
        counts = iter([self.tokens(image) for image in images])
        repeats = [(token, next(counts) if token == self.placeholder else 1) for token in compact_ids]
        return tuple(token for token, count in repeats for _ in range(count))

    def compact(self, expanded_ids: Sequence[int], images: Sequence[ImageRef]) -> tuple[int, ...]:
        """The inverse of `expanded`."""
        counts = iter([self.tokens(image) for image in images])
        compact_ids, at = [], 0
        while at < len(expanded_ids):
            compact_ids.append(expanded_ids[at])
            at += next(counts, 1) if expanded_ids[at] == self.placeholder else 1
        return tuple(compact_ids)

    def patches(self, image: ImageRef, data: bytes) -> Patches:
        """Cuts an image into patches.

        Args:
            data: the encoded bytes of the image.
        """
        batch = self.processor(images=[picture(data)], return_tensors="pt")
        frames, rows, columns = batch["image_grid_thw"][0].tolist()
        return Patches(image.sha256, batch["pixel_values"], (frames, rows, columns))


@lru_cache(maxsize=4)
def image_processor(model: str) -> Any:
    """The image processor of a model, in its Pillow version.

    Raises:
        UserError: the model has no image processor.
    """
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    try:
        return Qwen2VLImageProcessorPil.from_pretrained(model)
    except (OSError, ValueError) as error:
        raise UserError(f"no image processor for model {model!r}: {str(error).splitlines()[0]}") from error


def picture(data: bytes) -> Any:
    """Decodes a checked image to an upright RGB Pillow image; transparent pixels become white."""
    from PIL import Image

    with Image.open(BytesIO(data)) as image:
        turned = upright(image)
    if turned.mode == "I;16":  # Pillow's own conversion clips the 65,536 grey levels at 255
        turned = turned.point(lambda grey: grey / 257).convert("L")
    with_alpha = turned.convert("RGBA")
    white = Image.new("RGBA", with_alpha.size, (255, 255, 255, 255))
    return Image.alpha_composite(white, with_alpha).convert("RGB")


def upright(image: Any) -> Any:
    """Turns a Pillow image by its EXIF orientation, as `datasets`, transformers and vLLM do.

    An image with unreadable EXIF tags is returned unchanged.
    """
    from PIL import ImageOps

    try:
        return ImageOps.exif_transpose(image)
    except (SyntaxError, ValueError, TypeError, struct.error):
        return image
