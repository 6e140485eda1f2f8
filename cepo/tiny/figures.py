"""Problems whose numbers are only in a figure: perimeters, angles of triangles, parts of a segment.

The question is always the same two words, so a model cannot solve a problem without its figure. Each problem is a chain
of two sums, as in `cepo.tiny.task`. `python -m cepo.tiny.figures` writes the two data files.
"""

import base64
import hashlib
import json
import random
from collections.abc import Iterator
from dataclasses import dataclass
from io import BytesIO
from itertools import islice
from pathlib import Path

from PIL import Image, ImageDraw

from cepo.net.files import make_folder, replace_file
from cepo.tiny.task import DATA, SumProblem

WIDTH, HEIGHT = 96, 64
QUESTION = "Find x."
KINDS = ("perimeter", "angles", "segment")
JITTER = 2
"""Random offset of a label, in pixels."""
PIXEL = 2
"""Side of a glyph's pixel, in pixels of the figure."""
GLYPHS = {
    "0": (14, 17, 19, 21, 25, 17, 14),
    "1": (4, 12, 4, 4, 4, 4, 14),
    "2": (14, 17, 1, 2, 4, 8, 31),
    "3": (31, 2, 4, 2, 1, 17, 14),
    "4": (2, 6, 10, 18, 31, 2, 2),
    "5": (31, 16, 30, 1, 1, 17, 14),
    "6": (6, 8, 16, 30, 17, 17, 14),
    "7": (31, 1, 2, 4, 8, 8, 8),
    "8": (14, 17, 17, 14, 17, 17, 14),
    "9": (14, 17, 17, 15, 1, 2, 12),
    "x": (0, 0, 17, 10, 4, 10, 17),
}
"""Seven rows of five bits; the highest bit is the leftmost pixel."""


@dataclass(frozen=True)
class Figure:
    """A problem and the kind of figure that shows it."""

    kind: str
    problem: SumProblem

    @property
    def labels(self) -> tuple[int, ...]:
        """The numbers in the figure, in the order of their positions; the 180 of a sum of angles is not drawn."""
        problem = self.problem
        drawn = (problem.first, problem.second, problem.third)
        return drawn[1:] if self.kind == "angles" else drawn

    def draw(self) -> Image.Image:
        """Draws the figure in grey levels; the same figure gives the same image."""
        digest = hashlib.sha256(f"{self.kind} {self.problem.question}".encode()).digest()
        rng = random.Random(digest)
        image = Image.new("L", (WIDTH, HEIGHT), 255)
        pen = ImageDraw.Draw(image)
        places = _segment(pen) if self.kind == "segment" else _triangle(pen, rng, self.kind)
        for text, (left, top) in zip((*map(str, self.labels), "x"), places, strict=False):
            _write(pen, text, left + rng.randint(-JITTER, JITTER), top + rng.randint(-JITTER, JITTER))
        return image

    def png(self) -> bytes:
        """The figure as a PNG file."""
        file = BytesIO()
        self.draw().save(file, format="PNG", optimize=True)
        return file.getvalue()


def _triangle(pen: ImageDraw.ImageDraw, rng: random.Random, kind: str) -> list[tuple[int, int]]:
    apex = (48 + rng.randint(-6, 6), 3)
    pen.polygon([(4, 60), (92, 60), apex], outline=0)
    if kind == "perimeter":
        return [(4, 14), (70, 14), (37, 42)]
    pen.arc((-10, 46, 18, 74), 300, 360, fill=0)
    pen.arc((78, 46, 106, 74), 180, 240, fill=0)
    return [(21, 42), (54, 42), (43, 18)]


def _segment(pen: ImageDraw.ImageDraw) -> list[tuple[int, int]]:
    for y, ticks in ((22, (4, 92)), (42, (4, 34, 63, 92))):
        pen.line([(4, y), (92, y)], fill=0)
        for x in ticks:
            pen.line([(x, y - 3), (x, y + 3)], fill=0)
    return [(37, 4), (8, 47), (37, 47), (72, 47)]


def _write(pen: ImageDraw.ImageDraw, text: str, left: int, top: int) -> None:
    for character in text:
        for row, bits in enumerate(GLYPHS[character]):
            for column in range(5):
                if bits >> (4 - column) & 1:
                    x, y = left + PIXEL * column, top + PIXEL * row
                    pen.rectangle((x, y, x + PIXEL - 1, y + PIXEL - 1), fill=0)
        left += 6 * PIXEL


def figures(seed: int, *, held_out: bool) -> Iterator[Figure]:
    """Yields figures of one split without end and without repeats; the same seed gives the same figures."""
    rng = random.Random(seed)
    yielded: set[Figure] = set()
    while True:
        figure = _random_figure(rng)
        problem = figure.problem
        valid = problem.partial >= 0 and problem.answer > 0
        if valid and problem.held_out == held_out and figure not in yielded:
            yielded.add(figure)
            yield figure


def _random_figure(rng: random.Random) -> Figure:
    kind = rng.choice(KINDS)
    first, second, third = (rng.randint(10, 99) for _ in range(3))
    if kind == "perimeter":
        return Figure(kind, SumProblem(first, second, third, "++"))
    if kind == "angles":
        return Figure(kind, SumProblem(180, second, third, "--"))
    return Figure(kind, SumProblem(rng.randint(40, 99), rng.randint(10, 60), rng.randint(10, 60), "--"))


def write(path: Path, rows: Iterator[Figure]) -> None:
    """Writes figures as JSON lines with `question`, `answer` and `images`, a list of one data URI."""
    lines = []
    for row in rows:
        uri = "data:image/png;base64," + base64.b64encode(row.png()).decode()
        lines.append(json.dumps({"question": QUESTION, "answer": str(row.problem.answer), "images": [uri]}) + "\n")
    replace_file(path, "".join(lines))


def main() -> None:
    """Writes the training and the held-out figures."""
    make_folder(DATA)
    write(DATA / "figures_train.jsonl", islice(figures(0, held_out=False), 1024))
    write(DATA / "figures_eval.jsonl", islice(figures(1, held_out=True), 256))


if __name__ == "__main__":
    main()
