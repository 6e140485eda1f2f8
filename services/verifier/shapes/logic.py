"""Results of comparisons that algebra may still have to decide: True, False, or None."""

from __future__ import annotations

from collections.abc import Iterable

Verdict3 = bool | None


def every(results: Iterable[Verdict3]) -> Verdict3:
    """Whether all results are True; a False decides, then a None."""
    unknown = False
    for result in results:
        if result is False:
            return False
        unknown = unknown or result is None
    return None if unknown else True


def some(results: Iterable[Verdict3]) -> Verdict3:
    """Whether a result is True; a True decides, then a None."""
    unknown = False
    for result in results:
        if result:
            return True
        unknown = unknown or result is None
    return None if unknown else False
