"""Runs inside a worker process: the algebra and the user's reward functions, which may loop, exhaust memory or crash.

Only this module imports math-verify. Its timeouts are switched off, because the pool kills the process at the deadline.
"""

from __future__ import annotations

import logging
import math
import resource
import signal
import sys
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any

from math_verify import ExprExtractionConfig, LatexExtractionConfig, parse, verify

from cepo.answers.kinds import Kind
from cepo.answers.notation import normalise
from cepo.answers.quantities import quantity
from cepo.errors import UserError
from services.verifier import functions
from services.verifier.decisions import decide_element
from services.verifier.forms import as_form, fits_form, same_form
from services.verifier.functions import Call, one_line

logging.getLogger("math_verify").setLevel(logging.ERROR)  # it would warn that its timeouts are off
ORPHAN_SECONDS = 5
"""How long after the deadline a worker ends itself if its parent died and cannot kill it."""
RECURSION_LIMIT = 1000
"""Python frames. Deeper nesting is no answer; it raises an error instead of crashing the process."""
HEADROOM_BYTES = 64 * 2**20
"""A worker must have at least this much memory left once it is warm."""
STACK_BYTES = 8 * 2**20
_TARGETS = (LatexExtractionConfig(boxed_match_priority=0), ExprExtractionConfig())


@dataclass(frozen=True)
class Comparison:
    """Two texts to compare, and how."""

    answer: str
    reference: str
    kind: Kind = Kind("math")  # noqa: RUF009 it is immutable
    raw: bool = False
    """Whether `answer` is the end of a response, in which math-verify looks for the answer."""


@dataclass(frozen=True)
class Finding:
    """The result of a comparison or of a reward function."""

    equal: bool = False
    extracted: str = ""
    """The answer that math-verify found in a raw response."""
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
    if not asked.raw:
        return Finding(bool(same_form(asked.answer, asked.reference, asked.kind, equal_elements)))
    parts = _parsed(asked.answer)
    extracted = str(parts[-1]) if parts else ""
    if not parts or not fits_form(asked.kind.name, extracted):
        return Finding(extracted=extracted)
    wanted = _parsed(asked.reference)
    if not any(not isinstance(part, str) for part in wanted):
        wanted = _boxed(as_form(asked.kind.name, asked.reference))
    return Finding(bool(_texts(parts) & _texts(wanted)) or _verified(parts, wanted, asked.kind), extracted)


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
    return _verified(_boxed(answer), _boxed(reference), kind) if decided is None else decided


def _verified(parts: list[Any], wanted: list[Any], kind: Kind) -> bool:
    value = quantity(str(wanted[0])) if kind.tolerance and parts and wanted else None
    if value:
        return _near(parts[0], wanted[0], float(kind.margin(value.value)))
    equal = verify(
        wanted,
        parts,
        float_rounding=kind.digits,
        allow_set_relation_comp=kind.name == "interval",
        timeout_seconds=0,
        raise_on_error=True,
    )
    return bool(equal)


def _boxed(text: str) -> list[Any]:
    parts = parse(f"\\boxed{{{text}}}", parsing_timeout=0, raise_on_error=True)
    if "$" in text and all(isinstance(part, str) for part in parts):
        return _parsed(text) or parts  # words around a formula
    return parts


def _parsed(text: str) -> list[Any]:
    return parse(text, _TARGETS, parsing_timeout=0, raise_on_error=True)


def _texts(parts: list[Any]) -> set[str]:
    return {text for part in parts if isinstance(part, str) and (text := normalise(part))}


def _near(found: Any, wanted: Any, tolerance: float) -> bool:
    if isinstance(found, str) or isinstance(wanted, str):
        return False
    try:
        return abs(float(found) - float(wanted)) <= tolerance
    except TypeError:  # not a number
        return False


def serve(connection: Connection, deadline_seconds: float, memory_bytes: int, names: tuple[str, ...]) -> None:
    """The main loop of a worker process: answers each question with a finding until the parent closes the connection.

    The first finding says that the worker is ready, or why it is not.

    Args:
        names: the reward functions to load.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent handles Ctrl-C and drains
    resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    resource.setrlimit(resource.RLIMIT_STACK, (STACK_BYTES, STACK_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
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
