"""Extracts the answer of a response, and makes its verdict as far as that needs no algebra."""

from __future__ import annotations

from dataclasses import dataclass

from cepo.answers.choices import chosen, chosen_option, labelled_option
from cepo.answers.extract import boxed, extract, is_marked, is_unfinished
from cepo.answers.kinds import Kind, Reference
from cepo.answers.notation import normalise, plain
from cepo.answers.quantities import quantity
from cepo.answers.reading.numerals import as_number
from cepo.answers.statements import stated
from cepo.answers.structure import bracketed, elements
from cepo.messages.groups import Outcome, Verdict
from services.verifier.decisions import decide
from services.verifier.grader import Comparison, Finding

_SHOWN_CHARACTERS = 40


@dataclass(frozen=True)
class Item:
    """One response to grade."""

    response: str
    answer: str
    """The reference, as `Reference.of` reads it."""
    kind: str = ""
    cut: bool = False
    """Whether sampling stopped at max_tokens."""
    question: str = ""
    """A multiple-choice question with its options; needed only if the answer may be the text of an option."""


@dataclass(frozen=True)
class Question:
    """An extracted answer and the reference that it is compared with. Equal questions have equal verdicts."""

    extracted: str
    reference: str
    kind: Kind
    marked: bool = True
    """Whether the response marks its answer; if not, the response states it in words."""
    meant: str = ""
    """The letter of the option whose text the answer is."""

    def comparison(self) -> Comparison:
        """The two sides as the algebra takes them."""
        return Comparison(plain(self.extracted), plain(self.reference), self.kind)

    def decide(self) -> bool | None:
        """Whether the answers are equal; None if only algebra can tell, or if reading them fails."""
        try:
            return decide(self.kind, self.meant or self.extracted, self.reference)
        except Exception:  # noqa: BLE001 the worker meets the same error, which is then the outcome of this item alone
            return None

    def verdict(self, outcome: Outcome, reason: str) -> Verdict:
        """The verdict with this outcome."""
        accuracy = float(outcome is Outcome.CORRECT)
        return Verdict(
            outcome=outcome,
            reward=accuracy,
            accuracy=accuracy,
            extracted=self.extracted,
            normalised=self.meant or self._normalised(),
            reason=reason,
            format=float(self.marked),
        )

    def judged(self, equal: bool) -> Verdict:
        """The verdict of a finished comparison."""
        wanted = normalise(self.reference)
        wanted = wanted if len(wanted) <= _SHOWN_CHARACTERS else wanted[:_SHOWN_CHARACTERS] + "..."
        if equal:
            return self.verdict(Outcome.CORRECT, f"equals {wanted}")
        return self.verdict(Outcome.WRONG, f"differs from {wanted}")

    def found(self, finding: Finding) -> Verdict:
        """The verdict that follows from the algebra's finding."""
        return self.judged(finding.equal)

    def _normalised(self) -> str:
        if self.kind.name == "choice" and (letters := chosen(self.extracted, labelled_option(self.reference))):
            return ",".join(sorted(letters))
        text = normalise(self.extracted)
        value = quantity(self.extracted) if self.kind.name == "number" and as_number(text) is None else None
        return str(value.value) if value and not value.unit and not value.percent else text


def question(item: Item, reference: Reference) -> Question | Verdict:
    """What to compare, or the verdict on a response without an answer.

    Args:
        reference: that of the item; read once for all items that share it.
    """
    kind, extracted = reference.kind, extract(item.response)
    marked = extracted is not None
    if kind.anywhere and not item.cut:
        if extracted is None and not is_unfinished(item.response):
            extracted = stated(item.response, kind.name)
        elif extracted is not None:
            extracted = _of_all_boxes(item.response, reference) or extracted
    if extracted is None:
        return _unanswered(item)
    meant = chosen_option(extracted, item.question, reference.answer, kind.name) if item.question else ""
    asked = Question(extracted, reference.answer, kind, marked, meant or "")
    return asked.judged(equal=False) if meant is None else asked


def _of_all_boxes(response: str, reference: Reference) -> str:
    """The answers in all boxes of a response, if the reference lists as many; empty otherwise."""
    group = bracketed(reference.answer)
    wanted = len(group.items if group and group.is_set else elements(reference.answer))
    contents = boxed(response) if wanted > 1 else []
    single = all(len(elements(one)) == 1 and not one.startswith("\\{") for one in contents)
    return ", ".join(contents) if single and len(contents) == wanted else ""


def _unanswered(item: Item) -> Verdict:
    if is_marked(item.response):
        reason = "the last \\boxed{}, <answer> or 'Answer:' is empty, never closes, is denied or is too long"
    else:
        reason = "none of \\boxed{...}, <answer>...</answer>, '#### number' and 'Answer: ...'"
    if item.cut:
        return Verdict(outcome=Outcome.TRUNCATED, reward=0.0, accuracy=0.0, reason=f"cut before an answer: {reason}")
    return Verdict(outcome=Outcome.UNPARSED, reward=0.0, accuracy=0.0, reason=reason)
