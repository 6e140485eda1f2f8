"""The spans of tokens in the text of a response."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings, strategies as st

from cepo.prompts.spans import response_text, spans
from tests.helpers.scorers import RENDERER

TOKENIZER = RENDERER.tokenizer
TEXTS = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
IDS = st.lists(st.integers(0, len(TOKENIZER) - 1), max_size=40)


def ids_of(text: str) -> list[int]:
    return TOKENIZER.encode(text, add_special_tokens=False)


def pieces(ids: list[int], text: str) -> list[str]:
    return [text[start:end] for start, end in spans(TOKENIZER, ids, text)]


@given(TEXTS)
@settings(max_examples=200, deadline=None)
def test_the_tokens_of_a_text_put_together_are_the_text(text: str) -> None:
    ids = ids_of(text)
    token_spans = spans(TOKENIZER, ids, text)
    assert "".join(text[start:end] for start, end in token_spans) == text
    assert [start for start, _ in token_spans] == [0, *(end for _, end in token_spans[:-1])][: len(ids)]


@given(IDS)
@settings(max_examples=200, deadline=None)
def test_any_ids_have_spans_even_where_they_are_no_text(ids: list[int]) -> None:
    text = response_text(TOKENIZER, ids)
    token_spans = spans(TOKENIZER, ids, text)
    assert len(token_spans) == len(ids)
    assert "".join(text[start:end] for start, end in token_spans) == text


def test_a_character_of_several_tokens_belongs_to_the_last() -> None:
    text = "a\u00e9\U0001f600b"
    ids = ids_of(text)
    assert len(ids) == 8
    assert pieces(ids, text) == ["a", "", "\u00e9", "", "", "", "\U0001f600", "b"]


def test_special_tokens_are_part_of_the_text() -> None:
    assert pieces(ids_of("5<|im_end|>"), "5<|im_end|>") == ["5", "<|im_end|>"]
    assert response_text(TOKENIZER, [*ids_of("5"), 2]) == "5<|im_end|>"


def test_an_empty_response_has_no_spans() -> None:
    assert spans(TOKENIZER, [], "") == []
    assert response_text(TOKENIZER, []) == ""


class Normalising:
    """A tokenizer that composes characters, as Qwen's does, so that decoding does not restore the text."""

    def __call__(self, text: str, **_: Any) -> dict[str, Any]:
        return {"offset_mapping": [(0, 1), (1, 3), (3, 4)]}

    def decode(self, ids: list[int], **_: Any) -> str:
        return "".join({1: "c", 2: "\u00e9", 3: "s"}[token] for token in ids)


@pytest.mark.parametrize("text", ["ce\u0301s"])
def test_offsets_stay_those_of_the_text_that_was_sent(text: str) -> None:
    token_spans = spans(Normalising(), [1, 2, 3], text)
    assert [text[start:end] for start, end in token_spans] == ["c", "e\u0301", "s"]
