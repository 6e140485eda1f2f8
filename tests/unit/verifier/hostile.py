"""Responses that try to hang, crash, exhaust or fool a grader, and innocent ones to put between them."""

from __future__ import annotations

import random

from cepo.messages.groups import Outcome
from services.verifier.verdicts import Item

_LOOK_ALIKES = ("\u0417", "\u01b7", "\U0001d7db", "\u00b3", "\u2462", "\u4e09", "\u216b", "\u00be", "\u0c69\u20e3")
_CONTROLS = ("\x00", "\x1b[2J", "\x07", "\x7f", "\u202e", "\u200b", "\ufeff", "\ud800", "\U000e0041", "\r\n\x0b")


def _boxed(answers: list[str], reference: str = "7", kind: str = "") -> list[Item]:
    return [Item(f"so \\boxed{{{answer}}}", reference, kind) for answer in answers]


def _bombs() -> list[Item]:
    """Algebra that never ends or does not fit into memory, also where unevaluated answers count."""
    towers = [f"{a}^{{9^{{9^{b}}}}}" for a in (2, 9) for b in (7, 8)] + ["9^{9^{9^9}}", "10^{10^{10}}!", "((99!)!)!"]
    sums = [f"\\sum_{{n=1}}^{{10^{i}}} n^{{n}}" for i in (6, 9)] + ["\\prod_{k=1}^{10^9} k"]
    powers = [f"(x+y+z)^{{{i}}}(a+b)^{{{i}}}" for i in (400, 900)] + ["(x+1)^{10^{9}}", "2^{10^{12}}"]
    integrals = [f"\\int_0^1 x^{{x^{{{i}}}}} dx" for i in range(2)] + ["\\int e^{-x^{x^x}}\\sin(x^x) dx"]
    bombs = towers + sums + powers + integrals
    endless = [f"\\sum_{{n=1}}^{{10^{i}}} n^{{n}}" for i in (7, 8)] + ["\\prod_{k=1}^{10^8} k^{k}"]
    return _boxed(bombs) + _boxed(bombs + endless, kind="unevaluated") + _boxed(bombs, "x+3")


def _nested() -> list[Item]:
    """Deeper nesting than any parser supports."""
    pairs = [("{", "}"), ("(", ")"), ("[", "]"), ("\\{", "\\}"), ("\\frac{1}{", "}"), ("\\sqrt{", "}"), ("|", "|")]
    answers = [a * n + "1" + b * n for a, b in pairs for n in (90, 10_000, 100_000) if n < 90_000 or len(a) == 1]
    answers += ["{" * 1_000_000 + "}" * 1_000_000, "1" + "/1" * 400, "x^" * 300 + "x", "\\sqrt" * 150, "-" * 900 + "1"]
    return _boxed(answers) + [Item("\\boxed{" * n, "7") for n in (10, 1000, 150_000)]


def _long() -> list[Item]:
    """Megabytes, with and without marks."""
    bulks = [
        "9",
        "a ",
        "\\",
        "#",
        "#### ",
        "####1",
        "$",
        "\n",
        "Answer:",
        "<answer>",
        "</answer>",
        "\\boxed",
        "1,",
        "*",
    ]
    items = [Item(bulk * (1_000_000 // len(bulk)), "7", kind) for bulk in bulks for kind in ("", "anywhere")]
    return items + _boxed(["9" * 999, "9" * 1_000_000, "1." + "0" * 990 + "1", "1e999999999", "1e-300", "0." * 400])


def _catastrophic() -> list[Item]:
    """Texts that make backtracking regular expressions explode."""
    seeds = [
        "a a",
        "1,1",
        "((",
        "\\text{",
        "$ $",
        " =",
        "1 1/2 ",
        "- ",
        "\\frac ",
        "x and ",
        "A, ",
        "% ",
        "\\, ",
        "^{2}",
    ]
    boxed = [seed * (900 // len(seed)) + "!" for seed in seeds]
    return (
        _boxed(boxed) + [Item(text, "7", "anywhere") for text in boxed] + _boxed(boxed[:6], "B") + _boxed(boxed, "$x$")
    )


def _fooling() -> list[Item]:
    """Look-alikes, control characters, code, and answers that would equal anything."""
    code = ["__import__('os').system('true')", "exec('1')", "%s%n", "{0.__class__}", "\\input{/etc/passwd}", "${8*1}$;"]
    vague = ["x", "nan", "\\infty", "0/0", "1/0", "\\text{any}", "\\pm 7", "7 or 8", "6,7", "\\{7,8\\}", "[7,8]", "7=8"]
    answers = [*_LOOK_ALIKES, *_CONTROLS, *(c + "8" for c in _CONTROLS), *code, *vague]
    for_letters = [Item(f"\\boxed{{{letter}}}", "C") for letter in ("\u0421", "\u03f9", "\U0001d402", "\u2102", "ABCD")]
    return _boxed(answers) + _boxed(answers, "B") + _boxed(answers, "yes") + _boxed(answers, "x+3") + for_letters


def hostile() -> list[Item]:
    """At least 300 hostile items."""
    return [*_bombs(), *_nested(), *_long(), *_catastrophic(), *_fooling()]


def innocent(count: int) -> list[tuple[Item, Outcome]]:
    """Items with the verdict they must get, half of them by algebra."""
    rng = random.Random(0)
    found = []
    for i in range(count):
        a, b = rng.randint(2, 40), rng.randint(2, 40)
        right = i % 3 != 0
        answer, reference, wrong = (
            (f"{a * b}", f"{a * b}.0", f"{a * b + 1}"),
            (f"{a}x+{b}x", f"{a + b}x", f"{a + b + 1}x"),
            (f"\\sqrt{{{a * a}}}", f"{a}", f"\\sqrt{{{a * a + 1}}}"),
            (f"{a}x-{b}", f"x*{a} - {b}", f"{a}x+{b}"),
        )[i % 4]
        item = Item(f"so \\boxed{{{answer if right else wrong}}}", reference)
        found.append((item, Outcome.CORRECT if right else Outcome.WRONG))
    return found
