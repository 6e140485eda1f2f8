"""Reward functions as users write them, good and bad."""

import os
import sys
from pathlib import Path
from typing import Any

NUMBER = 3


def brief(sample: Any) -> float:
    return -0.01 * sample.tokens


def word(sample: Any) -> float:
    seen = (sample.question, sample.answer, sample.extracted, sample.accuracy, sample.truncated)
    return 0.25 if seen == ("3 + 4 = ?", "7", "7", 1.0, False) and sample.response.startswith("so") else 0.0


def process(sample: Any) -> int:
    return os.getpid()


def raises(sample: Any) -> float:
    raise KeyError("no such thing")


def nan(sample: Any) -> float:
    return float("nan")


def notes(sample: Any) -> float:
    """Writes the process id to the file that the response names, so that a test knows that the call has begun."""
    path = Path(sample.response)
    path.with_suffix(".part").write_text(str(os.getpid()))
    path.with_suffix(".part").rename(path)
    return 1.0


def waits(sample: Any) -> float:
    notes(sample)
    return loops(sample)


def loops(sample: Any) -> float:
    while True:
        pass


def dies(sample: Any) -> float:
    os._exit(1)


def exits(sample: Any) -> float:
    sys.exit(1)


def eats(sample: Any) -> float:
    return float(len(bytearray(2**31)))
