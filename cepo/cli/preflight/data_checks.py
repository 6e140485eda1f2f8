"""Checks of the data: usable rows, answers that can be graded, repeated questions, room for the response."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from cepo.cli.preflight.grading import GoldCheck, check_gold, example_verdicts
from cepo.cli.preflight.preflight import Findings, Preflight
from cepo.data import audit
from cepo.data.problems import Problem, drop, load_sets
from cepo.errors import UserError
from cepo.messages.groups import ContextName, Reward
from cepo.run.folder import RunDir

ROWS_NAMED = 3


def data(run: Preflight) -> Findings:
    """Every row has its columns, a question, an answer, and fits the context."""
    excluded = RunDir(run.folder).excluded_rows() if run.resume else {}
    sets = load_sets(run.config, run.renderer, excluded=excluded, store=run.store)
    run.train, run.held_out = sets["train"], sets.get("eval")
    for problems in run.sets.values():
        yield "ok", f"{problems.source}: {len(problems.problems)} problems, {problems.columns}"
        yield from _dropped(problems.source, problems.dropped)
        if images := [image for problem in problems.problems for image in problem.images]:
            tokens = [run.renderer.pixels.tokens(image) for image in images]
            yield "ok", f"{problems.source}: {len(images)} images of {min(tokens)} to {max(tokens)} tokens"
    if run.blind and not any(problem.images for problem in run.train.problems):
        yield "note", 'algorithm.images="drop" changes nothing: no row has an image'
    if run.held_out is None:
        yield "note", "data.eval is empty: the run will not measure whether training helps"


def answers(run: Preflight) -> Findings:
    """The verifier can grade the reference answers; rows whose answer it cannot grade are refused or left out."""
    seed = run.config.loop.seed
    sets = {name: loaded for name, loaded in run.sets.items() if name == "eval" or not run.config.algorithm.offline}
    samples = {name: audit.sample(loaded.problems, seed, every=run.every_row) for name, loaded in sets.items()}
    golds = _golds(run, [problem for sample in samples.values() for problem in sample])
    for name, sample in samples.items():
        loaded = run.sets[name]
        checked = [(problem, golds[_kind(run, problem)]) for problem in sample]
        bad_rows = {
            problem.row: gold.ungradable[problem.answer]
            for problem, gold in checked
            if problem.answer in gold.ungradable
        }
        dropped = [drop(f"{loaded.source}, row {row}: {reason}", run.config.data) for row, reason in bad_rows.items()]
        rest = "" if len(sample) == len(loaded.problems) else f", a sample of {len(loaded.problems)}"
        good = len(sample) - len(bad_rows)
        yield (
            "ok",
            f"{name}: {good} of {len(sample)} reference answers verify, and do not when changed{rest}",
        )
        narrow = [
            f"row {problem.row}: {gold.narrow[problem.answer]}"
            for problem, gold in checked
            if problem.answer in gold.narrow
        ]
        if narrow:
            yield "note", f"{name}: right answers in another spelling are refused: {len(narrow)} rows"
            yield from (("note", f"  {line}") for line in narrow[:ROWS_NAMED])
        if bad_rows and run.resume:
            first = ", ".join(map(str, sorted(bad_rows)[:ROWS_NAMED]))
            yield "note", f"{name}: {len(bad_rows)} rows of the run cannot be graded, the first are {first}"
        elif bad_rows:
            yield from _dropped(loaded.source, dropped)
            _leave_out(run, name, bad_rows, dropped)


def _golds(run: Preflight, problems: Sequence[Problem]) -> dict[str, GoldCheck]:
    """The check of the reference answers of each answer kind."""
    kinds = dict.fromkeys(_kind(run, problem) for problem in problems)
    return {kind: check_gold((p.answer for p in problems if _kind(run, p) == kind), kind) for kind in kinds}


def _kind(run: Preflight, problem: Problem) -> str:
    return run.config.data.of(problem.source).answer_kind


def _leave_out(run: Preflight, name: str, bad_rows: dict[int, str], dropped: list[str]) -> None:
    loaded = run.sets[name]
    kept = tuple(problem for problem in loaded.problems if problem.row not in bad_rows)
    if not kept:
        raise UserError(f"{loaded.source} is empty: no answer can be graded, the first because: {dropped[0]}")
    run.excluded[name] = bad_rows
    left = replace(loaded, problems=kept, dropped=(*loaded.dropped, *dropped))
    run.train, run.held_out = (left, run.held_out) if name == "train" else (run.train, left)


def reward(run: Preflight) -> Findings:
    """The reward functions load and run; reports the rewards of a right and a wrong answer."""
    if run.config.algorithm.offline:
        yield "ok", "none: the run trains on pairs"
        return
    for title in dict.fromkeys(problem.source for problem in run.train.problems):
        rule, whose = run.config.reward_of(title), f"{title}: " if title else ""
        if rule == Reward():
            yield "ok", f"{whose}1 for a right answer, 0 for any other"
            continue
        first = next(problem for problem in run.train.problems if problem.source == title)
        right, wrong = example_verdicts(run.config, first, run.renderer)
        yield "ok", f"{whose}a boxed right answer alone earns {right.reward:.4g}, a boxed wrong one {wrong.reward:.4g}"
        if right.reward <= wrong.reward:
            yield "note", f"{whose}a right answer earns no more than a wrong one: check [reward]"


def repeats(run: Preflight) -> Findings:
    """No question is repeated, or is both in the training set and held out."""
    clean = True
    for name, loaded in run.sets.items():
        if pairs := audit.repeated(loaded.problems):
            clean = False
            yield "note", f"{name}: repeated questions: {len(pairs)} ({_named(pairs, 'row {} as row {}')})"
    if run.held_out and (pairs := audit.leaked(run.train.problems, run.held_out.problems)):
        clean = False
        rows = _named(pairs, "eval row {} is train row {}")
        yield (
            "note",
            f"held-out questions that are also trained on, which inflates accuracy/eval: {len(pairs)} ({rows})",
        )
    if clean:
        yield "ok", "no question is repeated" + (", none is in both sets" if run.held_out else "")


def context(run: Preflight) -> Findings:
    """The longest prompt and its response fit the context, also with the hint of a peer.

    Raises:
        UserError: the model has fewer positions than the longest context that may be scored.
    """
    longest = max((p for loaded in run.sets.values() for p in loaded.problems), key=lambda problem: problem.tokens)
    response, limit = run.config.sampling.max_tokens, run.config.model.max_length
    used, positions = longest.tokens + response + 1, run.sizes.positions
    if any(ask.context is not ContextName.PLAIN for ask in run.config.algorithm.asks):
        hint = run.config.hint_tokens
        scored = used + hint
        if 0 < positions < scored:
            raise UserError(
                f"longest prompt with hint {longest.tokens} + response {response} + 1, and {hint} for the hint of "
                f"another rollout, are {scored} tokens, above the {positions} positions of {run.config.model.path}; "
                "lower sampling.max_tokens, or leave out longer problems with data.where"
            )
    yield "ok", f"longest prompt with hint {longest.tokens} + response {response} + 1 = {used} of {limit} tokens"


def sampling(run: Preflight) -> Findings:
    """Responses can end, and their log-probs are of the distribution that the trainer computes."""
    chosen, tokenizer = run.config.sampling, run.renderer.tokenizer
    ends = ", ".join(tokenizer.convert_ids_to_tokens(sorted(run.renderer.stop_ids)))
    cut = f", {chosen.cut}" if chosen.cut else ""
    yield "ok", f"temperature {chosen.temperature:g}{cut}; a response ends with {ends}"
    if chosen.cut and not run.config.raw_logprobs and not run.config.algorithm.offline:
        yield (
            "note",
            f"sampling.{chosen.cut} at temperature {chosen.temperature:g}: the engine's log-probs are of the kept "
            "tokens alone, so rollout/logp_gap includes the mass that was cut off; no loss reads them",
        )


def _dropped(source: str, reasons: Sequence[str]) -> Findings:
    if reasons:
        yield "note", f"dropped from {source}: {len(reasons)}"
    for reason in reasons[:ROWS_NAMED]:
        yield "note", f"  {reason.removeprefix(source + ', ')}"
    if len(reasons) > ROWS_NAMED:
        yield "note", f"  and {len(reasons) - ROWS_NAMED} more"


def _named(pairs: list[tuple[int, int]], form: str) -> str:
    more = f", and {len(pairs) - ROWS_NAMED} more" if len(pairs) > ROWS_NAMED else ""
    return ", ".join(form.format(*pair) for pair in pairs[:ROWS_NAMED]) + more
