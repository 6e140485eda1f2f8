"""`cepo check RUN.toml`: checks everything a run needs before any GPU is used."""

from __future__ import annotations

import json
import shlex
import time
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from cepo.cli.arguments import Overrides, RedisUrl, RunFile
from cepo.cli.preflight.checks import run_checks
from cepo.cli.preflight.examples import FirstImages, example_prompts
from cepo.cli.preflight.preflight import Preflight
from cepo.cli.preflight.report import html_page, print_finding, print_prompt, state_mark
from cepo.errors import StorageError, Unreachable, UserError
from cepo.net.files import replace_file
from cepo.run import file as runfile


def check(
    file: RunFile,
    *,
    set: Overrides = None,
    run_dir: Annotated[
        Path, typer.Option("--run-dir", help="The folder that the run would be written to.", show_default=False)
    ] = Path("runs"),
    redis: RedisUrl = "",
    every_row: Annotated[
        bool, typer.Option("--all", help="Grade every reference answer, not a sample of a large set.")
    ] = False,
    html: Annotated[
        Path | None, typer.Option("--html", metavar="OUT", help="Also write the report with its images as one page.")
    ] = None,
    engine: Annotated[
        bool, typer.Option("--engine", help="Also start vLLM for one prompt, and estimate the hours of the run.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object instead of text.")] = False,
) -> int:
    """Prints the findings and the prompts of the first training problem.

    Returns:
        The exit status: with `as_json`, 2 if a check blocks the run; otherwise 0.

    Raises:
        UserError: a check blocks the run. With `as_json` the printed object holds the error instead.
        Unreachable: Redis does not answer.
    """
    if as_json and html is not None:
        raise UserError("--html and --json exclude each other; give one of them")
    overrides = set or []
    if as_json:
        return _print_json(file, overrides, run_dir, redis, every_row=every_row, engine=engine)
    begin = time.monotonic()
    console = Console(highlight=False)
    first_images = FirstImages()
    config = runfile.load(file, overrides)
    preflight = Preflight(config, run_dir, redis, every_row=every_row, engine=engine, store=first_images)
    findings = []
    try:
        for finding in run_checks(preflight):
            print_finding(console, finding)
            findings.append(finding)
    except (UserError, Unreachable):
        console.print(state_mark("fail"), f"{preflight.check}")
        raise
    prompts, images = example_prompts(preflight), first_images.of(preflight)
    for prompt in prompts:
        print_prompt(console, prompt, images)
    if html is not None:
        _write(html, html_page(f"cepo check {file}", findings, prompts, images))
        console.print(f"\npage written to {html}", markup=False, soft_wrap=True)
    command = shlex.join(["cepo", "train", str(file), *(word for each in overrides for word in ("--set", each))])
    console.print(f"\nready in {time.monotonic() - begin:.0f} s; train with: {command}", markup=False, soft_wrap=True)
    return 0


def _print_json(file: Path, overrides: list[str], run_dir: Path, redis: str, *, every_row: bool, engine: bool) -> int:
    findings: list[dict[str, Any]] = []
    reply: dict[str, Any] = {"ok": True, "findings": findings}
    preflight = None
    try:
        config = runfile.load(file, overrides)
        preflight = Preflight(config, run_dir, redis, every_row=every_row, engine=engine)
        findings.extend(asdict(finding) for finding in run_checks(preflight))
        reply["prompts"] = [asdict(prompt) for prompt in example_prompts(preflight)]
        reply["dropped"] = {name: list(problems.dropped) for name, problems in preflight.sets.items()}
    except (UserError, Unreachable) as error:
        reply |= {"ok": False, "error": {"check": preflight.check if preflight else "config", "text": str(error)}}
    print(json.dumps(reply, indent=2, ensure_ascii=False))
    return 0 if reply["ok"] else 2


def _write(path: Path, text: str) -> None:
    try:
        replace_file(path, text)
    except StorageError as error:
        raise UserError(f"--html {error}") from error
