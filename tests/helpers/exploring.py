"""schemathesis' own command on a service that runs."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

COMMAND = (sys.executable, "-c", "from schemathesis.cli import schemathesis; schemathesis()", "run")
OPTIONS = (
    *("--phases", "examples,coverage,fuzzing"),
    *("--exclude-checks", "positive_data_acceptance"),
    *("--request-timeout", "20"),
    *("--rate-limit", "150/s"),
    "--generation-deterministic",
    "--no-color",
)
"""A request may keep to the schema and still be refused, with 422: a schema cannot say that an answer must hold one.
Every service takes 200 requests a second from an address.
"""
LENIENT = ("--exclude-checks", "positive_data_acceptance,negative_data_rejection")
"""For routes of vLLM, whose request models accept "1" for 1."""
BRIEF = ("--phases", "fuzzing")
"""For what was explored at the bounds of every field already, on toys."""


def explore(url: str, token: str, folder: Path, *more: str, examples: int = 25) -> str:
    """The undocumented replies of a service and any 5xx, as schemathesis reports them; empty if there are none.

    Args:
        examples: requests of random content for each operation, after those at the bounds of every field.
    """
    words = [f"{url}/openapi.json", "--max-examples", str(examples), *OPTIONS, *more]
    words += ["--header", f"Authorization: Bearer {token}"] if token else []
    ended = subprocess.run([*COMMAND, *words], cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert "Tested:" in ended.stdout, ended.stdout
    return ended.stdout if ended.returncode else ""
