"""Figures of the tiny task as in a run: images by content, prompts, and the model that reads them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from io import BytesIO
from itertools import islice
from typing import Any

from PIL import Image

from cepo.messages.groups import ImageRef, Message
from cepo.messages.hints import INSTRUCTION
from cepo.model.forward import load_causal_lm
from cepo.model.vision import Features, image_features
from cepo.prompts.images import checked
from cepo.prompts.pixels import Patches
from cepo.prompts.renderer import Renderer
from cepo.tiny import vision
from cepo.tiny.figures import HEIGHT, QUESTION, WIDTH, Figure, figures

MODEL = str(vision.path())
RENDERER = Renderer(MODEL)
TURN = (Message(role="user", content=f"<image>{QUESTION}\n{INSTRUCTION}"),)


@dataclass(frozen=True)
class Picture:
    """The bytes of an image and their name."""

    data: bytes
    ref: ImageRef

    @property
    def patches(self) -> Patches:
        return RENDERER.pixels.patches(self.ref, self.data)

    @property
    def features(self) -> Features:
        return image_features(model(), self.patches)


def picture_of(data: bytes) -> Picture:
    return Picture(data, checked(data))


def one_colour(width: int, height: int, colour: tuple[int, ...] = (255, 255, 255)) -> bytes:
    """A PNG file."""
    file = BytesIO()
    Image.new("RGB" if len(colour) == 3 else "RGBA", (width, height), colour).save(file, format="PNG")
    return file.getvalue()


def drawn(width: int, height: int, colour: tuple[int, ...] = (255, 255, 255)) -> Picture:
    """An image of one colour."""
    return picture_of(one_colour(width, height, colour))


BLANK = drawn(WIDTH, HEIGHT)


@cache
def held_out(count: int) -> tuple[tuple[Figure, Picture], ...]:
    """Figures that the model was not trained on."""
    found = islice(figures(1, held_out=True), count)
    return tuple((figure, picture_of(figure.png())) for figure in found)


@cache
def model() -> Any:
    return load_causal_lm(MODEL, "float32", "cpu")


def ids_of(text: str) -> list[int]:
    return list(RENDERER.tokenizer.encode(text))
