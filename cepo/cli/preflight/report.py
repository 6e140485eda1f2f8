"""The report of `cepo check`: lines and drawings on a terminal, and one HTML page."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Sequence
from html import escape
from itertools import zip_longest

from rich.color import Color
from rich.console import Console
from rich.style import Style
from rich.text import Text

from cepo.cli.preflight.examples import ExamplePrompt
from cepo.cli.preflight.preflight import CheckFinding
from cepo.pages import shared_style
from cepo.prompts.pixels import picture

MARKS = {"ok": ("ok  ", "green"), "note": ("note", "yellow"), "fail": ("FAIL", "bold red")}
HEAD_CHARACTERS = 160
TAIL_CHARACTERS = 300
CONTEXT_CHARACTERS = 80
DRAWING_PIXELS = 96
"""The largest width and height of a drawing; a character shows two pixels, one above the other."""
PAGE = """<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{name}</title>
<style>
{style}
main {{ padding-bottom: 2rem; }}
main > * {{ min-width: 0; }}
h1 {{ overflow-wrap: anywhere; padding: 1.75rem 0 .5rem; }}
pre {{ white-space: pre-wrap; overflow-wrap: anywhere; margin: .6rem 0 0; font: .92rem/1.5 var(--mono); }}
h2 {{ text-transform: none; letter-spacing: 0; font-size: .9rem; }}
figure {{ margin: 0; }}
figcaption {{ color: var(--soft); overflow-wrap: anywhere; }}
img {{ max-width: 100%; min-width: 12rem; border: 1px solid var(--line); border-radius: 9px; background: #fff; }}
mark {{ background: rgb(var(--up) / .3); color: inherit; border-radius: 4px; }}
dl {{ display: grid; grid-template-columns: 3.2rem 6rem 1fr; gap: .35rem .8rem; margin: 0; }}
dl div {{ display: contents; }}
dt, dd {{ margin: 0; overflow-wrap: anywhere; min-width: 0; }}
dt {{ font-weight: 600; }}
.ok {{ color: rgb(var(--up)); }} .note {{ color: var(--soft); }} .fail {{ color: var(--warn); font-weight: 700; }}
@media (max-width: 46rem) {{
  dl {{ grid-template-columns: 3.2rem 1fr; }}
  dl dd:last-child {{ grid-column: 1 / -1; margin: 0 0 .5rem; }}
}}
</style>
<main>
<h1>{name}</h1>
<section class="card"><dl>{findings}</dl></section>
{figures}
{prompts}
</main>
</html>
"""


def print_finding(console: Console, finding: CheckFinding) -> None:
    """Prints one finding as one line."""
    line = Text.assemble(state_mark(finding.state), f" {finding.check:<8} ", finding.text)
    console.print(line, soft_wrap=True)


def state_mark(state: str) -> Text:
    """The coloured word for "ok", "note" or "fail"."""
    word, style = MARKS[state]
    return Text(word, style=style)


def print_prompt(console: Console, prompt: ExamplePrompt, images: Sequence[bytes]) -> None:
    """Prints a prompt: the plain one with its images and a long middle left out, a hinted one around its hint.

    Args:
        images: the bytes of the prompt's images, or nothing; then they are only described.
    """
    console.print(Text(f"\n{prompt.title}, {prompt.tokens} tokens", style="bold"))
    if not prompt.hint:
        for number, (description, data) in enumerate(zip_longest(prompt.images, images), start=1):
            console.print(f"image {number}: {description}", soft_wrap=True)
            if data and console.color_system is not None:
                console.print(drawing(data, console.width))
    head, tail = (0, CONTEXT_CHARACTERS) if prompt.hint else (HEAD_CHARACTERS, TAIL_CHARACTERS)
    before, hint, after = prompt.parts
    if len(before) > head + tail:
        before = f"{before[:head]}[...]{before[-tail:]}"
    marked = f">>{hint}<<" if hint else ""
    console.print(Text.assemble((before, "dim"), (marked, "bold cyan"), (after, "dim")), soft_wrap=True)


def drawing(data: bytes, columns: int) -> Text:
    """An image in half-block characters, for a terminal of `columns` columns.

    Example: an image of 96 x 64 pixels becomes 32 lines of 96 characters.
    """
    image = picture(data)
    image.thumbnail((min(DRAWING_PIXELS, columns), DRAWING_PIXELS))
    width, height = image.size
    text = Text()
    for y in range(0, height, 2):
        for x in range(width):
            upper, lower = image.getpixel((x, y)), image.getpixel((x, min(y + 1, height - 1)))
            text.append("\u2580", Style(color=Color.from_rgb(*upper), bgcolor=Color.from_rgb(*lower)))
        text.append("\n")
    return text


def html_page(
    name: str, findings: Iterable[CheckFinding], prompts: Sequence[ExamplePrompt], images: Sequence[bytes]
) -> str:
    """The findings, the images of the example and its prompts with marked hints, as one HTML document."""
    figures = zip(images, prompts[0].images, strict=True) if images else ()
    return PAGE.format(
        name=escape(name),
        style=shared_style(),
        findings="\n".join(map(_line, findings)),
        figures="\n".join(_figure(number, *figure) for number, figure in enumerate(figures, start=1)),
        prompts="\n".join(map(_section, prompts)),
    )


def _line(finding: CheckFinding) -> str:
    kind = finding.state if finding.state in MARKS else "note"
    cells = f"<dt>{escape(finding.check)}</dt><dd>{escape(finding.text)}</dd>"
    return f'<div><dd class="{kind}">{escape(finding.state)}</dd>{cells}</div>'


def _figure(number: int, data: bytes, description: str) -> str:
    kind, caption = escape(description.partition(",")[0]), escape(f"image {number}: {description}")
    source = f"data:{kind};base64,{base64.b64encode(data).decode()}"
    image = f'<img src="{source}" alt="{caption}"><figcaption>{caption}</figcaption>'
    return f'<figure class="card">{image}</figure>'


def _section(prompt: ExamplePrompt) -> str:
    before, hint, after = prompt.parts
    marked = f"<mark>{escape(hint)}</mark>" if hint else ""
    return (
        f'<section class="card"><h2>{escape(prompt.title)}, {prompt.tokens} tokens</h2>\n'
        f"<pre>{escape(before)}{marked}{escape(after)}</pre></section>"
    )
