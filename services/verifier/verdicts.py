"""From a response and its reference to a verdict, as far as that needs no algebra."""

from __future__ import annotations

from dataclasses import dataclass

from cepo.answers import as_number, check_kind, extract, is_words, normalise, plain, reference_of
from cepo.contracts import Outcome, Verdict

MIN_DIFFERENCE = 1e-5
"""Plain numbers further apart are different; math-verify compares six decimals, so nearer ones are left to it."""
_SHOWN_CHARACTERS = 40


@dataclass(frozen=True)
class Item:
    """One response to judge."""

    response: str
    answer: str
    """The reference."""
    kind: str = ""
    cut: bool = False
    """Whether sampling ended at max_tokens."""


@dataclass(frozen=True)
class Question:
    """An extracted answer and the reference it is compared with; equal questions have one verdict."""

    extracted: str
    reference: str

    @property
    def texts(self) -> tuple[str, str]:
        """Both sides as the algebra gets them."""
        return plain(self.extracted), plain(self.reference)

    def decide(self) -> bool | None:
        """Whether the answers are equal, where strings and plain numbers show it; None where they do not."""
        answer, reference = normalise(self.extracted), normalise(self.reference)
        if answer == reference:
            return True
        number, wanted = as_number(answer), as_number(reference)
        if number is not None and wanted is not None:
            return False if abs(number - wanted) > MIN_DIFFERENCE else None
        answer_is_text, reference_is_text = is_words(answer), is_words(reference)
        if (answer_is_text or number is not None) and (reference_is_text or wanted is not None):
            return False  # two texts are not compared as products of their letters
        return None

    def verdict(self, outcome: Outcome, reason: str) -> Verdict:
        """The verdict once the outcome is known."""
        accuracy = float(outcome is Outcome.CORRECT)
        return Verdict(
            outcome=outcome,
            reward=accuracy,
            accuracy=accuracy,
            extracted=self.extracted,
            normalised=normalise(self.extracted),
            reason=reason,
        )

    def judged(self, equal: bool) -> Verdict:
        """The verdict of a comparison that came to its end."""
        wanted = normalise(self.reference)
        wanted = wanted if len(wanted) <= _SHOWN_CHARACTERS else wanted[:_SHOWN_CHARACTERS] + "..."
        if equal:
            return self.verdict(Outcome.CORRECT, f"equals {wanted}")
        return self.verdict(Outcome.WRONG, f"differs from {wanted}")


def question(item: Item) -> Question | Verdict:
    """What to compare, or the verdict on a response without an answer.

    Raises:
        UserError: the reference holds no answer, or the kind is unknown.
    """
    check_kind(item.kind)
    reference = reference_of(item.answer)
    extracted = extract(item.response)
    if extracted is not None:
        return Question(extracted, reference)
    outcome = Outcome.TRUNCATED if item.cut else Outcome.UNPARSED
    if "\\boxed" in item.response:
        reason = "the last \\boxed{} is empty, never closes or is too long"
    else:
        reason = "neither \\boxed{...} nor '#### number'"
    return Verdict(
        outcome=outcome, reward=0.0, accuracy=0.0, reason=f"cut before an answer: {reason}" if item.cut else reason
    )
