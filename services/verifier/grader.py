"""Runs inside a worker process: the algebra and the user's reward functions, which may loop, exhaust memory or crash.

Only this module imports math-verify. Its timeouts are switched off, because the pool kills the process at the deadline.
"""

from __future__ import annotations

import logging
import math
import signal
import sys
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

from math_verify import LatexExtractionConfig, parse, verify

from cepo.answers.kinds import DIGITS, Kind
from cepo.answers.notation import plain
from cepo.answers.quantities import read
from cepo.errors import UserError
from cepo.service.hooks import one_line
from cepo.service.killable import confine
from services.verifier import functions
from services.verifier.decisions import decide_element, is_precise, operands, same_decimal, same_number
from services.verifier.evaluation import equal, number
from services.verifier.forms import same_form
from services.verifier.functions import Call

logging.getLogger("math_verify").setLevel(logging.ERROR)  # it would warn that its timeouts are off
ORPHAN_SECONDS = 5
"""How long after the deadline a worker ends itself if its parent died and cannot kill it."""
RECURSION_LIMIT = 1000
"""Python frames. Deeper nesting is no answer; it raises an error instead of crashing the process."""
HEADROOM_BYTES = 64 * 2**20
"""A worker must have at least this much memory left once it is warm."""
_ROUNDING = 12
"""Decimals that math-verify compares where it has to round."""
_TARGETS = (LatexExtractionConfig(boxed_match_priority=0),)


@dataclass(frozen=True)
class Comparison:
    """Two texts to compare, and how."""

    answer: str
    reference: str
    kind: Kind = Kind("math")  # noqa: RUF009 it is immutable


@dataclass(frozen=True)
class Finding:
    """The result of a comparison or of a reward function."""

    equal: bool = False
    value: float = 0.0
    """The value of a reward function."""
    error: str = ""
    """Name of the exception, empty if there was none."""
    detail: str = ""
    """Message of a reward function's exception."""


def compare(asked: Comparison) -> Finding:
    """Whether two answers are mathematically equal. It is not symmetric: the reference decides the form.

    Raises:
        Exception: math-verify or SymPy raised it.
    """
    return Finding(bool(same_form(plain(asked.answer), plain(asked.reference), asked.kind, equal_elements)))


def equal_elements(answer: str, reference: str, kind: Kind) -> bool:
    """Whether one element of an answer equals one element of a reference: a value without brackets or commas.

    Structured kinds call it for each pair of their elements. It first tries `decisions.decide_element`, which needs no
    algebra. The reference decides the form, so the comparison is not symmetric.

    Example:
        equal_elements("x+x", "2x", Kind("math"))  # True

    Raises:
        Exception: math-verify or SymPy raised it.
    """
    decided = decide_element(answer, reference, kind)
    if decided is not None:
        return decided
    given, wanted = read(answer, kind.decimal_comma), read(reference, kind.decimal_comma)
    pair = operands(given, wanted, kind)
    if pair is None:
        return _verified(plain(answer), plain(reference), kind)
    decimals = [value.quantity.decimals if value.quantity else -1 for value in (given, wanted)]
    if kind.tolerance or kind.digits != DIGITS or max(decimals) >= 0:
        one, other = (number(node) for node in pair)
        if one is not None and other is not None:
            if kind.tolerance or kind.digits != DIGITS:
                return same_number(one, other, kind)
            precise = is_precise(one, decimals[0], kind) or is_precise(other, decimals[1], kind)
            if precise and same_decimal(one, other, kind):
                return True
    return equal(*pair)


def _verified(answer: str, reference: str, kind: Kind) -> bool:
    """What math-verify says; an answer that it cannot read is not equal."""
    wanted = _parsed(reference)
    try:
        equal = verify(
            wanted,
            _parsed(answer),
            float_rounding=max(kind.digits, _ROUNDING),
            allow_set_relation_comp=kind.name == "interval",
            timeout_seconds=0,
            raise_on_error=True,
        )
    except MemoryError:
        raise
    except Exception:  # noqa: BLE001 the parser and SymPy raise all sorts of errors on what they cannot read
        return False
    return bool(equal)


def _parsed(text: str) -> list[Any]:
    return parse(f"\\boxed{{{text}}}", _TARGETS, parsing_timeout=0, raise_on_error=True)


def serve(connection: Connection, deadline_seconds: float, memory_bytes: int, names: tuple[str, ...]) -> None:
    """The main loop of a worker process: answers each question with a finding until the parent closes the connection.

    The first finding says that the worker is ready, or why it is not.

    Args:
        names: the reward functions to load.
    """
    confine(memory_bytes)
    sys.setrecursionlimit(RECURSION_LIMIT)
    warm()
    bytearray(HEADROOM_BYTES)  # if the limit leaves less memory, the process ends here and does not start
    try:
        known = functions.load(names)
    except UserError as error:
        connection.send(Finding(error=str(error)))
        return
    connection.send(Finding())
    while True:
        try:
            asked = connection.recv()
        except EOFError:
            return
        signal.alarm(math.ceil(deadline_seconds) + ORPHAN_SECONDS)
        reply = _answer(asked, known)
        signal.alarm(0)
        connection.send(reply)


def _answer(asked: Comparison | Call, known: functions.Functions) -> Finding:
    try:
        return Finding(value=functions.call(known, asked)) if isinstance(asked, Call) else compare(asked)
    except Exception as error:  # noqa: BLE001 any error is the outcome of this item
        name = type(error).__name__
        return Finding(error=name, detail=one_line(error).removeprefix(name) if isinstance(asked, Call) else "")


def warm() -> None:
    """Builds the parser's tables, so that the first item does not pay for them."""
    compare(Comparison("x+x", "2x"))
