"""What a run needs of its data: usable rows, gradable answers, questions that do not repeat, room for the response."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from cepo.cli.preflight.grading import example_verdicts, ungradable
from cepo.cli.preflight.preflight import Found, Preflight
from cepo.data import audit
from cepo.data.problems import drop, load_sets
from cepo.errors import UserError
from cepo.messages.groups import Reward
from cepo.run.folder import RunDir

ROWS_NAMED = 3


def data(run: Preflight) -> Found:
    """Columns, questions, answers and lengths of every row."""
    excluded = RunDir(run.folder).excluded_rows() if run.resume else {}
    sets = load_sets(run.config, run.renderer, excluded=excluded, store=run.store)
    run.train, run.held_out = sets["train"], sets.get("eval")
    for found in run.sets.values():
        yield "ok", f"{found.source}: {len(found.problems)} problems, {found.columns}"
        yield from _dropped(found.source, found.dropped)
        if images := [image for problem in found.problems for image in problem.images]:
            tokens = [run.renderer.pixels.tokens(image) for image in images]
            yield "ok", f"{found.source}: {len(images)} images of {min(tokens)} to {max(tokens)} tokens"
    if run.blind and not any(problem.images for problem in run.train.problems):
        yield "note", 'algorithm.images="drop" changes nothing: no row has an image'
    if run.held_out is None:
        yield "note", "data.eval is empty: nothing will say whether training helps"


def answers(run: Preflight) -> Found:
    """Reference answers that the verifier cannot grade are refused or left out."""
    seed = run.config.loop.seed
    sets = {name: found for name, found in run.sets.items() if name == "eval" or not run.config.algorithm.offline}
    graded = {name: audit.sample(found.problems, seed, every=run.every_row) for name, found in sets.items()}
    answers = (problem.answer for problems in graded.values() for problem in problems)
    bad = ungradable(answers, run.config.data.answer_kind)
    for name, problems in graded.items():
        found = run.sets[name]
        wrong = {problem.row: bad[problem.answer] for problem in problems if problem.answer in bad}
        reasons = [drop(f"{found.source}, row {row}: {reason}", run.config.data) for row, reason in wrong.items()]
        rest = "" if len(problems) == len(found.problems) else f", a sample of {len(found.problems)}"
        right = len(problems) - len(wrong)
        yield (
            "ok",
            f"{name}: {right} of {len(problems)} reference answers verify, and not when changed{rest}",
        )
        if wrong and run.resume:
            rows = ", ".join(map(str, sorted(wrong)[:ROWS_NAMED]))
            yield "note", f"{name}: {len(wrong)} rows of the run cannot be graded, the first are {rows}"
        elif wrong:
            yield from _dropped(found.source, reasons)
            _leave_out(run, name, wrong, reasons)


def _leave_out(run: Preflight, name: str, wrong: dict[int, str], reasons: list[str]) -> None:
    found = run.sets[name]
    kept = tuple(problem for problem in found.problems if problem.row not in wrong)
    if not kept:
        raise UserError(f"{found.source} is empty: no answer can be graded, the first because: {reasons[0]}")
    run.excluded[name] = wrong
    left = replace(found, problems=kept, dropped=(*found.dropped, *reasons))
    run.train, run.held_out = (left, run.held_out) if name == "train" else (run.train, left)


def reward(run: Preflight) -> Found:
    """The reward functions load and run; what a right and a wrong answer earn."""
    if run.config.algorithm.offline:
        yield "ok", "none: the run learns from pairs"
        return
    if run.config.reward == Reward():
        yield "ok", "1 for a right answer, 0 for any other"
        return
    right, wrong = example_verdicts(run.config, run.train.problems[0], run.renderer)
    yield "ok", f"a boxed right answer alone earns {right.reward:.4g}, a boxed wrong one {wrong.reward:.4g}"
    if right.reward <= wrong.reward:
        yield "note", "a right answer earns no more than a wrong one: look at [reward]"


def repeats(run: Preflight) -> Found:
    """Questions asked twice, or both trained on and held out."""
    quiet = True
    for name, found in run.sets.items():
        if pairs := audit.repeated(found.problems):
            quiet = False
            yield "note", f"{name}: questions that are asked again: {len(pairs)} ({_named(pairs, 'row {} as row {}')})"
    if run.held_out and (pairs := audit.leaked(run.train.problems, run.held_out.problems)):
        quiet = False
        rows = _named(pairs, "eval row {} is train row {}")
        yield "note", f"held-out questions that are trained on, which flatters accuracy/eval: {len(pairs)} ({rows})"
    if quiet:
        yield "ok", "no question twice" + (", none in both sets" if run.held_out else "")


def context(run: Preflight) -> Found:
    """What the longest row leaves of the context length."""
    longest = max((p for found in run.sets.values() for p in found.problems), key=lambda problem: problem.tokens)
    response, limit = run.config.sampling.max_tokens, run.config.model.max_length
    used = longest.tokens + response + 1
    yield "ok", f"longest prompt with hint {longest.tokens} + response {response} + 1 = {used} of {limit} tokens"


def _dropped(source: str, reasons: Sequence[str]) -> Found:
    if reasons:
        yield "note", f"dropped from {source}: {len(reasons)}"
    for reason in reasons[:ROWS_NAMED]:
        yield "note", f"  {reason.removeprefix(source + ', ')}"
    if len(reasons) > ROWS_NAMED:
        yield "note", f"  and {len(reasons) - ROWS_NAMED} more"


def _named(pairs: list[tuple[int, int]], form: str) -> str:
    more = f", and {len(pairs) - ROWS_NAMED} more" if len(pairs) > ROWS_NAMED else ""
    return ", ".join(form.format(*pair) for pair in pairs[:ROWS_NAMED]) + more
