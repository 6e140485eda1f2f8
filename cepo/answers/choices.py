"""Reads multiple-choice answers: one letter, several letters, a letter with its option's text, or the text alone."""

from __future__ import annotations

import re

from cepo.answers.notation import normalise, respelt

_PREFIX = re.compile(
    r"(?:\u7b54\u6848|\u9009\u9879)[\u662f\u4e3a:\uff1a ]*"
    r"|(?:the )?(?:(?:correct|right|final|best) )?(?:options?|choices?|answers?)(?: (?:is|are))?\s*:?\s*",
    re.IGNORECASE,
)
_LETTERS = re.compile(r"\(?[A-Za-z]\)?(?:(?: *[,;/&|] *| +)(?:and +|or +)?\(?[A-Za-z]\)?)*")
_BRACKETED = re.compile(r"[\[{\uff08\u3010](?:\\text\{)?\(?([A-Za-z])\)?\}?[\]}\uff09\u3011]")
_RUN = re.compile(r"[A-Z]{2,10}")
_LABELLED = re.compile(r"\(?([A-Za-z])(?:\)|[.:]| -)(?=\s|$|[^\W\d_]{3}) *(\S.*)?")
_INFERRED = re.compile(
    r"\(?[A-J]\)?|\(?[A-J](?:\)|[.:]) +[\w$\\].*|[A-J](?:, ?[A-J])+(?:,? and [A-J])?|[A-J] and [A-J]"
)
_OPTION = re.compile(r"^[ \t]*\(?([A-Z]|\d{1,2})[.):][ \t]*(\S.*?)[ \t]*$", re.MULTILINE)
_INLINE = re.compile(r"(?:^|(?<=\s))\(?([A-Z])[.)](?=\s)")
_CONFIRMED = re.compile(
    r"(?:is|would be) (?:the )?(?:correct|right|best|answer)(?: (?:answer|option|choice|one))?[.!]?", re.IGNORECASE
)
_OF_OTHERS = re.compile(
    r"(?:both|neither|all of|none of|only) [A-J](?:(?:,| and| or| nor|, and)+ [A-J])*", re.IGNORECASE
)
_DENIED = re.compile(
    r"(?:is|are|was|would be|seems|looks)\b.*\b(?:wrong|incorrect|false|not|untrue)\b|(?:or|not|nor|but|and|maybe)\b",
    re.IGNORECASE,
)
_OTHER_DENIED = re.compile(r"\b\(?[A-Z]\)? (?:is|was) (?:wrong|incorrect|false|too \w+|not (?:correct|right|true))\b")
_OTHER_LABEL = re.compile(r"(?<![\w'])\(?([A-Z])(?:\)|[.:](?=\s|$))")
_OTHER_LETTER = re.compile(
    r"(?:^|[,;:/&|.]\s*|\b(?:or|and|not|but|no|nor|is|option|choice|answer|either|also|maybe|perhaps"
    r"|actually|rather|be|wait|instead)\b[ ,:]*)"
    r"\(?([A-HJ])\)?(?=\s*(?:[.,;:!?)/&|]|$|\b(?:or|and|is)\b))",
    re.IGNORECASE,
)


def options(question: str) -> dict[str, str]:
    """The options that a question lists, on lines of their own or one after the other, as labels by normalised text.

    Labels are letters or, if all options are words, numbers.

    Example:
        options("Where?\\nA. a park\\nB. a library")  # {"a park": "A", "a library": "B"}
        options("Which? (A) 5 (B) 6")  # {"5": "A", "6": "B"}
    """
    lines = _OPTION.findall(question)
    if any(_INLINE.search(text) for _, text in lines):
        lines = []
    lettered = [(label, text) for label, text in lines if label.isalpha()] or _in_one_line(question)
    if len(lettered) > 1:
        return {normalise(text): label for label, text in lettered}
    numbered = [(label, text) for label, text in lines if label.isdigit() and re.search(r"[^\W\d_]{2}", text)]
    in_order = [label for label, _ in numbered] == [str(at + 1) for at in range(len(numbered))]
    return {normalise(text): label for label, text in numbered} if len(numbered) > 1 and in_order else {}


