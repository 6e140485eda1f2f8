"""Token credit on a terminal: each response in colour, one sentence about it, and its strongest tokens in a table."""

from __future__ import annotations

from rich.console import Console, Group
from rich.padding import Padding
from rich.style import Style
from rich.table import Table
from rich.text import Text

from cepo.credit import CreditReply, ResponseCredit, decisive

STRONGEST = 5
"""The rows of the table of tokens."""
_RAISED, _LOWERED = ((38, 66, 48), (22, 150, 78)), ((80, 44, 44), (205, 52, 52))
"""The faintest and the strongest background of tokens that training raises, and of those that it lowers."""


def show(reply: CreditReply, console: Console, heading: str = "") -> None:
    """Prints the credit of every response of a reply, the methods in the order GRPO, RLSD, CEPO."""
    if heading:
        console.rule(heading, align="left", style="dim")
    variants = decisive.variants(reply)
    for at, response in enumerate(reply.responses):
        console.print(_title(at, response, reply.positive), soft_wrap=True)
        for each in variants:
            console.print(Text(f"  {each.method.name.upper()}", style="dim"))
            console.print(Padding(_coloured(each.responses[at], decisive.largest_change(variants, at)), (0, 0, 0, 4)))
        table = _table(response, reply.dead_band)
        if table.row_count:
            console.print(Padding(table, (0, 0, 0, 2)))
        console.print(Group(Text(f"  {decisive.told(reply, at)}", style="bold"), ""), soft_wrap=True)


def _title(at: int, response: ResponseCredit, positive: str) -> Text:
    verdict, about = decisive.heading(response, positive)
    style = "green" if response.advantage > 0 else "red" if response.advantage < 0 else ""
    title = Text(f"response {at}: ", style="bold").append(verdict, style=style)
    return title.append(f", {about}", style="not bold dim")


def _coloured(response: ResponseCredit, largest: float) -> Text:
    """The text; tokens that get more than an equal share are green, those that get less red."""
    text = Text()
    for token in response.tokens:
        share = decisive.share_of_change(response, token, largest)
        text.append(decisive.visible(token.text), style=_style(share))
    return text


def _style(share: float) -> Style:
    if not share:
        return Style()
    faintest, strongest = _RAISED if share > 0 else _LOWERED
    levels = (round(low + abs(share) * (high - low)) for low, high in zip(faintest, strongest, strict=True))
    red, green, blue = levels
    return Style(color="#ffffff", bgcolor=f"#{red:02x}{green:02x}{blue:02x}")


def _table(response: ResponseCredit, dead_band: float) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    for name in ("token", "of", "line", "delta", "log p(r+)", "log p(r-)", "weight", "advantage"):
        table.add_column(name, justify="left" if name in ("token", "of") else "right")
    for token in decisive.strongest_tokens(response, dead_band, STRONGEST):
        table.add_row(
            Text(repr(decisive.visible(token.text))[1:-1]),
            Text(decisive.visible(decisive.word(response.text, token))),
            str(decisive.line_of(response.text, token)),
            f"{token.delta:+.2f}",
            _number(token.logp_positive),
            _number(token.logp_negative),
            f"{token.weight_clipped:.2f}" + (" (clipped)" if token.clipped else ""),
            f"{token.advantage:+.3f}",
        )
    return table


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"
