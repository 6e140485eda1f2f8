"""Three graders of the same cases: our pool, math-verify called directly, and math-verify as TRL sets it up.

Ours is the path of the product: `GraderPool.grade`, which the verifier service, REST and `cepo verify` call.
math-verify has no kinds and no tolerance, so it receives the reference in a box, and its letter extractor if the
reference is a letter. TRL's `accuracy_reward` reads the reference with the default configuration and the response with
LaTeX only, boxes first, without a fallback to unanchored text. A reference that it cannot read gives no reward.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Sequence

from latex2sympy2_extended import NormalizationConfig
from math_verify import LatexExtractionConfig, StringExtractionConfig, parse, verify

from benchmarks._cases import VerdictCase
from cepo.answers.kinds import check_reference
from cepo.errors import UserError
from cepo.messages.groups import Outcome
from services.verifier.pool import GraderPool
from services.verifier.verdicts import Item

CHUNK = 64
WORKERS = 2
FAILED = (Outcome.GRADER_ERROR, Outcome.TIMEOUT)
_LETTER = re.compile(r"\(?[A-J]\)?")
_LETTERS = StringExtractionConfig(strings=tuple("ABCDEFGHIJ"), lowercase=False)
_TRL = LatexExtractionConfig(
    normalization_config=NormalizationConfig(units=True), boxed_match_priority=0, try_extract_without_anchor=False
)


def ours(cases: Sequence[VerdictCase]) -> list[bool | None]:
    """Whether our verifier accepts each response; None for a timeout or a grader error."""
    return asyncio.run(_pooled(cases))


async def _pooled(cases: Sequence[VerdictCase]) -> list[bool | None]:
    accepted: list[bool | None] = []
    async with GraderPool(WORKERS) as pool:
        for start in range(0, len(cases), CHUNK):
            chunk = cases[start : start + CHUNK]
            accepted += await asyncio.gather(*(_one(pool, case) for case in chunk))
    return accepted


async def _one(pool: GraderPool, case: VerdictCase) -> bool | None:
    try:
        check_reference(case.answer, case.kind)
    except UserError:
        return False  # the row would be refused before training
    (verdict,) = await pool.grade([Item(case.response, case.answer, case.kind, question=case.question)])
    return None if verdict.outcome in FAILED else verdict.outcome is Outcome.CORRECT


def direct(cases: Sequence[VerdictCase]) -> list[bool | None]:
    """Whether math-verify with its default configuration accepts each response."""
    return [_direct(case) for case in cases]


def _direct(case: VerdictCase) -> bool:
    if _LETTER.fullmatch(case.answer):
        wanted = parse(case.answer, [_LETTERS])
        return bool(verify(wanted, parse(case.response, [_LETTERS])))
    return bool(verify(parse(_boxed(case.answer)), parse(case.response)))


def as_trl(cases: Sequence[VerdictCase]) -> list[bool | None]:
    """Whether math-verify with the configuration of TRL's `accuracy_reward` accepts each response."""
    return [_as_trl(case) for case in cases]


def _as_trl(case: VerdictCase) -> bool:
    wanted = parse(_boxed(case.answer), parsing_timeout=10)
    given = parse(case.response, [_TRL], extraction_mode="first_match", parsing_timeout=10)
    return bool(wanted) and bool(verify(wanted, given, timeout_seconds=5))


def _boxed(reference: str) -> str:
    return reference if "\\boxed" in reference else f"\\boxed{{{reference}}}"


GRADERS: dict[str, Callable[[Sequence[VerdictCase]], list[bool | None]]] = {
    "ours": ours,
    "math-verify": direct,
    "as TRL": as_trl,
}
