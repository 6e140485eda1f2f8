"""What `cepo check` shows of images: drawn in the terminal, and on a page with the prompts."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Sequence
from html import escape
from typing import TYPE_CHECKING

from rich.color import Color
from rich.style import Style
from rich.text import Text

from cepo.data.rows import column, folder_of, read_rows
from cepo.prompts.images import cells, read
from cepo.prompts.pixels import picture

if TYPE_CHECKING:
    from cepo.cli.preflight.preflight import Finding, Preflight, Prompt

COLUMNS = 96
"""Characters that a drawing is wide and pixels that it is high, at most."""
PAGE = """<!doctype html>
<meta charset="utf-8">
<title>{name}</title>
<style>
body {{ font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }}
body {{ color: #1a1a1a; background: #fff; }}
pre {{ white-space: pre-wrap; overflow-wrap: anywhere; background: #f4f4f4; padding: 1rem; }}
figure {{ margin: 1rem 0; }}
img {{ max-width: 100%; min-width: 12rem; border: 1px solid #ccc; }}
mark {{ background: #ffe08a; }}
td {{ padding: 0 1rem 0 0; vertical-align: top; }}
</style>
<h1>{name}</h1>
<table>{findings}</table>
{figures}
{prompts}
"""


def pictures(run: Preflight) -> list[bytes]:
    """The images of the first training problem, as they are in its data set."""
    problem, data = run.train.problems[0], run.config.data
    if not problem.images:
        return []
    row = read_rows(data.train, data.split, "data.train")[problem.row]
    return [read(cell, folder_of(data.train)) for cell in cells(column(row, run.train.columns.images))]


def drawing(data: bytes, columns: int) -> Text:
    """An image in half blocks, two pixels a character, in a terminal that has so many columns."""
    image = picture(data)
    image.thumbnail((min(COLUMNS, columns), COLUMNS))
    width, height = image.size
    text = Text()
    for y in range(0, height, 2):
        for x in range(width):
            upper, lower = image.getpixel((x, y)), image.getpixel((x, min(y + 1, height - 1)))
            text.append("\u2580", Style(color=Color.from_rgb(*upper), bgcolor=Color.from_rgb(*lower)))
        text.append("\n")
    return text


def page(name: str, findings: Iterable[Finding], prompts: Sequence[Prompt], images: Sequence[bytes]) -> str:
    """One file: the findings, the images of the example and its prompts with the hints marked."""
    rows = [(finding.state, finding.check, finding.text) for finding in findings]
    shown = zip(images, prompts[0].images, strict=True)
    return PAGE.format(
        name=escape(name),
        findings="\n".join(f"<tr>{''.join(f'<td>{escape(cell)}</td>' for cell in row)}</tr>" for row in rows),
        figures="\n".join(_figure(number, *each) for number, each in enumerate(shown, start=1)),
        prompts="\n".join(map(_section, prompts)),
    )


def _figure(number: int, data: bytes, what: str) -> str:
    kind, caption = escape(what.partition(",")[0]), escape(f"image {number}: {what}")
    source = f"data:{kind};base64,{base64.b64encode(data).decode()}"
    return f'<figure><img src="{source}" alt="{caption}"><figcaption>{caption}</figcaption></figure>'


def _section(prompt: Prompt) -> str:
    before, hint, after = prompt.parts
    marked = f"<mark>{escape(hint)}</mark>" if hint else ""
    return (
        f"<h2>{escape(prompt.title)}, {prompt.tokens} tokens</h2>\n<pre>{escape(before)}{marked}{escape(after)}</pre>"
    )
