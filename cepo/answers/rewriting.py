r"""Other ways to write a reference that keep it right; `cepo.answers.perturb.rewrites` is the entry."""

from __future__ import annotations

import re
from collections.abc import Iterator
from fractions import Fraction

from cepo.answers.choices import chosen
from cepo.answers.kinds import Kind, truth
from cepo.answers.notation import as_number, normalise
from cepo.answers.quantities import quantity
from cepo.answers.structure import RELATION, bracketed, elements

Named = tuple[str, str]
"""What was done, and the text."""
_UNICODE = (
    (r"\\sqrt\{(\d+)\}", "\u221a\\1"), (r"\\pi(?![a-zA-Z])", "\u03c0"), (r"\^\{?\\circ\}?", "\u00b0"),
    (r"\^\{?2\}?(?!\d)", "\u00b2"), (r"-", "\u2212"), (r"\\leq?(?![a-zA-Z]) ?", "\u2264"),
    (r"\\geq?(?![a-zA-Z]) ?", "\u2265"), (r"\\infty(?![a-zA-Z])", "\u221e"), (r"\\cup(?![a-zA-Z])", "\u222a"),
    (r"\\pm(?![a-zA-Z])", "\u00b1"), (r"\\in(?![a-zA-Z])", "\u2208"),
)  # fmt: skip
_PLAIN = (
    (r"\\left|\\right", ""),
    (r"\\[dtc]?frac\{([^{}]*)\}\{([^{}]*)\}", r"(\1)/(\2)"),
    (r"\\sqrt\{([^{}]*)\}", r"sqrt(\1)"),
    (r"\\pi(?![a-zA-Z])", "pi"), (r"\\cdot(?![a-zA-Z])", "*"), (r"\^\{(\w+)\}", r"^\1"),
)  # fmt: skip
_SMALLER_UNITS = {"cm": (10, "mm"), "m": (100, "cm"), "km": (1000, "m"), "kg": (1000, "g"), "h": (60, "min")}
_FRACTION = re.compile(r"\\[dtc]?frac(?![a-zA-Z])")
_SUM = re.compile(r"(?<=[\w})]) *([-+]) *(?=[\w\\({])")
_ONE_RELATION = re.compile(r"\\(?:leq|geq|le|ge)(?![a-zA-Z])|[<>=]")
_MIRRORED = {"=": "=", "<": ">", ">": "<", "\\le": "\\ge ", "\\leq": "\\geq ", "\\ge": "\\le ", "\\geq": "\\leq "}


def respellings(reference: str, kind: Kind) -> Iterator[Named]:
    """The names and texts of the rewrites; some may be equal."""
    yield "itself", reference
    makers = {"choice": _of_choice, "yesno": _of_truth, "text": _of_text}
    if kind.name in makers:
        yield from makers[kind.name](reference, kind)
        return
    yield from _decorated(reference)
    yield from _renamed(reference)
    value = as_number(normalise(reference))
    if value is not None and "%" not in reference:
        yield from _of_number(value, kind)
    yield from _of_percentage(reference, kind)
    yield from _of_unit(reference, kind)
    yield from _other_signs(reference)
    yield from _reordered(reference, kind)


def _of_choice(reference: str, _: Kind) -> Iterator[Named]:
    letters = sorted(chosen(reference, {}))
    if len(letters) > 1:
        yield "in another order", ", ".join(letters[::-1])
        yield "joined by and", f"{', '.join(letters[:-1])} and {letters[-1]}"
        return
    letter = letters[0]
    yield "in parentheses", f"({letter})"
    yield "in text", f"\\text{{({letter})}}"
    yield "in bold", f"\\textbf{{{letter}}}"
    yield "with a full stop", f"{letter}."
    yield "as an option", f"Option {letter}"
    yield "in a sentence", f"\\text{{The answer is }} {letter}"
    yield "in lower case", letter.lower()


def _of_truth(reference: str, _: Kind) -> Iterator[Named]:
    word = "yes" if truth(reference) else "no"
    yield "a word of truth", str(truth(reference))
    yield "in capitals", word.upper()
    yield "with a full stop", f"{word.capitalize()}."
    yield "in text", f"\\text{{{word}}}"
    yield "with a reason", f"{word.capitalize()}, because it follows"


def _of_text(reference: str, kind: Kind) -> Iterator[Named]:
    bare = normalise(reference)
    yield "in text", reference if "\\" in reference else f"\\text{{{reference}}}"
    yield "with a full stop", f"{reference}."
    yield "in a sentence", f"\\text{{The answer is }} {reference}"
    if not kind.case:
        yield "in capitals", bare.upper()
    if not kind.articles and not re.match(r"(?:the|an?) ", bare, re.IGNORECASE):
        yield "with an article", f"the {reference}"


def _decorated(reference: str) -> Iterator[Named]:
    yield "in dollar signs", f"${reference}$"
    yield "in display style", f"\\displaystyle {reference}"
    yield "with blanks", f"\\; {reference} \\;"
    yield "with a full stop", f"{reference}."
    yield "in bold", f"\\mathbf{{{reference}}}"
    yield "in colour", f"\\color{{red}}{{{reference}}}"
    yield "in a sentence", f"\\text{{The answer is }} {reference}"
    if _FRACTION.search(reference):
        yield "with large fractions", _FRACTION.sub(r"\\dfrac", reference)
        yield "with small fractions", _FRACTION.sub(r"\\tfrac", reference)
    if bracketed(reference) and "\\left" not in reference:
        group = bracketed(reference)
        assert group is not None
        yield "with sized brackets", f"\\left{group.opening} {', '.join(group.items)} \\right{group.closing}"


