"""Token credit on a terminal: each response in colour, one sentence about it, and its strongest tokens in a table."""

from __future__ import annotations

import re
from collections.abc import Mapping

from rich.console import Console, Group
from rich.padding import Padding
from rich.style import Style
from rich.table import Table
from rich.text import Text

from cepo.credit import METHODS, CreditReply, CreditRequest, Method, ResponseCredit, Token, Variant

STRONGEST = 5
"""The rows of the table of tokens."""
DECISIVE = 0.5
"""The first token with this share of the strongest delta is the one at which a response is decided."""
FAINT = 0.05
"""The share of the largest change below which a token has no colour."""
_RAISED, _LOWERED = ((38, 66, 48), (22, 150, 78)), ((80, 44, 44), (205, 52, 52))
"""The faintest and the strongest background of tokens that training raises, and of those that it lowers."""
_WORD = re.compile(r"\w+(?:[.,]\w+)*")
_CONTROLS = {code: "\ufffd" for code in (*range(0x20), *range(0x7F, 0xA0)) if code not in (0x09, 0x0A)}
"""A response may hold escape sequences, which would command the terminal."""


def with_rlsd(request: CreditRequest) -> CreditRequest:
    """The request, compared with RLSD if it is one of CEPO and compares nothing."""
    if request.method.name != "cepo" or request.compare:
        return request
    return request.model_copy(update={"compare": [Variant(method=Method(name="rlsd", lam=request.method.lam))]})


def show(reply: CreditReply, console: Console, heading: str = "") -> None:
    """Prints the credit of every response of a reply, the methods in the order GRPO, RLSD, CEPO."""
    if heading:
        console.rule(heading, align="left", style="dim")
    variants = sorted([*reply.compared, reply], key=lambda each: -METHODS.index(each.method.name))
    for at, response in enumerate(reply.responses):
        console.print(_title(at, response, reply.positive), soft_wrap=True)
        for each in variants:
            console.print(Text(f"  {each.method.name.upper()}", style="dim"))
            console.print(Padding(_coloured(each.responses[at], _largest(variants, at)), (0, 0, 0, 4)))
        table = _table(response, reply.dead_band)
        if table.row_count:
            console.print(Padding(table, (0, 0, 0, 2)))
        told = sentence({each.method.name: each.responses[at] for each in [reply, *reply.compared]}, reply.dead_band)
        console.print(Group(Text(f"  {told}", style="bold"), ""), soft_wrap=True)


def sentence(credits: Mapping[str, ResponseCredit], dead_band: float) -> str:
    """Where a response was decided. Example: "went wrong at `130` in line 2".

    Args:
        credits: the response under each method; the first method that has a decisive token is the one that is told.
    """
    first, *others = credits
    response = credits[first]
    if response.advantage == 0:
        return "no credit: the advantage is 0, because every response has the same reward"
    if token := _decisive(response, dead_band):
        said = "went wrong at" if response.advantage < 0 else "decided at"
        return f"{said} {_place(response, token)}"
    what = "blames" if response.advantage < 0 else "credits"
    for name in others:
        if token := _decisive(credits[name], dead_band):
            return f"{first.upper()} {what} no token; {name.upper()} {what} {_place(credits[name], token)}"
    return "no token stands out"


def _decisive(response: ResponseCredit, dead_band: float) -> Token | None:
    """The first token with DECISIVE of the strongest evidence: against a wrong response, or for a right one."""
    sign = 1 if response.advantage > 0 else -1
    strongest = max((sign * token.delta for token in response.tokens), default=0.0)
    if strongest <= dead_band:
        return None
    return next(token for token in response.tokens if sign * token.delta >= DECISIVE * strongest)


def _place(response: ResponseCredit, token: Token) -> str:
    return f"`{_visible(word(response.text, token))}` in line {_line(response.text, token)}"


def word(text: str, token: Token) -> str:
    """The whole word or number that a token is part of. Example: the token "1" of "58=131" gives "131"."""
    for match in _WORD.finditer(text):
        if match.end() > token.start and match.start() < token.end:
            return match.group()
    return _visible(token.text).strip() or "a line end"


def _title(at: int, response: ResponseCredit, positive: str) -> Text:
    grade = response.grade.outcome if response.grade else ("above" if response.advantage > 0 else "below") + " the mean"
    reward = "" if response.reward is None else f", reward {response.reward:g}"
    negative = response.negative
    source = f" from response {negative.source}" if negative.source >= 0 else ""
    contrast = f"r+ {positive}, r- {negative.answer}{source}" if negative.answer else f"r+ {positive}, no r-"
    style = "green" if response.advantage > 0 else "red" if response.advantage < 0 else ""
    title = Text(f"response {at}: ", style="bold").append(_visible(grade), style=style)
    return title.append(_visible(f"{reward}, advantage {response.advantage:+.2f}, {contrast}"), style="not bold dim")


def _largest(variants: list[CreditReply], at: int) -> float:
    """The largest change of an advantage that the clip allows in any variant: one scale for all of them."""
    advantage = abs(variants[0].responses[at].advantage)
    return advantage * max(each.method.lam * (each.method.eps_w or 0.0) for each in variants) or 1.0


def _coloured(response: ResponseCredit, largest: float) -> Text:
    """The text; tokens that get more than an equal share are green, those that get less red."""
    text = Text()
    for token in response.tokens:
        change = (token.advantage - response.advantage) / largest
        text.append(_visible(token.text), style=_style(change))
    return text


def _style(change: float) -> Style:
    share = min(1.0, abs(change))
    if share < FAINT:
        return Style()
    faintest, strongest = _RAISED if change > 0 else _LOWERED
    red, green, blue = (round(low + share * (high - low)) for low, high in zip(faintest, strongest, strict=True))
    return Style(color="#ffffff", bgcolor=f"#{red:02x}{green:02x}{blue:02x}")


def _table(response: ResponseCredit, dead_band: float) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    for name in ("token", "of", "line", "delta", "log p(r+)", "log p(r-)", "weight", "advantage"):
        table.add_column(name, justify="left" if name in ("token", "of") else "right")
    beyond = [token for token in response.tokens if abs(token.delta) > dead_band]
    for token in sorted(beyond, key=lambda token: -abs(token.delta))[:STRONGEST]:
        table.add_row(
            Text(repr(_visible(token.text))[1:-1]),
            Text(_visible(word(response.text, token))),
            str(_line(response.text, token)),
            f"{token.delta:+.2f}",
            _number(token.logp_positive),
            _number(token.logp_negative),
            f"{token.weight_clipped:.2f}" + (" (clipped)" if token.clipped else ""),
            f"{token.advantage:+.3f}",
        )
    return table


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def _line(text: str, token: Token) -> int:
    return text.count("\n", 0, token.start) + 1


def _visible(text: str) -> str:
    return text.translate(_CONTROLS)
