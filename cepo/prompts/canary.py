"""The canary: fixed tokens whose log-probs show which weights an engine uses, and whether it computes as the trainer.

The text is prose with varied sums, so that a trained model is sure of most tokens and rounding changes them little. The
first tokens are scored one by one, and later ones at growing distances, up to the length that the run allows: an
engine that rotates or masks far positions otherwise is then seen. The places do not depend on that length, so that an
engine with more room scores the same ones and some more.
"""

from __future__ import annotations

FIRST_PLACES = 16
"""The first tokens, which are scored one by one."""
_OPENING = "To check the weights we add 12 and 34, write the step 12+34=46, and put 46 within \\boxed{46}."


def canary_text(sentences: int) -> str:
    """The text with a number of further sentences. Example: `... Then 27 and 61 are added: 27+61=88.`"""
    text, a, b = [_OPENING], 12, 34
    for _ in range(sentences):
        a, b = (a * 37 + 11) % 97, (b * 53 + 29) % 89
        text.append(f"Then {a} and {b} are added: {a}+{b}={a + b}.")
    return " ".join(text)


def canary_places(length: int) -> tuple[int, ...]:
    """The indices of the scored tokens in a canary of `length` tokens; each is predicted from all tokens before it.

    Example: a canary of 100 tokens is scored at 1, 2, ..., 15 and at 16, 24, 32, 48, 64, 96.
    """
    far, step = [], FIRST_PLACES
    while step < length:
        far += [step, step + step // 2]
        step *= 2
    return (*range(1, min(FIRST_PLACES, length)), *(place for place in far if place < length))
