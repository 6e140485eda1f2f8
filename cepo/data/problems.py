"""Problems from rows: columns, the checks of every row, and the training order.

Every row is checked before anything is sampled: its columns, its answer, its length under the longest context.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from cepo.data.columns import recognised
from cepo.data.drawing import Problem as Problem, Problems as Problems
from cepo.data.pairs import CHOSEN
from cepo.data.reader import RowReader
from cepo.data.rows import folder_of, passes, read_rows
from cepo.errors import UserError
from cepo.prompts.images import ImageSink
from cepo.prompts.renderer import Renderer

if TYPE_CHECKING:
    from cepo.run.config import RunConfig
    from cepo.run.data import DataConfig
    from cepo.run.folder import Excluded


def load_problems(
    config: RunConfig,
    renderer: Renderer,
    *,
    held_out: bool = False,
    excluded: Mapping[int, str] | None = None,
    store: ImageSink | None = None,
) -> Problems:
    """Reads, maps and checks a run's training or held-out problems.

    Args:
        excluded: rows that were found unusable before, with the reasons; they count as dropped.
        store: takes the images; None: they are only checked.

    Raises:
        UserError: the file or a column is missing, there are no rows, or a row cannot be used and `data.on_bad_row`
            is "refuse".
    """
    if held_out:  # evaluation has no teacher, so no solution is shown
        config = config.model_copy(update={"data": config.data.model_copy(update={"solution": ""})})
    if config.data.sources and not held_out:
        return _mixed(config, renderer, excluded or {}, store)
    return _loaded(config, renderer, "data.eval" if held_out else "data.train", excluded, store)


def _mixed(config: RunConfig, renderer: Renderer, excluded: Mapping[int, str], store: ImageSink | None) -> Problems:
    """The problems of all sources, one source after the other; their rows are numbered through."""
    parts: list[Problems] = []
    problems: list[Problem] = []
    for source in config.data.sources:
        first = sum(part.rows for part in parts)
        own = config.model_copy(update={"data": config.data.of(source.title)})
        bad = {row - first: reason for row, reason in excluded.items() if row >= first}
        parts.append(_loaded(own, renderer, source.key, bad, store))
        problems += [replace(each, row=first + each.row, source=source.title) for each in parts[-1].problems]
    dropped = tuple(reason for part in parts for reason in part.dropped)
    where = ", ".join(part.source for part in parts)
    rows = sum(part.rows for part in parts)
    return Problems(tuple(problems), dropped, where, parts[0].columns, rows, config.data.shares)


def _loaded(
    config: RunConfig, renderer: Renderer, key: str, excluded: Mapping[int, str] | None, store: ImageSink | None
) -> Problems:
    """The problems of one data set."""
    data, held_out = config.data, key == "data.eval"
    name, split = (data.eval, data.eval_split) if held_out else (str(data.train), data.split)
    source = f"{key}={name}"
    every = read_rows(name, split, key)
    rows = _chosen(every, config, source, held_out=held_out)
    pairs = config.algorithm.offline and not held_out
    if pairs:
        named = data.model_copy(update={"answer": data.answer or CHOSEN})
        columns = recognised(rows, named, source, shared_by=data.rejected)
    else:
        columns = recognised(rows, data, source)
    reader = RowReader(config, renderer, columns, folder_of(name), store)
    problems, dropped = [], []
    for number, row in rows:
        try:
            if excluded and number in excluded:
                raise UserError(excluded[number])
            problems.append(reader.pair(number, row) if pairs else reader.problem(number, row))
        except UserError as error:
            dropped.append(drop(f"{source}, row {number}: {error}", data))
    if not problems:
        raise UserError(f"{source} is empty: every row was dropped, the first because: {dropped[0]}")
    return Problems(tuple(problems), tuple(dropped), source, columns, len(every))


def load_sets(
    config: RunConfig, renderer: Renderer, *, excluded: Excluded | None = None, store: ImageSink | None = None
) -> dict[str, Problems]:
    """Reads and checks the training problems as `train` and, if `data.eval` names any, the held-out ones as `eval`.

    Args:
        excluded: the rows of each set that were found unusable before, and why.
        store: takes the images; None: they are only checked.

    Raises:
        UserError: as for `load_problems`.
    """
    bad = excluded or {}
    sets = {"train": load_problems(config, renderer, excluded=bad.get("train"), store=store)}
    if config.data.eval:
        sets["eval"] = load_problems(config, renderer, held_out=True, excluded=bad.get("eval"), store=store)
    return sets


def drop(reason: str, data: DataConfig) -> str:
    """The reason why a row is dropped.

    Raises:
        UserError: the run refuses bad rows.
    """
    if data.on_bad_row == "refuse":
        raise UserError(f'{reason}; fix the row or set data.on_bad_row = "drop"')
    return reason


def _chosen(rows: list[Any], config: RunConfig, source: str, *, held_out: bool) -> list[tuple[int, Any]]:
    """The numbered rows that meet the conditions; training rows are sampled down to `data.limit`."""
    data = config.data
    key, conditions = ("data.eval_where", data.eval_where) if held_out else ("data.where", data.where)
    numbered = list(enumerate(rows))
    if not numbered:
        raise UserError(f"{source} is empty: it has no rows")
    for condition in conditions:
        try:
            numbered = [(number, row) for number, row in numbered if passes(row, condition)]
        except UserError as error:
            raise UserError(f"{source}, {key} {condition!r}: {error}; name one of them") from error
    if not numbered:
        raise UserError(f"{source}: none of {len(rows)} rows passes {key}={list(conditions)}; loosen it")
    limit = 0 if held_out else data.limit
    if 0 < limit < len(numbered):
        chosen = random.Random(f"limit-{config.loop.seed}").sample(range(len(numbered)), limit)
        numbered = [numbered[i] for i in sorted(chosen)]
    return numbered
