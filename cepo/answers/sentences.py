r"""Takes an answer out of the sentence in which a response or a data set writes it.

`**7**, because 3 + 4 = 7` and `\text{The answer is } 7. I hope this helps!` both hold the answer `7`. A sentence that
takes the answer back or offers another one stays, so that it is compared with the answer and differs from it.
"""

from __future__ import annotations

import re

from cepo.answers.notation import SUBJECT, unstarred

MAX_LINE_CHARACTERS = 2000
"""How much of a line is read for its answer."""
_MATH = re.compile(r"\$\$.*?\$\$|\$(?![\s$])(?:\\.|[^$\\])*?(?<!\s)\$(?!\d)|\\\(.*?\\\)|\\\[.*?\\\]", re.DOTALL)
_GROUP = re.compile(r"\{[^{}]*\}")
_BOLD = re.compile(r"(?<![\w)*])\*\*(?=[^\s*])(.+?)(?<=[^\s*])\*\*(?![\w*])")
_WRAPPED = re.compile(r"`{3}(.*)`{3}|`{1,2}([^`]*)`{1,2}|__(.+)__|\u201c([^\u201d]*)\u201d", re.DOTALL)
_OF_ANSWER = r"(?:(?:final|correct|right|best|only|short) )*(?:answer|option|choice)s?"
_PREFIX = (
    r"(?:(?:so|thus|hence|therefore|then|and),? )*(?:(?:the|my|our) )?"
    rf"{_OF_ANSWER}(?: (?:is|are|would be|must be|should be|equals)\b|:| =)\s*:?\s*"
    r"(?:(?:therefore|simply|just|that|indeed|clearly|then|thus|hence|actually),? )?"
)
_SAID = re.compile(rf"{_PREFIX}(?=\S)", re.IGNORECASE)
_SAID_IN_TEXT = re.compile(rf"(\\text\w*\s*\{{)\s*(?:{_PREFIX})(\s*\}})?", re.IGNORECASE)
_SUBJECT = re.compile(rf"{SUBJECT} (?=[-$\\(\[\d\u2212])")
_BREAK = re.compile(r"<br */?>")
_PREDICATE = re.compile(
    r"\s+(?:is|are)\s+(?:the\s+)?(?:(?:correct|right|best|final)(?:\s+(?:answer|option|choice|one))?|answer)\s*[.!]?$",
    re.IGNORECASE,
)
_REASON = re.compile(r"\.?\s*[,;]?\s+(?:because|since)\b|,\s+as\b|\s*\((?:because|since|as)\b", re.IGNORECASE)
_END = re.compile(r"[.!?](?=\s+[\"'(*_]*[^\W\d_a-z])|[\u3002\uff01\uff1f](?=.)")
_INITIAL = re.compile(r"(?:^|[^A-Za-z])(?:[A-Z]|Mr|Mrs|Ms|Dr|St|Prof|Mt|Jr|Sr|vs|Fig|Eq|Rs|Inc|Ltd)$")
_AGAINST = re.compile(
    r"^\W*(?:or|nor|not|no|wait|actually|hmm|but|however|yes|true|false|either|else|maybe|perhaps|possibly|unless|otherwise"
    r"|\(?[A-Z]\)?\W*$|[\d.,]+\W*$)(?![a-z])"
    r"|\b(?:alternatively|instead|correction|correcting)\b|\b(?:could|might|may)(?: also)? be\b"
    rf"|\b{_OF_ANSWER}(?: is|:| =| could| might| may)|\b(?:that|this|it|which)(?:'s| is| was)"
    r" (?:not|wrong|incorrect|false|untrue)\b",
    re.IGNORECASE,
)
_NOT_BUT = re.compile(r"(?:(?:it|that) is )?not .{1,40}?,? but (?:rather |actually )?(.+)", re.IGNORECASE)
_AND_NOT = re.compile(r"(?!not\b)(.+?)(?:,| and|, and) not .+", re.IGNORECASE)
_OFFERS = re.compile(r"\bor\b|\b(?:the )?answer (?:is|could|might)", re.IGNORECASE)


def bare(text: str) -> str:
    r"""An answer without bold type, code and quotation marks around it, and without `The answer is` before it.

    Example:
        bare("**\\text{The answer is } 7**")  # "7"
    """
    before = None
    while text != before:
        before, text = text, unstarred(_BOLD.sub(r"\1", _BREAK.sub(" ", text).strip())).strip()
        if wrapped := _WRAPPED.fullmatch(text):
            text = next(part for part in wrapped.groups() if part is not None)
        if "\\$" in text and (formula := _MATH.fullmatch(text)):  # a sum of money as a formula
            text = _inner(formula)
        if said := _SAID.match(text):
            text = text[said.end() :]
        elif said := _SAID_IN_TEXT.match(text):
            text = ("" if said[2] else said[1]) + text[said.end() :]
    return text


def first_statement(text: str) -> str:
    """The answer at the start of a line, without the reasons and sentences that follow it.

    Example:
        first_statement("$7$ dollars, because 3 + 4 = 7. I hope this helps!")  # "7 dollars"
    """
    text = bare(text[:MAX_LINE_CHARACTERS])
    masked = _masked(text)
    if (reason := _REASON.search(masked)) and reason.start() and not _OFFERS.search(text, reason.end()):
        text = text[: reason.start()]
    text = _without_more_sentences(text)
    text = _PREDICATE.sub("", text)
    if affirmed := _NOT_BUT.fullmatch(text) or _AND_NOT.fullmatch(text):
        text = affirmed[1]
    if subject := _SUBJECT.match(text):
        text = text[subject.end() :]
    return without_delimiters(_without_stop(text))


def undelimited(text: str) -> str:
    """The inside of a text that is one formula; any other text as it is."""
    whole = _MATH.fullmatch(text)
    return _without_stop(_inner(whole)) if whole else text


def without_delimiters(text: str) -> str:
    """A text with formulas among its words, without the signs that delimit them: `$-3$ and $4$` becomes `-3 and 4`."""
    whole = _MATH.fullmatch(text.rstrip("."))
    return text if whole else _MATH.sub(_inner, text)


def splits(text: str) -> list[int]:
    """Where the sentences of a text end; a full stop within a formula or after an initial ends none."""
    masked = _masked(text)
    return [
        end.end() for end in _END.finditer(masked) if not _INITIAL.search(masked, max(0, end.start() - 8), end.start())
    ]


def takes_back(text: str) -> bool:
    """Whether what follows a statement takes it back or offers another answer."""
    starts = [0, *splits(text)]
    return any(_AGAINST.search(text[start:end]) for start, end in zip(starts, [*starts[1:], len(text)], strict=True))


def _without_more_sentences(text: str) -> str:
    for end in splits(text):
        return text if takes_back(text[end:]) else text[: end - 1]
    return text


def _without_stop(text: str) -> str:
    """A text without the full stop, comma or semicolon at its end, and without bold type."""
    before = None
    while text != before:
        before, text = text, bare(text).rstrip(".,;\u3002\uff0c ")
    return text


def _inner(math: re.Match[str]) -> str:
    width = 1 if math[0].startswith("$") and not math[0].startswith("$$") else 2
    return math[0][width:-width].strip()


def _masked(text: str) -> str:
    """The text with formulas and braces replaced by zeros, so that positions stay."""
    text = _MATH.sub(lambda math: "0" * len(math[0]), text)
    for _ in range(8):
        text, count = _GROUP.subn(lambda group: "0" * len(group[0]), text)
        if not count:
            break
    return text
