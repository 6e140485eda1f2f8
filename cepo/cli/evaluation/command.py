"""`cepo eval RUN.toml`: pass@k of the base model or of any policy of a run on the held-out problems."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from cepo.cli.arguments import Overrides, RedisUrl, RunFile
from cepo.cli.evaluation.measuring import Plan, measure
from cepo.cli.evaluation.plot import Line, pass_at_k_svg
from cepo.cli.evaluation.scores import ALL, MeasuredPolicy, as_data, sample_lines, scores, table
from cepo.cli.preflight.checks import CHECKS
from cepo.cli.preflight.machine_checks import kv_cache_bytes
from cepo.cli.preflight.preflight import Preflight
from cepo.data.problems import load_problems
from cepo.errors import UserError
from cepo.messages.groups import BASE_POLICY, PolicyRef
from cepo.net.files import make_folder, replace_file
from cepo.prompts.images import ImageStore
from cepo.prompts.renderer import Renderer, require_model
from cepo.run import file as runfile
from cepo.run.folder import RunDir
from cepo.run.local import Stack, running
from cepo.service import adapters

if TYPE_CHECKING:
    from cepo.run.config import RunConfig

LATEST = "latest"
SAMPLES = 8
SERVICES = ("rollout", "verifier")
PAPER = ("eval.temperature=1.0", "eval.top_p=1.0", "eval.top_k=40", "eval.presence_penalty=2.0")
"""The sampling of the paper's evaluations (arXiv:2605.19436)."""
Policies = Annotated[
    list[str] | None,
    typer.Option(
        "--policy",
        metavar="base|latest|VERSION",
        help="May be repeated; default: latest, or base without --run-dir.",
    ),
]


def evaluate(
    file: RunFile,
    *,
    set: Overrides = None,
    run_dir: Annotated[
        Path | None, typer.Option("--run-dir", help="The folder of a run whose policies are measured.")
    ] = None,
    policy: Policies = None,
    samples: Annotated[int, typer.Option("--samples", help="Responses per problem.")] = SAMPLES,
    sampling: Annotated[
        Literal["paper", "run"],
        typer.Option(
            "--sampling",
            help="paper: temperature 1, top-p 1, top-k 40, presence penalty 2; run: [eval] of the run file.",
        ),
    ] = "paper",
    limit: Annotated[
        int, typer.Option("--limit", help="Measure only the first problems; 0 measures all.", show_default=False)
    ] = 0,
    out: Annotated[
        Path | None, typer.Option("--out", help="The folder of the results; default: eval/TIME in the run folder.")
    ] = None,
    redis: RedisUrl = "",
) -> None:
    """Samples and grades the held-out problems; writes results.json, pass_at_k.svg and each policy's samples.

    Raises:
        UserError: names the option, key or row that does not fit.
        Unreachable: Redis does not answer.
    """
    paper = PAPER if sampling == "paper" else ()
    overrides = [*paper, f"eval.samples={samples}", *(set or [])]
    plan, results = prepare(file, overrides, run_dir=run_dir, policies=policy, limit=limit, out=out, redis=redis)
    console = Console(highlight=False)
    console.print(f"{len(plan.problems.problems)} problems of {plan.problems.source}", soft_wrap=True)
    console.print(_sampling(plan.config), soft_wrap=True)
    make_folder(results.logs)
    stack = Stack(plan.config, results, redis, SERVICES, kv_cache_bytes=kv_cache_bytes(plan.config))
    try:
        with running(stack):
            measured = asyncio.run(measure_all(plan, stack, results.path, console))
    except KeyboardInterrupt:
        raise UserError(f"stopped; the policies that were done are in {results.path}") from None
    console.print(table(measured))
    console.print(f"± is half of the 95 % interval over problems; results in {results.path}", soft_wrap=True)


def prepare(
    file: Path,
    overrides: Sequence[str] = (),
    *,
    run_dir: Path | None = None,
    policies: Sequence[str] | None = None,
    limit: int = 0,
    out: Path | None = None,
    redis: str = "",
) -> tuple[Plan, RunDir]:
    """Plans an evaluation and names the folder of its results; nothing is started or written.

    Raises:
        UserError: names the option, key or row that does not fit.
        Unreachable: Redis does not answer.
    """
    config = runfile.load(file, overrides)
    run = _trained_run(file, config, run_dir)
    adapter_folders = dict(_policy(name, run) for name in policies or [LATEST if run else BASE_POLICY.name])
    results = RunDir(out or _default_out(config, run))
    if results.path.exists():
        raise UserError(f"{results.path} exists; give another --out")
    require_model(config.model.path)
    for check in ("redis", "device"):
        list(CHECKS[check](Preflight(config, results.path, redis, starts=SERVICES)))
    return _plan(config, run, adapter_folders, limit, results), results


