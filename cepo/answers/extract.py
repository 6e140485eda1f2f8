r"""Finds the final answer of a response or a reference.

All functions are pure string work, linear in the text. `cepo.answers.marks` scans for marks, `cepo.answers.notation`
normalises what is found, and `cepo.answers.kinds` says how answers of different kinds compare.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import pairwise

from cepo.answers.marks import Mark, final_part, marks
from cepo.answers.notation import MAX_ANSWER_CHARACTERS, normalise
from cepo.answers.sentences import bare, first_statement
from cepo.errors import UserError

MAX_SEARCHED_CHARACTERS = 200_000
"""How many characters at the end of a text are searched for its answer; more than any context holds."""
_JOINT = re.compile(
    r"(?:\s|[$,;&]|\\[,;:! ()\[\]\\]|\\q?quad(?![a-zA-Z])|(?:and|or)\b|\\text\s*\{\s*(?:and|or|,)?\s*\}"
    r"|[A-Za-z](?:_\w)?\s*=)*+"
)
_MAX_JOINT = 60
_DENIED = re.compile(
    r"(?:\b(?:not|never|neither|cannot be|isn't|aren't|wasn't|not equal to)|n't be)[ \t]*(?:\$+|\\[(\[])?[ \t]*$",
    re.IGNORECASE,
)
"""What denies the box that it stands before: `The answer is not \\boxed{42}.`"""
_MAX_DENIAL = 24
_NAME = re.compile(r"(?<![\w\\])([A-Za-z](?:_\w)?)\s*=\s*$")


def extract(text: str) -> str | None:
    r"""The final answer of a response as it is written, or None.

    It is the content of the last complete mark that is not empty: `\boxed{...}`, `<answer>...</answer>`, `#### number`
    (GSM8K) or `Answer: ...` (DAPO). Boxes that stand side by side are one answer. It is None if there is no such mark,
    if a later one never closes, if the content is longer than MAX_ANSWER_CHARACTERS, or if the box is denied.

    Example:
        extract("so \boxed{7}")  # "7"
        extract("The roots are \boxed{2} and \boxed{3}.")  # "2, 3"
    """
    text = final_part(text[-MAX_SEARCHED_CHARACTERS:])
    every = marks(text)
    last = _deciding(every, text)
    if last is None:
        return None
    if last.sort == "box":
        if _DENIED.search(text, max(0, last.start - _MAX_DENIAL), last.start):
            return None
        answer = _side_by_side([mark for mark in every if mark.sort == "box" and mark.complete], last, text)
    else:
        answer = bare(last.content) if last.sort == "tag" else first_statement(last.content)
    answer = answer.encode("utf-8", "replace").decode("utf-8")  # a lone surrogate cannot be encoded on the wire
    return answer if normalise(answer) else None


def boxed(text: str) -> list[str]:
    """The contents of the boxes of a response that are complete and not empty, in order, without repetition."""
    boxes = [mark for mark in marks(final_part(text[-MAX_SEARCHED_CHARACTERS:])) if mark.sort == "box"]
    return list(dict.fromkeys(bare(box.content) for box in boxes if box.complete and not box.is_empty))


def is_marked(text: str) -> bool:
    """Whether a text marks its answer, even if the mark is empty."""
    return bool(marks(final_part(text[-MAX_SEARCHED_CHARACTERS:])))


def is_unfinished(text: str) -> bool:
    """Whether the last mark of a text that is not empty never closes."""
    every = [mark for mark in marks(final_part(text[-MAX_SEARCHED_CHARACTERS:])) if not mark.is_empty]
    return bool(every) and not every[-1].complete


def reference_of(text: str) -> str:
    r"""The answer that a reference stands for: the marked answer, or the whole text if it marks none.

    Raises:
        UserError: the text holds no answer; names the value.
    """
    answer = extract(text) if is_marked(text) else bare(text)
    if not answer or not normalise(answer):
        raise UserError(
            f"reference answer {shown(text)} holds no answer; write the bare answer, \\boxed{{answer}} or a solution "
            f"that ends in '#### number', of at most {MAX_ANSWER_CHARACTERS} characters"
        )
    return answer


def _deciding(every: Sequence[Mark], text: str) -> Mark | None:
    """The last complete mark with content; None if a later mark with other content was begun and never closes."""
    begun = ""
    for mark in reversed(every):
        if mark.is_empty or (not mark.complete and _is_mention(mark, text)):
            continue
        if not mark.complete:
            begun = begun or mark.content.strip()
            continue
        return mark if mark.content.strip().startswith(begun) else None
    return None


def _is_mention(mark: Mark, text: str) -> bool:
    """Whether a tag stands within a sentence: `I wrote it in <answer> tags`."""
    before = text[: mark.start].rstrip(" \t")
    return mark.sort == "tag" and bool(before) and not before.endswith(("\n", ">"))


def _side_by_side(boxes: Sequence[Mark], last: Mark, text: str) -> str:
    """The content of the last box, and of those before it with no more than `and`, `or` or a comma between them."""
    group = [last]
    for box in reversed(boxes[: boxes.index(last)]):
        gap = text[box.end : group[0].start]
        if box.end > group[0].start or len(gap) > _MAX_JOINT or not _JOINT.fullmatch(gap) or box.is_empty:
            break
        group.insert(0, box)
    contents = {normalise(box.content): bare(box.content) for box in group}
    if len(contents) == 1:
        return bare(last.content)
    names = [_NAME.search(text, max(0, box.start - 20), box.start) for box in group]
    items = list(contents.values())
    if all(names) and len(items) == len(group):
        items = [f"{name[1]}={item}" for name, item in zip(names, items, strict=True) if name]
    choice = any(re.search(r"\bor\b", text[one.end : other.start]) for one, other in pairwise(group))
    return (" or " if choice else ", ").join(items)


def shown(text: str) -> str:
    """A value in quotes for a message, cut to 60 characters."""
    return repr(text if len(text) <= 60 else text[:57] + "...")
