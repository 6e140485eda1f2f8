"""Reads clock times (`3:30 p.m.`, `15:30`, `11 AM`) and dates (`July 4th`, `5 March 2020`, `2020-03-05`)."""

from __future__ import annotations

import re
from dataclasses import dataclass

from cepo.answers.reading.lists import words

_CLOCK = re.compile(
    r"(\d{1,2})(?:[:.](\d\d)(?::(\d\d))?)? *([ap])\.? ?m\.?|(\d{1,2}):(\d\d)(?::(\d\d))?( *(?:noon|midnight))?"
)
_MONTHS = words("january february march april may june july august september october november december")
_MONTH = r"([a-z]{3,9})\.?"
_DAY = r"(\d{1,2})(?:st|nd|rd|th)?"
_ISO = re.compile(r"(\d{4})([-/])(\d\d?)\2(\d\d?)")
_DATES = (
    re.compile(rf"(?:the )?(?P<day>{_DAY})(?: of)? (?P<month>{_MONTH})(?:,? (?P<year>\d{{4}}))?"),
    re.compile(rf"(?P<month>{_MONTH}) (?:the )?(?P<day>{_DAY})(?:,? (?P<year>\d{{4}}))?"),
    re.compile(rf"(?P<month>{_MONTH}),? (?P<year>\d{{4}})"),
)


@dataclass(frozen=True)
class Clock:
    """A time of day, as it is written: `3:30` may be in the morning or in the afternoon."""

    hour: int
    minute: int
    second: int = 0
    half: str = ""
    """`a` or `p`; empty if the time does not say."""


@dataclass(frozen=True)
class Date:
    """A day of a month, a month of a year, or both."""

    month: int
    day: int = 0
    year: int = 0


def moment(text: str) -> Clock | Date | None:
    """The time or date that a text states, wholly; None for any other text.

    Example:
        moment("10:30 p.m.")  # Clock(10, 30, half="p")
    """
    text = re.sub(r"\s+", " ", text.casefold()).strip()
    if len(text) > 40 or not any(character.isdigit() for character in text):
        return None
    return _clock(text) or _date(text)


def same_moment(one: Clock | Date, other: Clock | Date) -> bool:
    """Whether two moments are the same. A half of the day that only one of them says does not matter before 13:00."""
    if isinstance(one, Date) or isinstance(other, Date):
        return one == other
    if one.half == other.half:
        return one == other
    first, second = _spoken(one), _spoken(other)
    if first.half and second.half:
        return first == second
    return (first.hour % 12, first.minute, first.second) == (second.hour % 12, second.minute, second.second)


def _spoken(clock: Clock) -> Clock:
    """`15:30` as `3:30 p.m.`; a time before 13:00 stays as it is."""
    return Clock(clock.hour - 12, clock.minute, clock.second, "p") if clock.hour > 12 else clock


def _clock(text: str) -> Clock | None:
    clock = _CLOCK.fullmatch(text)
    if not clock:
        return None
    hour, minute, second = (int(clock[group] or clock[group + 4] or 0) for group in (1, 2, 3))
    half = clock[4] or {"noon": "p", "midnight": "a"}.get((clock[8] or "").strip(), "")
    if hour > (12 if clock[4] else 24) or minute > 59 or second > 59:
        return None
    return Clock(hour, minute, second, half)


def _date(text: str) -> Date | None:
    if numbered := _ISO.fullmatch(text):
        year, month, day = (int(numbered[group]) for group in (1, 3, 4))
        return Date(month, day, year) if 1 <= month <= 12 and 1 <= day <= 31 else None
    for pattern in _DATES:
        if (date := pattern.fullmatch(text)) and (month := _month(date["month"])):
            parts = date.groupdict()
            day = int(re.sub(r"\D", "", parts.get("day") or "0"))
            return Date(month, day, int(parts.get("year") or 0)) if day <= 31 else None
    return None


def _month(word: str) -> int:
    """1 to 12; 0 for other words."""
    word = word.removesuffix(".")
    names = [i for i, name in enumerate(_MONTHS, 1) if name == word or (word == name[:3] or word == "sept" == name[:4])]
    return names[0] if names else 0
