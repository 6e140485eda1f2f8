"""Where each token stands in the text of a response, in characters.

Spans follow each other without gap or overlap, so the tokens' texts put together are the response. A character that
takes several tokens belongs to the one that completes it; the others are empty.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

Span = tuple[int, int]
MAX_PENDING = 8
"""Tokens that may wait for a character to be completed; UTF-8 needs at most four bytes."""
_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


def response_text(tokenizer: Any, ids: Sequence[int]) -> str:
    """The text of token ids, special tokens included."""
    return "".join(pieces(tokenizer, ids))


def spans(tokenizer: Any, ids: Sequence[int], text: str) -> list[Span]:
    """(start, end) of every token of a response.

    Args:
        text: what `ids` were made from, or `response_text` of them.
    """
    parts = pieces(tokenizer, ids)
    if "".join(parts) == text:
        ends = [0]
        for piece in parts:
            ends.append(ends[-1] + len(piece))
    else:  # a tokenizer that does not give back what it was given, such as one that normalises Unicode
        starts = [start for start, _ in _offsets(tokenizer, text)]
        ends = [0, *starts[1:], len(text)] if starts else [0]
    return list(pairwise(ends))


def _offsets(tokenizer: Any, text: str) -> list[Span]:
    return tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]


def pieces(tokenizer: Any, ids: Sequence[int]) -> list[str]:
    """The text each token adds to those before it."""
    parts: list[str] = []
    context, begin = 0, 0  # decoded together: tokens from `context`; those before `begin` are out already
    for at in range(len(ids)):
        before = _decoded(tokenizer, ids[context:begin])
        now = _decoded(tokenizer, ids[context : at + 1])
        if now.endswith(_REPLACEMENT) and at + 1 < len(ids) and at + 1 - begin < MAX_PENDING:
            parts.append("")
            continue
        parts.append(now[len(before) :])
        context, begin = begin, at + 1
    return parts


def _decoded(tokenizer: Any, ids: Sequence[int]) -> str:
    return str(tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))