def _renamed(reference: str) -> Iterator[Named]:
    stated = quantity(reference)
    number = as_number(normalise(reference)) is not None
    if stated and not stated.percent:
        yield "named", f"x = {reference}"
        yield "named after it", f"{reference} = x"
    if number and not re.search(r"[%$\u20ac\u00a3]|circ", reference):
        yield "with a unit", f"{reference} \\text{{ cm}}"


def _of_number(value: Fraction, kind: Kind) -> Iterator[Named]:
    if value.denominator == 1:
        yield "with separators", _local(f"{value.numerator:,}", kind)
        yield "without separators", str(value.numerator)
        yield "with decimals", _local(f"{value.numerator}.0", kind)
        if kind.unevaluated:
            yield "unevaluated", f"{value.numerator - 7} + 7"
        return
    sign = "-" if value < 0 else ""
    yield "as a fraction", f"{sign}\\frac{{{abs(value.numerator)}}}{{{value.denominator}}}"
    yield "with a slash", f"{value.numerator}/{value.denominator}"
    if _terminates(value):
        yield "as a decimal", _local(_decimal(value), kind)
    if abs(value) > 1:
        whole, above = divmod(abs(value.numerator), value.denominator)
        yield "as a mixed number", f"{sign}{whole}\\frac{{{above}}}{{{value.denominator}}}"


def _local(digits: str, kind: Kind) -> str:
    """A number with the separators of the kind."""
    return digits.translate(str.maketrans(",.", ".,")) if kind.decimal_comma else digits


def _of_percentage(reference: str, kind: Kind) -> Iterator[Named]:
    stated = quantity(reference)
    if stated and stated.percent and _terminates(stated.value):
        digits = _local(_decimal(stated.value), kind)
        yield "in words", f"{digits} percent"
        yield "as a share", _local(_decimal(stated.value / 100), kind)
        if not kind.percent_fraction:
            yield "without the sign", digits


def _of_unit(reference: str, kind: Kind) -> Iterator[Named]:
    stated = quantity(reference)
    if stated and kind.convert and stated.unit in _SMALLER_UNITS and _terminates(stated.value):
        factor, unit = _SMALLER_UNITS[stated.unit]
        yield "in a smaller unit", f"{_local(_decimal(stated.value * factor), kind)} \\text{{ {unit}}}"


def _terminates(value: Fraction) -> bool:
    below = value.denominator
    for factor in (2, 5):
        while below % factor == 0:
            below //= factor
    return below == 1 and value.denominator <= 10**9


def _decimal(value: Fraction) -> str:
    """The digits of a number whose decimals end, without a final zero."""
    places = 0
    while (value * 10**places).denominator != 1:
        places += 1
    if not places:
        return str(value.numerator)
    digits = str(abs((value * 10**places).numerator)).rjust(places + 1, "0")
    return f"{'-' if value < 0 else ''}{digits[:-places]}.{digits[-places:]}"


def _other_signs(reference: str) -> Iterator[Named]:
    for name, table in (("in Unicode", _UNICODE), ("in plain text", _PLAIN)):
        text = reference
        for pattern, replacement in table:
            text = re.sub(pattern, replacement, text)
        mixed = re.search(r"\d *\\[dtc]?frac", reference)  # 1(4)/(5) is a product
        if text != reference and "\\" not in text and not mixed:
            yield name, text


def _reordered(reference: str, kind: Kind) -> Iterator[Named]:
    if "\\begin" in reference or "\\text" in reference:
        return
    items = elements(reference)
    relations = list(_ONE_RELATION.finditer(reference))
    if len(items) > 1 and kind.name in ("math", "set") and not RELATION.search(reference):
        yield "in another order", ", ".join(items[::-1])
    elif (group := bracketed(reference)) is not None:
        if group.is_set and len(group.items) > 1:
            yield "in another order", group.of(group.items[::-1])
    elif len(items) == 1 and relations and len(relations) == len(RELATION.findall(reference)):
        yield "mirrored", _mirrored(reference, relations)
    elif len(items) == 1 and len(_outer_signs(reference)) == 1 and not RELATION.search(reference):
        (sign,) = _outer_signs(reference)
        left, right = reference[: sign.start()].strip(), reference[sign.end() :].strip()
        first = right if sign[1] == "+" else f"-{right}"
        yield "with swapped terms", f"{first} - {left[1:].strip()}" if left.startswith("-") else f"{first} + {left}"


def _outer_signs(reference: str) -> list[re.Match[str]]:
    """The binary plus and minus signs outside all brackets."""
    signs = _SUM.finditer(reference)
    return [sign for sign in signs if all(_depth(reference[: sign.start()], pair) == 0 for pair in ("()", "[]", "{}"))]


def _depth(text: str, pair: str) -> int:
    return text.count(pair[0]) - text.count(pair[1])


def _mirrored(reference: str, relations: list[re.Match[str]]) -> str:
    sides, start = [], 0
    for relation in relations:
        sides.append(reference[start : relation.start()].strip())
        start = relation.end()
    sides.append(reference[start:].strip())
    signs = [_MIRRORED[relation[0]] for relation in reversed(relations)]
    text = sides[-1]
    for sign, side in zip(signs, reversed(sides[:-1]), strict=True):
        text += f" {sign} {side}"
    return text