def looks_like_choice(reference: str) -> bool:
    """Whether a reference is letters from A to J: bare, in parentheses, or one with its option's text."""
    text = _cleaned(reference)
    labelled = _LABELLED.fullmatch(text)
    return _INFERRED.fullmatch(text) is not None and not (labelled and _contradicted(labelled[1], labelled[2]))


def chosen(answer: str, listed: dict[str, str]) -> frozenset[str]:
    """The letters that an answer names; empty if it names none, or names one and says more than its option's text.

    Args:
        listed: letters by the normalised text of their option, as `options` returns them.
    """
    text = _cleaned(answer)
    if letter := listed.get(normalise(text)):
        return frozenset([letter])
    if _RUN.fullmatch(text) and len(set(text)) == len(text):
        return frozenset(text)
    if _LETTERS.fullmatch(text):
        words = re.findall(r"[A-Za-z]+", text)
        return frozenset(word.upper() for word in words if word not in ("and", "or"))
    if labelled := _LABELLED.fullmatch(text):
        letter, said = labelled[1].upper(), labelled[2] or ""
        option = listed.get(normalise(said), "")
        if option == letter or not (option or _contradicted(letter, said)):
            return frozenset(letter)
    return frozenset()


def chosen_option(answer: str, question: str, reference: str, kind: str) -> str | None:
    """The labels of the options of a question that an answer names, joined by commas; empty if it names none.

    It is None if the answer gives a label the text of another option.

    Example:
        chosen_option("3) dog", "Which barks?\\n1) cat\\n2) bird\\n3) dog", "3", "number")  # "3"

    Args:
        reference: the label that is right; options with numbers count only if it is one of them.
        kind: the name of the reference's kind.
    """
    listed = options(question)
    lettered = all(label.isalpha() for label in listed.values())
    if not listed or lettered != (kind == "choice") or not (lettered or reference.strip("() ") in listed.values()):
        return ""
    labelled = re.fullmatch(r"\(?(\w{1,2})[.):] *(\S.*)", _cleaned(answer))
    if labelled and (option := listed.get(normalise(labelled[2]))):
        return option if option == labelled[1].upper() else None
    return ",".join(sorted(chosen(answer, listed))) if lettered else listed.get(normalise(answer), "")


def labelled_option(reference: str) -> dict[str, str]:
    """The option that a reference spells out (`C. a library`), in the form of `options`."""
    labelled = _LABELLED.fullmatch(_cleaned(reference))
    return {normalise(labelled[2]): labelled[1].upper()} if labelled and labelled[2] else {}


def _in_one_line(question: str) -> list[tuple[str, str]]:
    """Labels and texts of options that stand one after the other, if their letters are A, B, C and so on."""
    labels = list(_INLINE.finditer(question))
    letters = [label[1] for label in labels]
    if "A" not in letters:
        return []
    labels = labels[len(letters) - 1 - letters[::-1].index("A") :]
    if [label[1] for label in labels] != [chr(ord("A") + at) for at in range(len(labels))]:
        return []
    ends = [label.start() for label in labels[1:]] + [len(question)]
    return [(label[1], question[label.end() : end].strip(" \t\n,;")) for label, end in zip(labels, ends, strict=True)]


def _contradicted(letter: str, said: str | None) -> bool:
    """Whether the text after a label denies it or names another letter."""
    text = (said or "").strip()
    if not text or _CONFIRMED.fullmatch(text):
        return False
    if _DENIED.match(text):
        return True
    if _OF_OTHERS.fullmatch(text):  # the text of an option, such as `D. Both A and B`
        return re.search(rf"\b{letter}\b", text) is not None
    text = _OTHER_DENIED.sub(" ", text)
    others = {*_OTHER_LABEL.findall(text), *(other.upper() for other in _OTHER_LETTER.findall(text) if other.isupper())}
    return bool(others - {letter.upper()})


def _cleaned(answer: str) -> str:
    text = re.sub(r"\s+", " ", respelt(answer)).strip(' *"')
    text = text.rstrip("\u3002")
    if bracketed := _BRACKETED.fullmatch(text):
        return bracketed[1]
    return _PREFIX.sub("", text, count=1) if _PREFIX.match(text) else text
