"""Words that readers have misunderstood, in documents, docstrings, comments and messages."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
ROOMS = ("cepo", "services", "proto", "deploy", "docs", "benchmarks", "tests")
ENDINGS = {".py", ".md", ".toml", ".proto", ".yaml", ".yml", ".js", ".html"}
GENERATED = ("cepo/pb/", "tests/unit/test_english.py", "cepo/dashboard/files/vendor/", "tests/unit/deploy/crds/")

INSTEAD = {
    r"mend(s|ed|ing)?": "fix",
    r"somebody|whoever|anybody": "name the subject",
    r"in (a |its |the )?hands?\b(?! side)": "in progress, held by",
    r"at hand": "current, available",
    r"(a model|models?) that sees?": "a vision-language model",
    r"is told of": "name the subject",
    r"(?<!`)beaten": "superseded",
    r"lent|lends?": "shared, exclusive access",
    r"by and by|for want of|thereof|hitherto": "plain words",
    r"so many": "this many, or the number",
    r"else nothing|nothing else": "only",
    r"it is that of": "name the noun",
    r"besides,": "also",
    r"goes on (with|from|where)": "continues, resumes",
    r"let in\b": "accepted",
}
"""What not to write, as a pattern between word boundaries, and what to write."""


def texts() -> Iterator[tuple[Path, str]]:
    top = [path for path in ROOT.iterdir() if path.is_file()]
    for path in [*top, *(path for room in ROOMS for path in (ROOT / room).rglob("*"))]:
        name = path.relative_to(ROOT).as_posix()
        if path.suffix in ENDINGS and not name.startswith(GENERATED):
            yield path, path.read_text(errors="replace")


@pytest.mark.parametrize("word", INSTEAD)
def test_no_word_of_the_list_is_used(word: str) -> None:
    pattern = re.compile(rf"\b(?:{word})\b", re.IGNORECASE)
    places = [
        f"{path.relative_to(ROOT)}:{text.count(chr(10), 0, match.start()) + 1}: {match[0]}"
        for path, text in texts()
        for match in pattern.finditer(text)
    ]
    assert not places, f"write: {INSTEAD[word]}"
