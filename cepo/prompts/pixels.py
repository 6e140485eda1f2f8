"""How a Qwen3-VL takes an image: patches of pixels for its vision part, and one token for every square of patches.

Every service uses this one image processor, Pillow's, so that all of them see the same pixels; it needs no torchvision.
A prompt has two forms: compact, one placeholder for each image, which vLLM takes, and expanded, as many placeholders as
the image has tokens, which the model reads.
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
"""Of `config.json`: the models that this works for."""
MAX_RATIO = 200
"""Of an image's sides, as the processor allows."""


@dataclass(frozen=True)
class Patches:
    """One image as the vision part takes it."""

    sha256: str
    values_PF: Tensor
    """P patches of F numbers."""
    grid: tuple[int, int, int]
    """Frames, rows and columns of patches; P in all."""


class Pixels:
    """The image processor of a model and the tokens that stand for its images."""

    def __init__(self, model: str) -> None:
        """Reads the configuration of a Hugging Face name or folder.

        Raises:
            UserError: the model takes no images, or is none of those this works for.
        """
        from transformers import AutoConfig

        config = AutoConfig.from_pretrained(model)
        if config.model_type not in MODEL_TYPES:
            found = f"is a {config.model_type}" if hasattr(config, "vision_config") else "takes no images"
            raise UserError(f"holds images, and model.path={model} {found}; choose a model of type {MODEL_TYPES[0]}")
        self.placeholder: int = config.image_token_id
        self.processor = image_processor(model)

    def tokens(self, image: ImageRef) -> int:
        """How many tokens an image takes.

        Raises:
            UserError: it is too narrow for the processor.
        """
        if max(image.width, image.height) > MAX_RATIO * min(image.width, image.height):
            raise UserError(f"holds an image of {image.width} x {image.height} pixels, which is too narrow; crop it")
        return (
            int(self.processor.get_number_of_image_patches(image.height, image.width)) // self.processor.merge_size**2
        )

    def expanded(self, compact_ids: Sequence[int], images: Sequence[ImageRef]) -> tuple[int, ...]:
        """A compact prompt with each placeholder repeated for the tokens of its image.

        Raises:
            UserError: there are more or fewer placeholders than images.
        """
        found = sum(token == self.placeholder for token in compact_ids)
        if found != len(images):
            raise UserError(f"the prompt has {found} places for {len(images)} images; write <image> where each belongs")
        counts = iter([self.tokens(image) for image in images])
        repeats = [(token, next(counts) if token == self.placeholder else 1) for token in compact_ids]
        return tuple(token for token, count in repeats for _ in range(count))

    def compact(self, expanded_ids: Sequence[int], images: Sequence[ImageRef]) -> tuple[int, ...]:
        """What `expanded` made a prompt of."""
        counts = iter([self.tokens(image) for image in images])
        found, at = [], 0
        while at < len(expanded_ids):
            found.append(expanded_ids[at])
            at += next(counts, 1) if expanded_ids[at] == self.placeholder else 1
        return tuple(found)

    def patches(self, image: ImageRef, data: bytes) -> Patches:
        """The pixels of an image."""
        made = self.processor(images=[picture(data)], return_tensors="pt")
        frames, rows, columns = made["image_grid_thw"][0].tolist()
        return Patches(image.sha256, made["pixel_values"], (frames, rows, columns))


@lru_cache(maxsize=4)
def image_processor(model: str) -> Any:
    """Pillow's image processor of a model.

    Raises:
        UserError: the model has none.
    """
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    try:
        return Qwen2VLImageProcessorPil.from_pretrained(model)
    except (OSError, ValueError) as error:
        raise UserError(f"no image processor for model {model!r}: {str(error).splitlines()[0]}") from error


def picture(data: bytes) -> Any:
    """An image that was checked, as a Pillow image in RGB, upright; what is transparent is white."""
    from PIL import Image

    with Image.open(BytesIO(data)) as image:
        turned = upright(image)
    if turned.mode == "I;16":  # of 65536 greys Pillow shows the first 256 and the rest as white
        turned = turned.point(lambda grey: grey / 257).convert("L")
    layered = turned.convert("RGBA")
    whole = Image.new("RGBA", layered.size, (255, 255, 255, 255))
    return Image.alpha_composite(whole, layered).convert("RGB")


def upright(image: Any) -> Any:
    """A Pillow image as its EXIF tag says that the camera was held, as `datasets`, transformers and vLLM show it.

    One whose tags cannot be read stays as it is: its pixels can.
    """
    from PIL import ImageOps

    try:
        return ImageOps.exif_transpose(image)
    except (SyntaxError, ValueError, TypeError, struct.error):
        return image
