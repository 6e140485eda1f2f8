"""Which token decided a response, and how strongly each one counts: the words and colours of every view of a reply."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from cepo.credit.reply import CreditReply, ResponseCredit, Token
from cepo.credit.request import METHODS, CreditRequest, Method, Variant

DECISIVE = 0.5
"""The first token with this share of the strongest delta is the one at which a response is decided."""
FAINT = 0.05
"""The share of the largest change below which a token has no colour."""
_WORD = re.compile(r"\w+(?:[.,]\w+)*")
_CONTROLS = {code: "\ufffd" for code in (*range(0x20), *range(0x7F, 0xA0)) if code not in (0x09, 0x0A)}
"""A response may hold escape sequences, which would command a terminal."""


def with_rlsd(request: CreditRequest) -> CreditRequest:
    """The request, compared with RLSD if it is one of CEPO and compares nothing."""
    if request.method.name != "cepo" or request.compare:
        return request
    return request.model_copy(update={"compare": [Variant(method=Method(name="rlsd", lam=request.method.lam))]})


def variants(reply: CreditReply) -> list[CreditReply]:
    """The reply and those it is compared with, the methods in the order GRPO, RLSD, CEPO."""
    return sorted([*reply.compared, reply], key=lambda each: -METHODS.index(each.method.name))


def largest_change(replies: Sequence[CreditReply], at: int) -> float:
    """The largest change of an advantage that the clip allows in any of the replies: one scale for all of them.

    Args:
        at: the index of the response.
    """
    advantage = abs(replies[0].responses[at].advantage)
    return advantage * max(each.method.lam * (each.method.eps_w or 0.0) for each in replies) or 1.0


def share_of_change(response: ResponseCredit, token: Token, largest: float) -> float:
    """How much more than an equal share of the credit a token gets, from -1 to 1; 0 if it is below FAINT.

    A token that was given to the model, such as a tool's result, has an advantage of 0 and no share.
    """
    if not token.advantage:
        return 0.0
    share = max(-1.0, min(1.0, (token.advantage - response.advantage) / largest))
    return share if abs(share) >= FAINT else 0.0


def told(reply: CreditReply, at: int) -> str:
    """Where a response of a reply was decided, with the other methods if the first credits no token."""
    return sentence({each.method.name: each.responses[at] for each in [reply, *reply.compared]}, reply.dead_band)


def sentence(credits: Mapping[str, ResponseCredit], dead_band: float) -> str:
    """Where a response was decided. Example: "went wrong at `130` in line 2".

    Args:
        credits: the response under each method; the first method that has a decisive token is the one that is told.
    """
    first, *others = credits
    response = credits[first]
    if response.advantage == 0:
        return "no credit: the advantage is 0, because every response has the same reward"
    if token := decisive_token(response, dead_band):
        said = "went wrong at" if response.advantage < 0 else "decided at"
        return f"{said} {_place(response, token)}"
    what = "blames" if response.advantage < 0 else "credits"
    for name in others:
        if token := decisive_token(credits[name], dead_band):
            return f"{first.upper()} {what} no token; {name.upper()} {what} {_place(credits[name], token)}"
    return "no token stands out"


def decisive_token(response: ResponseCredit, dead_band: float) -> Token | None:
    """The first token with DECISIVE of the strongest evidence: against a wrong response, or for a right one."""
    sign = 1 if response.advantage > 0 else -1
    strongest = max((sign * token.delta for token in response.tokens), default=0.0)
    if strongest <= dead_band:
        return None
    return next(token for token in response.tokens if sign * token.delta >= DECISIVE * strongest)


def strongest_tokens(response: ResponseCredit, dead_band: float, count: int) -> list[Token]:
    """The tokens with the largest deltas beyond the dead band, the largest first."""
    beyond = [token for token in response.tokens if abs(token.delta) > dead_band]
    return sorted(beyond, key=lambda token: -abs(token.delta))[:count]


def heading(response: ResponseCredit, positive: str) -> tuple[str, str]:
    """The verdict of a response, and its reward, advantage and contrast."""
    grade = response.grade.outcome if response.grade else ("above" if response.advantage > 0 else "below") + " the mean"
    reward = "" if response.reward is None else f"reward {response.reward:g}, "
    negative = response.negative
    source = f" from response {negative.source}" if negative.source >= 0 else ""
    contrast = f"r+ {positive}, r- {negative.answer}{source}" if negative.answer else f"r+ {positive}, no r-"
    return visible(grade), visible(f"{reward}advantage {response.advantage:+.2f}, {contrast}")


def word(text: str, token: Token) -> str:
    """The whole word or number that a token is part of. Example: the token "1" of "58=131" gives "131"."""
    for match in _WORD.finditer(text):
        if match.end() > token.start and match.start() < token.end:
            return match.group()
    return visible(token.text).strip() or "a line end"


def line_of(text: str, token: Token) -> int:
    """The number of the line in which a token begins; the first is 1."""
    return text.count("\n", 0, token.start) + 1


def visible(text: str) -> str:
    """The text without control characters, except for tabs and line ends."""
    return text.translate(_CONTROLS)


def _place(response: ResponseCredit, token: Token) -> str:
    return f"`{visible(word(response.text, token))}` in line {line_of(response.text, token)}"
