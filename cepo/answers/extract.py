r"""Finds the final answer of a response or a reference.

All functions are pure string work, linear in the text. `cepo.answers.notation` normalises an answer's spelling, and
`cepo.answers.kinds` says how answers of different kinds compare.
"""

from __future__ import annotations

import re

from cepo.answers.notation import MAX_ANSWER_CHARACTERS, normalise
from cepo.errors import UserError

MAX_SEARCHED_CHARACTERS = 200_000
"""How many characters at the end of a text are searched for its answer; more than any context holds."""
_BOX = re.compile(r"\\boxed\s*\{")
_BRACE = re.compile(r"\\.|[{}]", re.DOTALL)
_GSM8K = re.compile(r"####[ \t]*([-+\u2212$\u20ac\u00a3]*\d[\d,.]*%?)[ \t]*$", re.MULTILINE)
_TAG = re.compile(r"<(/?)answer>", re.IGNORECASE)
_LINE = re.compile(r"^[ \t*_#>]*(?:final[ \t]+)?answer[ \t*_]*:([^\n]*)$", re.MULTILINE | re.IGNORECASE)


def extract(text: str) -> str | None:
    r"""The final answer of a response as it is written, or None.

    It is the content of the last `\boxed{...}`; without a box, of the last `<answer>...</answer>`; without either, of
    the last line `#### number` (GSM8K) or `Answer: ...` (DAPO). It is None if there is no such mark, or if the mark is
    empty, never closes, or holds more than MAX_ANSWER_CHARACTERS.

    Example:
        extract("so \boxed{7}")  # "7"
    """
    answer = (_marked(text) or "").strip().strip("*").strip()
    answer = answer.encode("utf-8", "replace").decode("utf-8")  # a lone surrogate cannot be encoded on the wire
    return answer if normalise(answer) else None


def is_marked(text: str) -> bool:
    """Whether a text marks its answer, even if the mark is empty."""
    return _marked(text) is not None


def count_boxes(text: str) -> int:
    r"""How many times a text opens a `\boxed{`."""
    return sum(1 for _ in _BOX.finditer(text))


def reference_of(text: str) -> str:
    r"""The answer that a reference stands for: the marked answer, or the whole text if it marks none.

    Raises:
        UserError: the text holds no answer; names the value.
    """
    answer = extract(text) if is_marked(text) else text.strip()
    if not answer or not normalise(answer):
        raise UserError(
            f"reference answer {shown(text)} holds no answer; write the bare answer, \\boxed{{answer}} or a solution "
            f"that ends in '#### number', of at most {MAX_ANSWER_CHARACTERS} characters"
        )
    return answer


def _marked(text: str) -> str | None:
    """The content of the mark that decides; None if the text has no mark."""
    text = text[-MAX_SEARCHED_CHARACTERS:]
    if boxes := list(_BOX.finditer(text)):
        return _until_closed(text, boxes[-1].end())
    tags = list(_TAG.finditer(text))
    if any(not tag[1] for tag in tags):
        opening, closing = tags[-2:] if len(tags) > 1 else (tags[0], tags[0])
        return text[opening.end() : closing.start()] if closing[1] and not opening[1] else ""
    lines = [found for pattern in (_GSM8K, _LINE) for found in pattern.finditer(text)]
    return max(lines, key=lambda found: found.start())[1] if lines else None


def _until_closed(text: str, start: int) -> str:
    depth = 1
    for found in _BRACE.finditer(text, start, start + 4 * MAX_ANSWER_CHARACTERS):
        depth += {"{": 1, "}": -1}.get(found[0], 0)
        if depth == 0:
            return text[start : found.start()]
    return ""


def shown(text: str) -> str:
    """A value in quotes for a message, cut to 60 characters."""
    return repr(text if len(text) <= 60 else text[:57] + "...")
