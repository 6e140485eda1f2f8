"""Reward functions as users write them, good and bad."""

import os
import sys
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


def loops(sample: Any) -> float:
    while True:
        pass


def dies(sample: Any) -> float:
    os._exit(1)


def exits(sample: Any) -> float:
    sys.exit(1)


def eats(sample: Any) -> float:
    return float(len(bytearray(2**31)))
