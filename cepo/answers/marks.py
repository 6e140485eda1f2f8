r"""The marks by which a response points out its answer: the grammar, and a scanner that yields every mark of a text.

    mark  = box | tag | hash | line
    box   = ("\boxed" | "\fbox" | "\framebox") ("{" content "}" | number | letter)
    tag   = "<answer>" content "</answer>", and the same with "final_answer"
    hash  = "####" value                                 (a value, not a heading)
    line  = bullet? cue ":" (content | newline+ content)  (a cue such as `Answer`, `The final answer`, `Correct option`)

A line starts a paragraph or follows a sentence. It may be bold, a heading, a list item, code or the text of a formula,
and a heading needs no colon. The scan is linear in the text: braces are matched with one stack, and no pattern
backtracks over more than its own match.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

Sort = Literal["box", "tag", "hash", "line"]


@dataclass(frozen=True)
class Mark:
    """One mark of a text."""

    sort: Sort
    start: int
    end: int
    content: str
    """The text within the mark as written; what is there of it if the mark never closes."""
    complete: bool = True
    """Whether the mark closes."""

    @property
    def is_empty(self) -> bool:
        return not self.content.strip(" \t\n*_`$")


MAX_OPEN_CHARACTERS = 4000
"""A box or tag that is longer counts as one that never closes."""
MAX_WORDS = 15
"""A longer line below `Answer:` explains and is no answer."""
_THINKING = re.compile(r"<(/?)think(?:ing)?>", re.IGNORECASE)
_STOP = re.compile(r"<\|(?:endoftext|im_end|eot_id|end_of_text)\|>|</s>")
_RUN_ON = re.compile(r"\n[ \t]*\n[ \t*#]*(?:Question|Problem|Q|Human|User)[ \t*]*:", re.IGNORECASE)
_BRACES = re.compile(
    r"(?<!\\)\\++(?:boxed|fbox|framebox)\s*+(?:\{|([-+]?[\d.,/]*\d%?|[A-Za-z](?![A-Za-z])))|\\.|[{}]", re.DOTALL
)
_TAG = re.compile(r"<(/?)(?:final[_ -]?)?answer>", re.IGNORECASE)
_HASH = re.compile(r"(?<!#)####(?!#)[ \t]*+([^\n]*)")
_CUE = (
    r"(?:(?:so|thus|hence|therefore|and)\b,?[ \t]+)*(?:(?:the|my|our)[ \t]+)?"
    r"(?:(?:final|correct|right|best|short)[ \t]+)*(?:answer|(?<=[a-z][ \t])(?:option|choice))s?(?:\(s\))?"
    r"|(?:la[ \t]+)?respuesta(?:[ \t]+final)?|r\u00e9ponse(?:[ \t]+finale)?"
    r"|antwort|risposta|resposta|\u043e\u0442\u0432\u0435\u0442"
    r"|(?:\u6700\u7ec8)?\u7b54\u6848[\u662f\u4e3a]?|\u7b54\u3048|\uc815\ub2f5"
)
_BULLET = (
    r"(?:^[ \t>#*_`$+\u2022\u00b7\u2705\u2714\ufe0f\u2728\U0001f3af\U0001f449\U0001f4a1-]*+"
    r"(?:\(?\d{1,2}[.)][ \t]*+[*_`]*+)?"
    r"|(?<=[.!?][ \t])[*_]*+)(\\(?:text|textbf|mathbf|mathrm)\{[ \t]*+)?"
)
_LINE = re.compile(
    rf"{_BULLET}(?:{_CUE})(?:[ \t]+(?:is|are)\b)?[ \t*_`]*+[:\uff1a]([^\n]*)", re.MULTILINE | re.IGNORECASE
)
_HEADING = re.compile(
    rf"^[ \t]*+(?:#+[ \t]*+[*_]*+|\*\*|__)(?:{_CUE})[ \t]*+(?:\*\*|__)?[ \t]*+$", re.MULTILINE | re.IGNORECASE
)
_NEXT = re.compile(r"[ \t]*+(?:\n[ \t]*+){1,4}")
_BLOCKS = (("$$", "$$"), ("\\[", "\\]"), ("```", "```"))
_AMOUNT = r"[-+\u2212]?[ \t]*[$\u20ac\u00a3]?[-+\u2212]?(?:\d[\d,]*(?:\.\d+)?|\.\d+)(?:[ \t]*/[ \t]*\d+|:\d\d)?"
_UNIT = r"(?:[ \t]+[a-z$\u20ac\u00b0][\w/^\u00b2\u00b3]*){0,3}"
_VALUE = re.compile(
    rf"(?:[A-Za-z][ \t]*=[ \t]*)?{_AMOUNT}[ \t]*(?:\\?%|\u00b0)?{_UNIT}\.?"
    r"|\(?[A-J]\)?\.?|yes\.?|no\.?|true\.?|false\.?|\$[^$]+\$\.?|\\\(.+\\\)\.?|[-+]?\\[a-zA-Z].*|\d*\\[a-z].*",
    re.IGNORECASE,
)
_WORD = re.compile(r"(?<![\\\w])[^\W\d_]{2,}")
_CLOSING = re.compile(r"^[*_]+[ \t]+")
_SHORT = re.compile(r"(?!\d+[.)] |(?:step|case|part|question|problem) )[^:]{0,60}", re.IGNORECASE)


def final_part(text: str) -> str:
    """The part of a response that can hold its answer: no thinking, no special tokens, no question made up after it.

    Thinking is the text between `<think>` and `</think>`, before a `</think>` that nothing opens, and after a `<think>`
    that never closes.

    Example:
        final_part("<think>so 7</think> It is 8.")  # " It is 8."
    """
    text = _without_thinking(text)
    if stop := _STOP.search(text):
        text = text[: stop.start()]
    for run_on in _RUN_ON.finditer(text):
        before = text[: run_on.start()]
        if any(mark.complete and not mark.is_empty for mark in marks(before)):
            return before
        break
    return text


def marks(text: str) -> list[Mark]:
    """Every mark of a text in the order in which they start, those within thinking included."""
    others = [*_boxes(text), *_tags(text), *_lines(text)]
    alone = all(mark.is_empty for mark in others)
    return sorted([*others, *_hashes(text, alone=alone)], key=lambda mark: (mark.start, -mark.end))


def _without_thinking(text: str) -> str:
    kept, start, opened = [], 0, False
    for tag in _THINKING.finditer(text):
        if not tag[1]:
            if not opened:
                kept.append(text[start : tag.start()])
            opened = True
            continue
        if not opened:
            kept = []
        opened, start = False, tag.end()
    return "".join(kept) if opened else "".join([*kept, text[start:]])


def _boxes(text: str) -> Iterator[Mark]:
    """The boxes that close, and the last of those that do not."""
    opened: list[re.Match[str] | None] = []
    for token in _BRACES.finditer(text):
        if token[1]:
            yield Mark("box", token.start(), token.end(), token[1])
        elif token[0].endswith("{") and token[0] != "\\{":
            opened.append(token if len(token[0]) > 1 else None)
        elif token[0] == "}" and opened and (box := opened.pop()):
            if token.start() - box.end() <= MAX_OPEN_CHARACTERS:
                yield Mark("box", box.start(), token.end(), text[box.end() : token.start()])
            elif not opened:
                yield _unclosed("box", box, text)
    if box := next(filter(None, reversed(opened)), None):
        yield _unclosed("box", box, text)


def _unclosed(sort: Sort, opening: re.Match[str], text: str) -> Mark:
    content = text[opening.end() : opening.end() + MAX_OPEN_CHARACTERS]
    return Mark(sort, opening.start(), opening.end(), content, complete=False)


def _tags(text: str) -> Iterator[Mark]:
    opening: re.Match[str] | None = None
    for tag in _TAG.finditer(text):
        if not tag[1]:
            opening = tag
        elif opening is not None:
            yield Mark("tag", opening.start(), tag.end(), text[opening.end() : tag.start()])
            opening = None
    if opening is not None:
        yield _unclosed("tag", opening, text)


def _hashes(text: str, *, alone: bool) -> Iterator[Mark]:
    """Lines with a value; if no other mark has content, the last line may also be a short text."""
    last = len(text.rstrip())
    for line in _HASH.finditer(text):
        content = line[1][:MAX_OPEN_CHARACTERS].strip("*`_ \t\r")
        ends = line.end() >= last
        if _VALUE.fullmatch(content) or (ends and alone and _SHORT.fullmatch(content)):
            yield Mark("hash", line.start(), line.end(), content)


def _lines(text: str) -> Iterator[Mark]:
    for line in _LINE.finditer(text):
        content = _CLOSING.sub("", line[2].strip())
        if line[1]:
            content = content.removeprefix("}").strip()
        if content in ("$$", "\\[", "```"):
            content = _block(text, text.rindex(content, line.start(), line.end()))
        elif not content.strip("*_`$"):
            content = _below(text, line.end())
        yield Mark("line", line.start(), line.end(), content)
    for heading in _HEADING.finditer(text):
        yield Mark("line", heading.start(), heading.end(), _below(text, heading.end()))


def _below(text: str, at: int) -> str:
    """The next line that is not blank, or the formula or code block that it opens; empty if it is long."""
    gap = _NEXT.match(text, at)
    if gap is None:
        return ""
    if block := _block(text, gap.end()):
        return block
    line = text[gap.end() : gap.end() + MAX_OPEN_CHARACTERS].partition("\n")[0]
    return line if len(_WORD.findall(line)) <= MAX_WORDS else ""


def _block(text: str, at: int) -> str:
    for opening, closing in _BLOCKS:
        if text.startswith(opening, at):
            inner, _, _ = text[at + len(opening) : at + MAX_OPEN_CHARACTERS].partition(closing)
            return inner
    return ""
