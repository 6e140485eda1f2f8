"""A reply in a notebook: the heat map as HTML and as a plot, and the tokens as a pandas DataFrame."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator
from html import escape
from typing import TYPE_CHECKING, Any

from cepo.credit.decisive import heading, largest_change, share_of_change, told, variants, visible
from cepo.errors import UserError

if TYPE_CHECKING:
    from cepo.credit.reply import CreditReply, ResponseCredit, Token

SHOWN = 8
"""The responses of a reply that the heat map shows."""
COLUMNS = 88
"""The characters of a line of the plot."""
_UP, _DOWN = (22, 150, 70), (214, 48, 49)
_INCHES_A_COLUMN, _INCHES_A_LINE = 0.088, 0.24
_BLOCK = "font-family:system-ui,sans-serif;line-height:1.5;max-width:60rem;overflow-wrap:anywhere"
_GRID = "display:grid;grid-template-columns:3.5rem 1fr;gap:.2rem .6rem;align-items:baseline"
_TEXT = "white-space:pre-wrap;font-family:ui-monospace,Menlo,Consolas,'DejaVu Sans Mono',monospace;line-height:1.7"
_SOFT = "opacity:.65;font-size:.9em"


def summary(reply: CreditReply) -> str:
    """A line for each response. Example: "response 1: wrong, went wrong at `92` in line 2"."""
    lines = [f"{reply.method.name} credit of {len(reply.responses)} responses, r+ {visible(reply.positive)}"]
    for at, response in enumerate(reply.responses):
        lines.append(f"  response {at}: {heading(response, reply.positive)[0]}, {told(reply, at)}")
    return "\n".join(lines)


def html(reply: CreditReply) -> str:
    """The heat map as an HTML fragment without scripts; it fits light and dark notebooks."""
    replies = variants(reply)
    parts = [_html_of_response(reply, replies, at) for at in range(min(SHOWN, len(reply.responses)))]
    if (more := len(reply.responses) - SHOWN) > 0:
        parts.append(f'<p style="{_SOFT}">and {more} more; .frame() has all of them</p>')
    return f'<div style="{_BLOCK}">{"".join(parts)}</div>'


def frame(reply: CreditReply) -> Any:
    """A pandas DataFrame with a row for each token of each response under each method.

    Raises:
        UserError: pandas is not installed.
    """
    try:
        import pandas
    except ImportError as error:
        raise UserError("frame() needs pandas; install it with `pip install pandas`") from error
    rows = [
        {
            "response": at,
            "method": each.method.name,
            "policy": each.policy.name,
            "outcome": response.grade.outcome if response.grade else None,
            "reward": response.reward,
            "token": number,
            **token.model_dump(),
        }
        for each in [reply, *reply.compared]
        for at, response in enumerate(each.responses)
        for number, token in enumerate(response.tokens)
    ]
    return pandas.DataFrame(rows)


def axes(reply: CreditReply, at: int) -> Any:
    """Draws the heat map of a response and returns the matplotlib Axes.

    Args:
        at: the index of the response.

    Raises:
        UserError: matplotlib is not installed, or there is no such response.
    """
    try:
        from matplotlib import pyplot
        from matplotlib.patches import Rectangle
    except ImportError as error:
        raise UserError("plot() needs matplotlib; install it with `pip install matplotlib`") from error
    if not 0 <= at < len(reply.responses):
        raise UserError(f"response={at}: the reply has responses 0 to {len(reply.responses) - 1}")
    replies = variants(reply)
    largest = largest_change(replies, at)
    verdict, about = heading(reply.responses[at], reply.positive)
    titles = [f"response {at}: {verdict}, {about}", told(reply, at)]
    blocks = [(each.method.name.upper(), list(_cells(each.responses[at], largest))) for each in replies]
    columns = min(COLUMNS, max(_WIDTH_OF_NAMES + column + width for _, b in blocks for _, column, width, _, _ in b))
    heights = [1 + max((line for line, *_ in cells), default=0) for _, cells in blocks]
    lines = sum(heights) + 0.5 * (len(blocks) - 1)
    width = max(columns, *map(len, titles)) * _INCHES_A_COLUMN
    _, drawn = pyplot.subplots(figsize=(width, (lines + 2.2) * _INCHES_A_LINE))
    font = {"family": "monospace", "fontsize": _INCHES_A_COLUMN * 72 / 0.602, "va": "center"}
    top = 0.0
    for (name, cells), height in zip(blocks, heights, strict=True):
        drawn.text(0, top + 0.5, name, color="#777777", **font)
        for line, column, wide, text, share in cells:
            x, y = _WIDTH_OF_NAMES + column, top + line
            colour = (*(part / 255 for part in (_UP if share > 0 else _DOWN)), 0.75 * abs(share))
            drawn.add_patch(Rectangle((x, y + 0.06), wide, 0.88, color=colour, linewidth=0))
            drawn.text(x, y + 0.5, text, parse_math=False, **font)
        top += height + 0.5
    drawn.set(xlim=(0, width / _INCHES_A_COLUMN), ylim=(lines, 0))
    drawn.set_axis_off()
    drawn.set_title("\n".join(titles), loc="left", fontsize=9, parse_math=False)
    drawn.figure.subplots_adjust(left=0, right=1, bottom=0, top=lines / (lines + 2.2))
    return drawn


_WIDTH_OF_NAMES = 6
"""The columns of the plot before the text, which hold the method."""


def _cells(response: ResponseCredit, largest: float) -> Iterator[tuple[int, int, int, str, float]]:
    """(line, column, width, text, share) of each piece of a token; lines wrap where the plot ends."""
    line = column = 0
    for token in response.tokens:
        share = share_of_change(response, token, largest)
        for number, piece in enumerate(visible(token.text).replace("\t", "  ").split("\n")):
            if number:
                line, column = line + 1, 0
            if not piece:
                continue
            wide = sum(2 if unicodedata.east_asian_width(character) in "WF" else 1 for character in piece)
            if column and _WIDTH_OF_NAMES + column + wide > COLUMNS:
                line, column = line + 1, 0
            yield line, column, wide, piece, share
            column += wide


def _html_of_response(reply: CreditReply, replies: list[CreditReply], at: int) -> str:
    response, largest = reply.responses[at], largest_change(replies, at)
    verdict, about = heading(response, reply.positive)
    colour = _UP if response.advantage > 0 else _DOWN
    title = (
        f'<b>response {at}: <span style="color:rgb{colour}">{escape(verdict)}</span></b> '
        f'<span style="{_SOFT}">{escape(about)}</span>'
    )
    rows = "".join(
        f'<span style="{_SOFT}">{each.method.name.upper()}</span>'
        f'<span style="{_TEXT}">{"".join(_spans(each.responses[at], largest, reply.dead_band))}</span>'
        for each in replies
    )
    return (
        f'<div style="margin:.5rem 0 1rem">{title}<div style="{_GRID}">{rows}</div>'
        f"<b>{escape(told(reply, at))}</b></div>"
    )


def _spans(response: ResponseCredit, largest: float, dead_band: float) -> Iterator[str]:
    for token in response.tokens:
        share = share_of_change(response, token, largest)
        text = escape(visible(token.text))
        if not share and abs(token.delta) <= dead_band:
            yield text
            continue
        red, green, blue = _UP if share > 0 else _DOWN
        style = f"background:rgba({red},{green},{blue},{0.75 * abs(share):.2f});border-radius:3px"
        yield f'<span title="{escape(_numbers(token))}" style="{style}">{text}</span>'


def _numbers(token: Token) -> str:
    logps = {"": token.logp_plain, "r+": token.logp_positive, "r-": token.logp_negative}
    given = [f"log p({name}) {value:.2f}" for name, value in logps.items() if value is not None]
    clipped = f", clipped to {token.weight_clipped:.2f}" if token.clipped else ""
    credit = f"delta {token.delta:+.2f}, weight {token.weight:.3g}{clipped}, advantage {token.advantage:+.3f}"
    return ", ".join([credit, *given])
