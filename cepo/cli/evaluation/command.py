"""`cepo eval RUN.toml`: pass@k of the base or of any policy of a run on the held-out problems."""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from cepo.cli.arguments import add_redis, add_run_file
from cepo.cli.evaluation.measuring import Plan, measure
from cepo.cli.evaluation.plot import Line, pass_at_k_svg
from cepo.cli.evaluation.scores import ALL, Measured, as_data, sample_lines, scores, table
from cepo.cli.preflight.checks import CHECKS
from cepo.cli.preflight.preflight import Preflight
from cepo.data.problems import load_problems
from cepo.errors import UserError
from cepo.messages.groups import BASE_POLICY, PolicyRef
from cepo.prompts.images import ImageStore
from cepo.prompts.renderer import Renderer, require_model
from cepo.run import file as runfile
from cepo.run.config import RunConfig
from cepo.run.folder import RunDir
from cepo.run.local import Stack, running
from cepo.service import adapters

LATEST = "latest"
SAMPLES = 8
SERVICES = ("rollout", "verifier")
PAPER = ("eval.temperature=1.0", "eval.top_p=1.0", "eval.top_k=40", "eval.presence_penalty=2.0")
"""How the paper samples its evaluations (arXiv:2605.19436)."""


def add_parser(commands: Any) -> None:
    parser = commands.add_parser("eval", help="pass@k of the base or of a run's policies on the held-out problems")
    add_run_file(parser)
    parser.add_argument("--run-dir", type=Path, help="folder of a run whose policies are measured")
    parser.add_argument(
        "--policy",
        action="append",
        default=[],
        metavar="base|latest|VERSION",
        help="may be given several times (default: latest, or base without --run-dir)",
    )
    parser.add_argument("--samples", type=int, default=SAMPLES, help=f"responses a problem (default: {SAMPLES})")
    parser.add_argument(
        "--sampling",
        choices=("paper", "run"),
        default="paper",
        help="paper: temperature 1, top-p 1, top-k 40, presence penalty 2 (default); run: [eval] of the run file",
    )
    parser.add_argument("--limit", type=int, default=0, help="the first problems alone (default: all)")
    parser.add_argument("--out", type=Path, help="folder of the results (default: eval/TIME in the run folder)")
    add_redis(parser)
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Measures and writes results.json, pass_at_k.svg and the samples of every policy."""
    plan, out = prepare(options)
    console = Console(highlight=False)
    console.print(f"{len(plan.problems.problems)} problems of {plan.problems.source}", soft_wrap=True)
    console.print(_sampling(plan.config), soft_wrap=True)
    out.logs.mkdir(parents=True)
    stack = Stack(plan.config, out, options.redis, SERVICES)
    try:
        with running(stack):
            found = asyncio.run(evaluate(plan, stack, out.path, console))
    except KeyboardInterrupt:
        raise UserError(f"stopped; the policies that were done are in {out.path}") from None
    console.print(table(found))
    console.print(f"± is half of the 95 % interval over problems; results in {out.path}", soft_wrap=True)
    return 0


def prepare(options: argparse.Namespace) -> tuple[Plan, RunDir]:
    """What is to be measured and where its results go; nothing is started or written.

    Raises:
        UserError: names the option, key or row that does not fit.
    """
    settings = PAPER if options.sampling == "paper" else ()
    config = runfile.load(options.file, [*settings, f"eval.samples={options.samples}", *options.set])
    folder = _run_dir(options, config)
    names = options.policy or [LATEST if folder else BASE_POLICY.name]
    folders = dict(_policy(name, folder) for name in names)
    out = RunDir(options.out or _default_out(config, folder))
    if out.path.exists():
        raise UserError(f"{out.path} exists; give another --out")
    require_model(config.model.path)
    for check in ("redis", "device"):
        list(CHECKS[check](Preflight(config, out.path, options.redis, starts=SERVICES)))
    return _plan(config, folder, folders, options.limit, out), out


async def evaluate(plan: Plan, stack: Stack, out: Path, console: Console) -> list[Measured]:
    """Measures on a started stack, and writes after each policy what is known by then."""
    found: list[Measured] = []
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        bars: dict[PolicyRef, Any] = {
            policy: progress.add_task(policy.name, total=len(plan.problems.problems)) for policy in plan.folders
        }
        async for measured in measure(plan, stack, lambda policy: progress.advance(bars[policy])):
            found.append(measured)
            _write(plan, found, out)
    return found


def _run_dir(options: argparse.Namespace, config: RunConfig) -> RunDir | None:
    """The run folder, if one is named.

    Raises:
        UserError: it holds no run, or one of another model.
    """
    if options.run_dir is None:
        return None
    folder = RunDir(options.run_dir)
    if not folder.config.is_file():
        raise UserError(f"--run-dir {folder.path} holds no run; train it first")
    trained = runfile.load(folder.config)
    for key, ours, theirs in (
        ("model.path", config.model.path, trained.model.path),
        ("lora.targets", config.lora.targets, trained.lora.targets),
        ("lora.rank", config.lora.rank, trained.lora.rank),
    ):
        if ours != theirs:
            raise UserError(f"{key}={ours} in {options.file}, but {theirs} in {folder.config}; evaluate that file")
    return folder


def _policy(name: str, folder: RunDir | None) -> tuple[PolicyRef, Path]:
    """A policy by the name a user gives it, and its adapter.

    Raises:
        UserError: there is no such policy; names those there are.
    """
    if name in (BASE_POLICY.name, "0"):
        return BASE_POLICY, Path()
    if folder is None:
        raise UserError(f"--policy {name} needs the --run-dir it was trained in; without one there is only base")
    versions = {int(path.name[1:]): path for path in sorted(folder.adapters.glob("v[0-9]*"))}
    if not versions:
        raise UserError(f"{folder.path} holds no adapter yet; measure --policy base, or train it first")
    version = max(versions) if name == LATEST else int(name) if name.isdecimal() else -1
    if version not in versions:
        raise UserError(
            f"--policy {name}: this run has base and {min(versions)} to {max(versions)} ({LATEST}); "
            "checkpoint.keep_policies says how many are kept"
        )
    return PolicyRef(version=version, sha256=adapters.digest(adapters.read(versions[version]))), versions[version]


def _default_out(config: RunConfig, folder: RunDir | None) -> Path:
    stamp = time.strftime("%Y%m%d-%H%M%S")
    return folder.path / "eval" / stamp if folder else Path("runs") / f"{config.name}-eval-{stamp}"


def _plan(config: RunConfig, folder: RunDir | None, folders: dict[PolicyRef, Path], limit: int, out: RunDir) -> Plan:
    if not config.data.eval:
        raise UserError("config key data.eval is empty; name the held-out problems")
    if limit < 0:
        raise UserError(f"--limit {limit}: give a number of problems, or leave it out for all")
    renderer = Renderer(config.model.path)
    excluded = folder.excluded_rows().get("eval") if folder else None
    problems = load_problems(config, renderer, held_out=True, excluded=excluded, store=ImageStore(out.images))
    if limit:
        problems = replace(problems, problems=problems.problems[:limit])
    return Plan(config, problems, folders, renderer.sha256, out.images)


def _write(plan: Plan, found: list[Measured], out: Path) -> None:
    config = plan.config
    results = {
        "name": config.name,
        "model": config.model.path,
        "data": plan.problems.source,
        "problems": len(plan.problems.problems),
        "sampling": config.eval.model_dump(exclude={"every", "prompts"}) | {"max_tokens": config.sampling.max_tokens},
        "seed": config.loop.seed,
        "policies": [as_data(measured) for measured in found],
    }
    (out / "results.json").write_text(json.dumps(results, indent=2) + "\n")
    lines = [Line(measured.label, scores(measured)[ALL].pass_at) for measured in found]
    (out / "pass_at_k.svg").write_text(pass_at_k_svg(f"pass@k of {config.name}", _sampling(config), lines))
    samples = out / f"samples-{found[-1].label}.jsonl"
    samples.write_text("".join(f"{line}\n" for line in sample_lines(found[-1])))


def _sampling(config: RunConfig) -> str:
    chosen = config.eval
    return (
        f"{chosen.samples} samples, temperature {chosen.temperature:g}, top-p {chosen.top_p:g}, "
        f"top-k {chosen.top_k or 'off'}, presence penalty {chosen.presence_penalty:g}"
    )
