"""What the reference code shows as a rejected answer, faults included; only to reproduce its numbers.

The code: ahmedheakl/CEPO at 7a9655d, `RayPPOTrainer._build_cepo_teacher_batch`, with mathruler 0.1.0.
"""

from __future__ import annotations

CHARACTERS = 50
_BOX = "\\boxed{"


def published_answer(text: str) -> str:
    """The content of the last box; the word None where there is none, and the first characters where it is empty.

    The word is a fault: the fallback to the first characters was meant for it, but a non-empty string counts as an
    answer there.
    """
    return boxed(text) or text[:CHARACTERS]


def boxed(text: str) -> str:
    """What the last box holds, as mathruler's `extract_boxed_content` says it: the string "None" without a box."""
    start = text.rfind(_BOX)
    if start < 0:
        return "None"
    depth = 1
    for at in range(start + len(_BOX), len(text)):
        depth += {"{": 1, "}": -1}.get(text[at], 0)
        if depth == 0:
            return text[start + len(_BOX) : at].strip()
    return "None"
