"""Reasoning steps: where a text splits, and which token ends each step."""

from __future__ import annotations

import random
from itertools import accumulate, pairwise

import pytest

import cepo.tiny
from cepo.prompts.renderer import Renderer
from cepo.prompts.steps import split_steps, step_ends, steps

RENDERER = Renderer(str(cepo.tiny.path()))


def ends_of(pieces: list[str], delimiter: str = "\n") -> tuple[int, ...]:
    """The step ends of a response whose tokens are these pieces of text."""
    lengths = [0, *accumulate(map(len, pieces))]
    return step_ends(len(pieces), lengths.__getitem__, split_steps("".join(pieces), delimiter))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("first\nsecond\nthird", ["first", "\nsecond", "\nthird"]),
        ("\n\nfirst\n\nsecond\n", ["\n\nfirst", "\n\nsecond\n"]),
        ("one", ["one"]),
        ("", [""]),
        (" \n \n", [" \n \n"]),
    ],
)
def test_a_text_splits_at_its_delimiters_and_blank_pieces_join_the_next(text: str, expected: list[str]) -> None:
    assert steps(text, "\n") == expected


def test_steps_split_at_any_delimiter() -> None:
    assert split_steps("a. b. c", ". ") == [1, 4, 7]


@pytest.mark.parametrize("seed", range(6))
def test_each_token_belongs_to_the_step_of_its_first_character_and_the_end_of_sequence_to_the_last(seed: int) -> None:
    draw = random.Random(seed)
    text = "".join(draw.choice("ab .\n") for _ in range(40)) + "x"
    cuts = sorted({0, len(text), *(draw.randrange(len(text)) for _ in range(15))})
    ends = split_steps(text)
    step_of_character = [k for k, step in enumerate(pairwise([0, *ends])) for _ in range(*step)]
    step_of_token = [*(step_of_character[start] for start in cuts[:-1]), len(ends) - 1]
    expected = [sum(step <= k for step in step_of_token) for k in range(len(ends))]
    assert ends_of([*(text[start:end] for start, end in pairwise(cuts)), ""]) == tuple(expected)


def test_a_step_in_which_no_token_starts_ends_where_the_step_before_does() -> None:
    assert ends_of(["ab", "c\nd\ne", "f"]) == (2, 2, 3)


def test_a_response_without_a_boundary_is_one_step_and_so_is_an_empty_one() -> None:
    assert ends_of(["a", "b", ""]) == (3,)
    assert ends_of([""]) == (1,)
    assert ends_of([]) == (0,)


@pytest.mark.parametrize("text", ["3+4=7\n\u20ac 7 \n\n\\boxed{7}", "one line", "", "\u20ac\u20ac\n\U0001f600\n1"])
def test_the_tokens_up_to_the_end_of_a_step_hold_its_text(text: str) -> None:
    ids = (*RENDERER.tokenizer(text)["input_ids"], *RENDERER.stop_ids)
    counts = RENDERER.step_ends(ids, "\n")
    assert len(counts) == len(steps(text, "\n"))
    assert counts[-1] == len(ids)
    for count, end in zip(counts, split_steps(text), strict=True):
        assert len(RENDERER.text(ids[:count])) >= end
        assert count == len(ids) or count == 0 or len(RENDERER.text(ids[: count - 1])) < end
