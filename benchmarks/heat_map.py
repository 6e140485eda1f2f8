"""Draws the heat map of the README: one wrong response under GRPO, RLSD and CEPO, scored by the product.

`python -m benchmarks.heat_map` scores docs/lock.json with the tiny model of the lock task and writes docs/heat_map.png
and docs/heat_map_dark.png. The request holds a group that this model sampled in training, the wrong response first.
"""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from matplotlib import font_manager
from PIL import Image, ImageDraw, ImageFont

from cepo.cli.credit import scored
from cepo.credit import CreditReply, CreditRequest, ResponseCredit
from cepo.messages.groups import BASE_POLICY

ROOT = Path(__file__).parents[1]
REQUEST = ROOT / "docs" / "lock.json"
MODEL = ROOT / "cepo" / "tiny" / "lock_model"
PANEL, LINE, LEFT, TOP, SIZE = 322, 27, 22, 126, 17
FULL_SHADE = 0.3
"""The share of credit that gets the full colour, as on the pages."""
RED = (214, 48, 49)


class Look(NamedTuple):
    """The colours of one picture."""

    page: str
    ink: str
    soft: str
    grey: tuple[int, int, int]


LOOKS = {
    "heat_map.png": Look("#ffffff", "#16181d", "#5b6270", (225, 228, 233)),
    "heat_map_dark.png": Look("#14171c", "#e9ebf0", "#9aa2b1", (52, 58, 68)),
}


def reply_of(request: CreditRequest, model: Path) -> CreditReply:
    """The reply of the teacher, in this process."""

    async def score() -> CreditReply:
        replies = [reply async for reply in scored([request], [""], str(model), BASE_POLICY, {})]
        return replies[0]

    return asyncio.run(score())


def panels(reply: CreditReply) -> list[tuple[str, ResponseCredit]]:
    """The name of each method and its credit of the first response: GRPO, RLSD, CEPO."""
    by_name = {each.method.name: each.responses[0] for each in (reply, *reply.compared)}
    return [(name.upper(), by_name[name]) for name in ("grpo", "rlsd", "cepo")]


def shares(response: ResponseCredit) -> list[float]:
    """The credit of each token relative to an equal share; below 0: a wrong response's token is pushed down more."""
    return [1 - token.advantage / response.advantage for token in response.tokens]


def draw(question: Sequence[str], panels: Sequence[tuple[str, ResponseCredit]], look: Look, file: Path) -> None:
    """Draws a panel for each method, at twice the size for sharp text."""
    lines = panels[0][1].text.count("\n") + 1
    size = (2 * LEFT + len(panels) * PANEL, TOP + lines * LINE + 26)
    image = Image.new("RGB", (2 * size[0], 2 * size[1]), look.page)
    canvas, mono = ImageDraw.Draw(image), _font("DejaVu Sans Mono", SIZE)
    for at, text in enumerate(question):
        canvas.text((2 * LEFT, 2 * (16 + 24 * at)), text, look.ink, _font("DejaVu Sans", 16))
    for at, (name, response) in enumerate(panels):
        x, share = LEFT + at * PANEL, shares(response)
        most = max(map(abs, share))
        told = "every token gets the same blame" if most < 1e-6 else f"the wrong digit gets {most:.0%} more"
        canvas.text((2 * x, 2 * (TOP - 46)), name, look.ink, _font("DejaVu Sans", 18, "bold"))
        canvas.text((2 * (x + 66), 2 * (TOP - 43)), told, look.soft, _font("DejaVu Sans", 14))
        _tokens(canvas, x, response, share, look, mono)
    image.quantize(255, kmeans=2).save(file, optimize=True)


def _tokens(
    canvas: ImageDraw.ImageDraw,
    x: int,
    response: ResponseCredit,
    share: Sequence[float],
    look: Look,
    mono: ImageFont.FreeTypeFont,
) -> None:
    even, place, line = max(map(abs, share)) < 1e-6, 2.0 * x, 0
    for token, part in zip(response.tokens, share, strict=True):
        text = token.text.replace("\n", "")
        width, y = mono.getlength(text), 2 * (TOP + line * LINE)
        alpha = 0.8 * min(1.0, abs(part) / FULL_SHADE) ** 0.7
        base = tuple(int(look.page[i : i + 2], 16) for i in (1, 3, 5))
        colour = look.grey if even else tuple(round(b + (r - b) * alpha) for b, r in zip(base, RED, strict=True))
        if text and (even or alpha > 0.02):
            canvas.rounded_rectangle((place, y, place + width - 1, y + 2 * LINE - 8), 6, colour)
        canvas.text((place, y + 4), text, look.ink, mono)
        place += width
        if "\n" in token.text:
            place, line = 2.0 * x, line + 1


def _font(family: str, size: int, weight: str = "normal") -> ImageFont.FreeTypeFont:
    return ImageFont.truetype(
        font_manager.findfont(font_manager.FontProperties(family=family, weight=weight)), 2 * size
    )


def main() -> None:
    """Scores the request and draws it in light and dark."""
    options = argparse.ArgumentParser(description=__doc__)
    options.add_argument("--model", type=Path, default=MODEL, help="the folder of the model that scores")
    request = CreditRequest.model_validate_json(REQUEST.read_text())
    shown = panels(reply_of(request, options.parse_args().model))
    question = [
        str((request.messages or [])[0].content),
        f"right answer {request.positive}; a wrong response of the model:",
    ]
    for name, look in LOOKS.items():
        draw(question, shown, look, ROOT / "docs" / name)


if __name__ == "__main__":
    main()
