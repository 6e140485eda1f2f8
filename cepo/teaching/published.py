"""The rejected answer as the reference code shows it, including its faults; used only to reproduce its numbers.

Source: ahmedheakl/CEPO at 7a9655d, `RayPPOTrainer._build_cepo_teacher_batch`, with mathruler 0.1.0.
"""

from __future__ import annotations

CHARACTERS = 50
_BOX = "\\boxed{"


def published_answer(text: str) -> str:
    """Returns the content of the last box, "None" without a box, and the first characters if the box is empty.

    "None" is a fault of the reference code: its fallback to the first characters was meant for a missing box, but a
    non-empty string counts as an answer.

    Examples: "so \\boxed{8}" gives "8"; "no box" gives "None"; "\\boxed{} x" gives "\\boxed{} x".
    """
    return boxed(text) or text[:CHARACTERS]


def boxed(text: str) -> str:
    """Returns the content of the last box, or "None" without a box, as mathruler's `extract_boxed_content` does."""
    start = text.rfind(_BOX)
    if start < 0:
        return "None"
    depth = 1
    for at in range(start + len(_BOX), len(text)):
        depth += {"{": 1, "}": -1}.get(text[at], 0)
        if depth == 0:
            return text[start + len(_BOX) : at].strip()
    return "None"