async def measure_all(plan: Plan, stack: Stack, out: Path, console: Console) -> list[MeasuredPolicy]:
    """Measures every policy on a started stack; writes the results again after each policy."""
    measured: list[MeasuredPolicy] = []
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True) as progress:
        bars: dict[PolicyRef, Any] = {
            policy: progress.add_task(policy.name, total=len(plan.problems.problems)) for policy in plan.folders
        }
        async for each in measure(plan, stack, lambda policy: progress.advance(bars[policy])):
            measured.append(each)
            _write(plan, measured, out)
    return measured


def _trained_run(file: Path, config: RunConfig, run_dir: Path | None) -> RunDir | None:
    """The run of `--run-dir`, if it is given.

    Raises:
        UserError: the folder holds no run, or a run of another model.
    """
    if run_dir is None:
        return None
    run = RunDir(run_dir)
    if not run.config.is_file():
        raise UserError(f"--run-dir {run.path} holds no run; train it first")
    trained = runfile.load(run.config)
    for key, ours, theirs in (
        ("model.path", config.model.path, trained.model.path),
        ("lora.targets", config.lora.targets, trained.lora.targets),
        ("lora.rank", config.lora.rank, trained.lora.rank),
    ):
        if ours != theirs:
            raise UserError(f"{key}={ours} in {file}, but {theirs} in {run.config}; evaluate that file")
    return run


def _policy(name: str, run: RunDir | None) -> tuple[PolicyRef, Path]:
    """The policy of a `--policy` option, and the folder of its adapter.

    Raises:
        UserError: there is no such policy; names the policies of the run.
    """
    if name in (BASE_POLICY.name, "0"):
        return BASE_POLICY, Path()
    if run is None:
        raise UserError(f"--policy {name} needs the --run-dir it was trained in; without one there is only base")
    versions = {int(path.name[1:]): path for path in sorted(run.adapters.glob("v[0-9]*"))}
    if not versions:
        raise UserError(f"{run.path} holds no adapter yet; measure --policy base, or train it first")
    version = max(versions) if name == LATEST else int(name) if name.isdecimal() else -1
    if version not in versions:
        raise UserError(
            f"--policy {name}: this run has base and {min(versions)} to {max(versions)} ({LATEST}); "
            "checkpoint.keep_policies says how many are kept"
        )
    return PolicyRef(version=version, sha256=adapters.digest(adapters.read(versions[version]))), versions[version]


def _default_out(config: RunConfig, run: RunDir | None) -> Path:
    stamp = time.strftime("%Y%m%d-%H%M%S")
    return run.path / "eval" / stamp if run else Path("runs") / f"{config.name}-eval-{stamp}"


def _plan(
    config: RunConfig, run: RunDir | None, adapter_folders: dict[PolicyRef, Path], limit: int, results: RunDir
) -> Plan:
    if not config.data.eval:
        raise UserError("config key data.eval is empty; name the held-out problems")
    if limit < 0:
        raise UserError(f"--limit {limit}: give a number of problems, or leave it out for all")
    renderer = Renderer(config.model.path, config.data.template)
    excluded = run.excluded_rows().get("eval") if run else None
    problems = load_problems(config, renderer, held_out=True, excluded=excluded, store=ImageStore(results.images))
    if limit:
        problems = replace(problems, problems=problems.problems[:limit])
    return Plan(config, problems, adapter_folders, renderer.sha256, results.images)


def _write(plan: Plan, measured: list[MeasuredPolicy], out: Path) -> None:
    config = plan.config
    results = {
        "name": config.name,
        "model": config.model.path,
        "data": plan.problems.source,
        "problems": len(plan.problems.problems),
        "sampling": config.eval.model_dump(exclude={"every", "prompts"}) | {"max_tokens": config.sampling.max_tokens},
        "seed": config.loop.seed,
        "policies": [as_data(each) for each in measured],
    }
    replace_file(out / "results.json", json.dumps(results, indent=2) + "\n")
    lines = [Line(each.label, scores(each)[ALL].pass_at) for each in measured]
    replace_file(out / "pass_at_k.svg", pass_at_k_svg(f"pass@k of {config.name}", _sampling(config), lines))
    samples = out / f"samples-{measured[-1].label}.jsonl"
    replace_file(samples, "".join(f"{line}\n" for line in sample_lines(measured[-1])))


def _sampling(config: RunConfig) -> str:
    chosen = config.eval
    return (
        f"{chosen.samples} samples, temperature {chosen.temperature:g}, top-p {chosen.top_p:g}, "
        f"top-k {chosen.top_k or 'off'}, presence penalty {chosen.presence_penalty:g}"
    )
