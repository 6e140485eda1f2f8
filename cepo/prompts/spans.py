"""The characters of a response that each of its tokens stands for.

Spans are contiguous: joined in order, the texts of the tokens are the response. A character of several tokens belongs
to the last of them; the spans of the others are empty. Example: `7` and a euro sign in three tokens have the spans
(0, 1), (1, 1), (1, 1), (1, 2).
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

Span = tuple[int, int]
"""Start and exclusive end, in characters."""
MAX_PENDING = 8
"""Tokens after which an incomplete character is given up. UTF-8 needs at most four bytes."""
_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"


def response_text(tokenizer: Any, ids: Sequence[int]) -> str:
    """Decodes token ids, including special tokens."""
    return "".join(pieces(tokenizer, ids))


def spans(tokenizer: Any, ids: Sequence[int], text: str) -> list[Span]:
    """The span of each token of a response.

    Args:
        text: the text that `ids` were encoded from, or their `response_text`.
    """
    token_texts = pieces(tokenizer, ids)
    if "".join(token_texts) == text:
        ends = [0]
        for piece in token_texts:
            ends.append(ends[-1] + len(piece))
    else:  # decoding does not restore the text, for example with a tokenizer that normalises Unicode
        starts = [start for start, _ in _offsets(tokenizer, text)]
        ends = [0, *starts[1:], len(text)] if starts else [0]
    return list(pairwise(ends))


def _offsets(tokenizer: Any, text: str) -> list[Span]:
    return tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)["offset_mapping"]


def pieces(tokenizer: Any, ids: Sequence[int]) -> list[str]:
    """The text that each token adds to the text of the tokens before it."""
    texts: list[str] = []
    context, begin = 0, 0  # tokens from `context` on are decoded together; the text of those before `begin` is returned
    for at in range(len(ids)):
        before = _decoded(tokenizer, ids[context:begin])
        now = _decoded(tokenizer, ids[context : at + 1])
        if now.endswith(_REPLACEMENT) and at + 1 < len(ids) and at + 1 - begin < MAX_PENDING:
            texts.append("")
            continue
        texts.append(now[len(before) :])
        context, begin = begin, at + 1
    return texts


def _decoded(tokenizer: Any, ids: Sequence[int]) -> str:
    return str(tokenizer.decode(ids, skip_special_tokens=False, clean_up_tokenization_spaces=False))
