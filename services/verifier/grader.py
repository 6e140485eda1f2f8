"""The algebra and the user's reward functions, as they run inside a worker process: they may loop, eat memory or crash,
and only that process suffers.

Nothing else imports math-verify. Its own alarms are switched off, because the pool's deadline kills the whole process.
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

from cepo.answers.extract import normalise
from cepo.answers.kinds import DIGITS
from cepo.errors import UserError
from services.verifier import functions
from services.verifier.forms import as_form, fits_form
from services.verifier.functions import Call, one_line

logging.getLogger("math_verify").setLevel(logging.ERROR)  # it warns that its timeouts are off
ORPHAN_SECONDS = 5
"""How long past the deadline a worker survives a parent that died before it could end it."""
RECURSION_LIMIT = 1000
"""Python frames; what nests deeper is no answer and ends with an error instead of a crash."""
HEADROOM_BYTES = 64 * 2**20
"""Least memory beyond what a worker starts with."""
STACK_BYTES = 8 * 2**20
_TARGETS = (LatexExtractionConfig(boxed_match_priority=0), ExprExtractionConfig())


@dataclass(frozen=True)
class Comparison:
    """Two texts and how they are compared."""

    answer: str
    reference: str
    kind: str = "math"
    digits: int = DIGITS
    tolerance: float = 0.0
    """Absolute; 0: `digits` decides."""
    raw: bool = False
    """Whether the answer is a response without a mark, in which math-verify looks for it."""


@dataclass(frozen=True)
class Finding:
    """What came out."""

    equal: bool = False
    extracted: str = ""
    """The answer that math-verify found in an unmarked response."""
    value: float = 0.0
    """What a reward function returned."""
    error: str = ""
    """Name of the exception."""
    detail: str = ""
    """What a reward function's exception says."""


def compare(asked: Comparison) -> Finding:
    """Whether two answers are mathematically the same; not symmetric, the reference decides the form.

    Raises:
        Exception: whatever the algebra raises.
    """
    found = _parsed(asked.answer) if asked.raw else _boxed(as_form(asked.kind, asked.answer))
    extracted = str(found[-1]) if asked.raw and found else ""
    if asked.raw and not found:
        return Finding()
    if not fits_form(asked.kind, extracted or asked.answer):
        return Finding(extracted=extracted)
    wanted = _parsed(asked.reference) if asked.raw else []
    if not any(not isinstance(part, str) for part in wanted):
        wanted = _boxed(as_form(asked.kind, asked.reference))
    if asked.tolerance and found and wanted:
        return Finding(_near(found[0], wanted[0], asked.tolerance), extracted)
    if asked.raw and _texts(found) & _texts(wanted):
        return Finding(True, extracted)
    equal = verify(
        wanted,
        found,
        float_rounding=asked.digits,
        allow_set_relation_comp=asked.kind == "interval",
        timeout_seconds=0,
        raise_on_error=True,
    )
    return Finding(bool(equal), extracted)


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
    except TypeError:  # no number
        return False


def serve(connection: Connection, deadline_seconds: float, memory_bytes: int, names: tuple[str, ...]) -> None:
    """Says that it is ready, or why not, with a finding, and answers each question with one until the parent hangs up.

    Args:
        names: the reward functions to load.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which drains
    resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    resource.setrlimit(resource.RLIMIT_STACK, (STACK_BYTES, STACK_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    sys.setrecursionlimit(RECURSION_LIMIT)
    warm()
    bytearray(HEADROOM_BYTES)  # under a limit that leaves less, this process ends here and does not start
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
    except Exception as error:  # noqa: BLE001 the outcome of this item, and the worker's work is to report it
        name = type(error).__name__
        return Finding(error=name, detail=one_line(error).removeprefix(name) if isinstance(asked, Call) else "")


def warm() -> None:
    """Builds the parser's tables, so that no deadline pays for them."""
    compare(Comparison("0.5", "1/2"))
