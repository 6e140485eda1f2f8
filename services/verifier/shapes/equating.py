"""Compares equations, values by name, congruences and other relations with what a reference says."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import replace
from itertools import chain
from typing import TYPE_CHECKING

from cepo.answers.kinds import parse_kind
from services.verifier.shapes.conversions import number
from services.verifier.shapes.logic import Verdict3, every, some
from services.verifier.shapes.names import is_constant, is_name, letters, restates, same_name
from services.verifier.shapes.reading import read
from services.verifier.shapes.types import Assignment, Congruence, Equation, Group, Leaf, Relation, Shape

if TYPE_CHECKING:
    from services.verifier.shapes.comparing import Comparer

_ALGEBRAIC = ("<", ">", "\\le", "\\ge")
_FLIPPED = {"<": ">", ">": "<", "\\le": "\\ge", "\\ge": "\\le", "\\ne": "\\ne"}
_LATIN = re.compile(r"([A-Za-z])(?:_\s*\{?\s*(\w+)\s*\}?)?")
_ROUNDED = parse_kind("number tolerance=1%")


def equation(comparer: Comparer, given: Shape, wanted: Equation) -> Verdict3:
    """Whether an answer is an equation, or the value of the quantity that it names."""
    named = len(wanted.names) == 1 and len(wanted.values) == 1
    if not isinstance(given, Equation):
        return comparer.equal(given, wanted.values[0]) if named and comparer.kind.name != "equation" else False
    if named and any(same_name(name, wanted.names[0], functions=True) for name in given.names):
        return every(comparer.equal(value, wanted.values[0]) for value in given.values)
    if len(given.sides) != 2 or len(wanted.sides) != 2:
        sides = [[read(side) for side in shape.sides] for shape in (given, wanted)]
        return comparer.in_order(*sides)
    if given.names and wanted.names and _is_constant(wanted.values[0]):
        return False  # `y = 5` for `x = 5`
    return comparer.elements(given.text, wanted.text)


def restated(comparer: Comparer, given: Equation, wanted: Shape) -> Verdict3:
    """Whether every side that states a value states that of the reference, as in `A = 3 \\cdot 4 = 12`."""
    if comparer.kind.name == "equation":
        return False
    named = len(given.values) > 1 and given.names and given.sides[0] == given.names[0]
    steps = given.values[:-1] if named and _is_constant(wanted) else ()
    formulas = [step for step in steps if isinstance(step, Leaf) and _is_formula(step.text, given.names)]
    values = [value for value in given.values if value not in formulas and not _restates(value, wanted)]
    if not values:
        return False
    loose = comparer.with_kind(replace(comparer.kind, unevaluated=True))  # only the last side has to be evaluated
    return every([comparer.equal(values[-1], wanted), *(loose.equal(value, wanted) for value in values[:-1])])


def _is_formula(text: str, names: tuple[str, ...]) -> bool:
    r"""Whether a step gives a quantity in other unknowns, as `\pi r^2` does in `A = \pi r^2 = 49\pi`."""
    return bool(letters(text)) and not any(letters(text) & letters(name) for name in names)


def _restates(value: Shape, wanted: Shape) -> bool:
    """Whether a side is an expression in several unknowns whose value the equation states: `2a + b = 12` for `12`."""
    return isinstance(value, Leaf) and _is_constant(wanted) and restates(value.text)


def _is_constant(shape: Shape) -> bool:
    return isinstance(shape, Leaf) and is_constant(shape.text)


def assigned(comparer: Comparer, given: Shape, wanted: Assignment) -> Verdict3:
    """Whether an answer gives the named values: by name, or in the order of the reference."""
    if isinstance(given, Group) and given.style in ("list", "round", "angle"):
        return comparer.in_order(given.items, [value for _, value in wanted.pairs])
    if not isinstance(given, Assignment) or len(given.pairs) != len(wanted.pairs):
        return False
    return every(
        some(comparer.equal(value, other) for name, value in given.pairs if same_name(name, wanted_name))
        for wanted_name, other in wanted.pairs
    )


def unnamed(comparer: Comparer, given: Assignment, wanted: Shape) -> Verdict3:
    """Values by name for a reference without names: in the order of the names, or in any order for `x_1, x_2`."""
    if not isinstance(wanted, Group) or len(given.pairs) != len(wanted.items):
        return False
    names = [_LATIN.fullmatch(name.strip()) for name, _ in given.pairs]
    keys = [(name[1], name[2] or "") for name in names if name]
    if len(keys) < len(names):
        return comparer.in_order([value for _, value in given.pairs], wanted.items)
    order = sorted(range(len(keys)), key=lambda place: keys[place])
    values = [given.pairs[place][1] for place in order]
    if len({letter for letter, _ in keys}) == 1 and wanted.style in ("list", "set", "signs"):
        return comparer.in_any_order(values, wanted.items)
    return comparer.in_order(values, wanted.items) if wanted.style != "set" else False


def congruent(comparer: Comparer, given: Shape, wanted: Congruence) -> Verdict3:
    """Whether an answer gives the same residues of the same modulus."""
    if not isinstance(given, Congruence):
        return False
    if given.name and wanted.name and not same_name(given.name, wanted.name):
        return False
    modulus = comparer.elements(given.modulus, wanted.modulus)
    one, other, divisor = number(given.residues), number(wanted.residues), number(Leaf(wanted.modulus))
    if one is not None and other is not None and divisor:
        return every([modulus, (one - other) % divisor == 0])
    return every([modulus, comparer.equal(given.residues, wanted.residues)])


def related(comparer: Comparer, given: Shape, wanted: Relation) -> Verdict3:
    """Whether an answer states the same relation, perhaps from right to left."""
    if not isinstance(given, Relation):
        return False
    return some(_related(comparer, given, wanted))


def _related(comparer: Comparer, given: Relation, wanted: Relation) -> Iterator[Verdict3]:
    yield _sides(comparer, given.operators, given.sides, wanted)
    if all(operator in _FLIPPED for operator in given.operators):
        flipped = tuple(_FLIPPED[operator] for operator in given.operators[::-1])
        yield _sides(comparer, flipped, given.sides[::-1], wanted)
    if all(operator in _ALGEBRAIC for operator in given.operators + wanted.operators):
        yield comparer.elements(given.text, wanted.text)


def _sides(comparer: Comparer, operators: tuple[str, ...], sides: tuple[str, ...], wanted: Relation) -> Verdict3:
    if operators != wanted.operators:
        return False
    pairs = zip(sides, wanted.sides, strict=True)
    return every(a == b or (bool(a and b) and comparer.equal(read(a), read(b))) for a, b in pairs)


def approximated(comparer: Comparer, given: Relation, wanted: Leaf) -> Verdict3:
    r"""Whether `\sqrt{2} \approx 1.41` states the exact value first and then rounds it."""
    sides = [side for side in given.sides if side and not is_name(side)]
    if not sides or not all(isinstance(read(side), Leaf) for side in sides):
        return False
    rounded = (comparer.same(sides[-1], side, _ROUNDED) for side in sides[:-1])
    return every(chain([comparer.equal(read(sides[0]), wanted)], rounded))
