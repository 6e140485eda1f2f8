"""`cepo check RUN.toml`: everything a run needs, looked at before any GPU works."""

from __future__ import annotations

import argparse
import json
import shlex
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from cepo.cli.arguments import add_redis, add_run_file
from cepo.cli.preflight.checks import run_checks
from cepo.cli.preflight.pictures import drawing, page, pictures
from cepo.cli.preflight.preflight import Finding, Preflight, Prompt
from cepo.errors import Unreachable, UserError
from cepo.run import file as runfile

MARKS = {"ok": ("ok  ", "green"), "note": ("note", "yellow"), "fail": ("FAIL", "bold red")}
HEAD_CHARACTERS = 160
TAIL_CHARACTERS = 300
CONTEXT_CHARACTERS = 80


def add_parser(commands: Any) -> None:
    parser = commands.add_parser("check", help="look at a run's model, data, prompts and machine before it starts")
    add_run_file(parser)
    parser.add_argument("--run-dir", type=Path, default=Path("runs"), help="where the run would be written")
    add_redis(parser)
    parser.add_argument("--all", action="store_true", help="grade every reference answer, not a sample of a large set")
    form = parser.add_mutually_exclusive_group()
    form.add_argument("--html", type=Path, metavar="OUT", help="also write the report with its images as one page")
    form.add_argument("--json", action="store_true", help="one JSON object instead of text")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Shows what is found; the first blocking problem ends it with exit 2."""
    if options.json:
        return _json(options)
    begun = time.monotonic()
    console = Console(highlight=False)
    preflight = _preflight(options)
    findings = []
    try:
        for finding in run_checks(preflight):
            show(console, finding)
            findings.append(finding)
    except (UserError, Unreachable):
        console.print(_mark("fail"), f"{preflight.check}")
        raise
    prompts, images = preflight.prompts(), pictures(preflight)
    for prompt in prompts:
        _show_prompt(console, prompt, images)
    if options.html is not None:
        _write(options.html, page(f"cepo check {options.file}", findings, prompts, images))
        console.print(f"\npage written to {options.html}", markup=False, soft_wrap=True)
    words = shlex.join(
        ["cepo", "train", str(options.file), *(word for each in options.set for word in ("--set", each))]
    )
    console.print(f"\nready in {time.monotonic() - begun:.0f} s; train with: {words}", markup=False, soft_wrap=True)
    return 0


def show(console: Console, finding: Finding) -> None:
    """One finding as one line."""
    line = Text.assemble(_mark(finding.state), f" {finding.check:<8} ", finding.text)
    console.print(line, soft_wrap=True)


def _json(options: argparse.Namespace) -> int:
    findings: list[dict[str, Any]] = []
    reply: dict[str, Any] = {"ok": True, "findings": findings}
    preflight = None
    try:
        preflight = _preflight(options)
        findings.extend(asdict(finding) for finding in run_checks(preflight))
        reply["prompts"] = [asdict(prompt) for prompt in preflight.prompts()]
        reply["dropped"] = {name: list(found.dropped) for name, found in preflight.sets.items()}
    except (UserError, Unreachable) as error:
        reply |= {"ok": False, "error": {"check": preflight.check if preflight else "config", "text": str(error)}}
    print(json.dumps(reply, indent=2, ensure_ascii=False))
    return 0 if reply["ok"] else 2


def _preflight(options: argparse.Namespace) -> Preflight:
    config = runfile.load(options.file, options.set)
    return Preflight(config, options.run_dir, options.redis, every_row=options.all)


def _mark(state: str) -> Text:
    word, style = MARKS[state]
    return Text(word, style=style)


def _write(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(f"--html {path} cannot be written: {error.strerror}") from error


def _show_prompt(console: Console, prompt: Prompt, images: Sequence[bytes]) -> None:
    """The plain prompt, its middle left out where it is long; of the others the end, the hint marked."""
    console.print(Text(f"\n{prompt.title}, {prompt.tokens} tokens", style="bold"))
    if not prompt.hint:
        for number, (what, data) in enumerate(zip(prompt.images, images, strict=True), start=1):
            console.print(f"image {number}: {what}", soft_wrap=True)
            if console.color_system is not None:
                console.print(drawing(data, console.width))
    head, tail = (0, CONTEXT_CHARACTERS) if prompt.hint else (HEAD_CHARACTERS, TAIL_CHARACTERS)
    before, hint, after = prompt.parts
    if len(before) > head + tail:
        before = f"{before[:head]}[...]{before[-tail:]}"
    marked = f">>{hint}<<" if hint else ""
    console.print(Text.assemble((before, "dim"), (marked, "bold cyan"), (after, "dim")), soft_wrap=True)
