"""Extracts the answer of a response, and makes its verdict as far as that needs no algebra."""

from __future__ import annotations

from dataclasses import dataclass, replace

from cepo.answers.choices import chosen, labelled_option, options
from cepo.answers.extract import count_boxes, extract, is_marked
from cepo.answers.kinds import WORDINGS, Kind, Reference
from cepo.answers.notation import MAX_ANSWER_CHARACTERS, as_number, normalise, plain
from cepo.answers.quantities import quantity
from cepo.answers.statements import stated
from cepo.messages.groups import Outcome, Verdict
from services.verifier.decisions import decide
from services.verifier.grader import Comparison, Finding

TAIL_CHARACTERS = 2000
"""How many characters at the end of an unmarked response are searched for an answer."""
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
    """Whether the response marks its answer; if not, the answer was found in its words or is looked for in its tail."""
    tail: str = ""
    """The end of a response with no mark or with several boxes, where the algebra looks for the answer or answers;
    nothing is extracted yet."""
    meant: str = ""
    """The letter of the option whose text the answer is."""

    def comparison(self) -> Comparison:
        """The two sides as the algebra takes them."""
        reference = self.reference if self.tail else plain(self.reference)
        return Comparison(self.tail or plain(self.extracted), reference, self.kind, bool(self.tail))

    def decide(self) -> bool | None:
        """Whether the answers are equal; None if only algebra can tell."""
        return None if self.tail else decide(self.kind, self.meant or self.extracted, self.reference)

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
        if not self.tail:
            return self.judged(finding.equal)
        if not finding.extracted:
            return self.verdict(Outcome.UNPARSED, "no mark, and nothing in it reads as an answer")
        extracted = finding.extracted.encode("utf-8", "replace").decode("utf-8")[:MAX_ANSWER_CHARACTERS]
        return replace(self, extracted=extracted, tail="").judged(finding.equal)

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
    unmarked = not marked and kind.anywhere and not is_marked(item.response)
    if unmarked and kind.name in WORDINGS:
        extracted = stated(item.response, kind.name)
    tail = item.response[-TAIL_CHARACTERS:].encode("utf-8", "replace").decode("utf-8")
    if kind.anywhere and kind.name not in WORDINGS:
        several = marked and max(count_boxes(tail), count_boxes(reference.text)) > 1
        if several or (unmarked and tail.strip() and not item.cut):
            return Question("", reference.text, kind, marked, tail)
    if extracted is not None:
        letters = chosen(extracted, options(item.question)) if kind.name == "choice" and item.question else ()
        return Question(extracted, reference.answer, kind, marked, meant=",".join(sorted(letters)))
    return _unanswered(item)


def _unanswered(item: Item) -> Verdict:
    if is_marked(item.response):
        reason = "the last \\boxed{}, <answer> or 'Answer:' is empty, never closes or is too long"
    else:
        reason = "none of \\boxed{...}, <answer>...</answer>, '#### number' and 'Answer: ...'"
    if item.cut:
        return Verdict(outcome=Outcome.TRUNCATED, reward=0.0, accuracy=0.0, reason=f"cut before an answer: {reason}")
    return Verdict(outcome=Outcome.UNPARSED, reward=0.0, accuracy=0.0, reason=reason)
