"""Rows of data sets: JSONL, JSON, CSV and Parquet files, `datasets` folders, Hugging Face names; columns by path."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from cepo.errors import UserError
from cepo.names import is_path

Row = dict[str, Any]

KINDS = (".jsonl", ".json", ".csv", ".parquet")
_SAVED = ("dataset_info.json", "dataset_dict.json")
"""One of these files marks a folder that `save_to_disk` of `datasets` wrote."""


def read_rows(name: str, split: str, key: str) -> list[Any]:
    """Reads every row of a data set. Rows are not checked, so that the caller can name a row that is no object.

    Args:
        name: a file, a folder, or a Hugging Face name with an optional subset, as in `openai/gsm8k:main`.
        split: the split to read of a folder or a Hugging Face name.
        key: the config key, for error messages, such as `data.train`.

    Raises:
        UserError: the data set does not exist or cannot be read.
    """
    path = Path(name)
    if not is_path(name):
        if path.suffix in KINDS:
            raise UserError(f"{key}={name} is a Hugging Face name; for a file beside the run file write ./{name}")
        return _hub_rows(name, split, key)
    if path.is_dir():
        return _folder_rows(path, split, key)
    if not path.is_file():
        raise UserError(f"{key}={name}: no such file")
    if path.suffix not in KINDS:
        raise UserError(f"{key}={name}: unknown kind of file; use {', '.join(KINDS[:-1])} or {KINDS[-1]}")
    try:
        return list(_file_rows(path))
    except (ValueError, OSError, csv.Error) as error:
        raise UserError(f"{key}={name} cannot be read: {error}") from error


def folder_of(name: str) -> Path | None:
    """The folder that paths in a data set are relative to; None for a Hugging Face name, which may not name files."""
    path = Path(name)
    if not is_path(name):
        return None
    return path if path.is_dir() else path.parent


def column(row: Row, path: str) -> Any:
    """A value by nested path, such as `reward_model.ground_truth` or `prompt.0.content`.

    A name may itself have dots: in `{"a.b": {"c": 1}}` the path `a.b.c` is 1.

    Raises:
        UserError: there is no such column; names the existing columns.
    """
    values = list(_at(row, path))
    if not values:
        raise UserError(f"no column {path!r}; the columns are {', '.join(_paths(row))}")
    return values[0]


def _at(value: Any, path: str) -> Iterator[Any]:
    """The values that a path can mean; names with more dots come first."""
    if isinstance(value, dict):
        if path in value:
            yield value[path]
        for at in reversed([at for at, character in enumerate(path) if character == "."]):
            if path[:at] in value:
                yield from _at(value[path[:at]], path[at + 1 :])
    elif isinstance(value, Sequence) and not isinstance(value, str):
        name, _, rest = path.partition(".")
        if name.isdecimal() and int(name) < len(value):
            yield from _at(value[int(name)], rest) if rest else (value[int(name)],)


def has_column(row: Any, path: str) -> bool:
    """Whether a row is an object that has the column."""
    return isinstance(row, dict) and any(True for _ in _at(row, path))


def passes(row: Row, condition: str) -> bool:
    """Whether a row meets `column=value`, or `column~value` for a text or list that contains the value.

    Raises:
        UserError: there is no such column.
    """
    at = min(position for sign in "=~" if (position := condition.find(sign)) > 0)
    value, wanted = column(row, condition[:at].strip()), condition[at + 1 :].strip()
    if condition[at] == "=":
        return _text(value) == wanted
    return wanted in (map(_text, value) if isinstance(value, list) else _text(value))


def _text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _file_rows(path: Path) -> Iterable[Any]:
    match path.suffix:
        case ".jsonl":
            return _json_lines(path)
        case ".json":
            return _json_list(path)
        case ".csv":
            return _csv_rows(path)
    import pyarrow.parquet

    return pyarrow.parquet.read_table(path).to_pylist()


def _json_lines(path: Path) -> Iterable[Any]:
    text = path.read_text(encoding="utf-8-sig")
    for number, line in enumerate(text.split("\n"), 1):  # splitlines would cut texts at other separators
        if line.strip():
            try:
                yield json.loads(line)
            except ValueError as error:
                raise ValueError(f"line {number}: {error}") from error


def _json_list(path: Path) -> list[Any]:
    rows = json.loads(path.read_text(encoding="utf-8-sig"))
    if not isinstance(rows, list):
        raise ValueError("the file is not a list of rows")
    return rows


def _csv_rows(path: Path) -> Iterable[Row]:
    with path.open(newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file, strict=True)
        for row in reader:
            if None in row:
                raise ValueError(f"line {reader.line_num} has more cells than the first line has columns")
            yield row


def _folder_rows(path: Path, split: str, key: str) -> list[Any]:
    import datasets

    if not any((path / name).is_file() for name in _SAVED):
        return _hub_rows(str(path), split, key)
    try:
        saved: Any = datasets.load_from_disk(str(path))
    except (OSError, ValueError) as error:
        raise UserError(f"{key}={path} cannot be read: {_one_line(error)}") from error
    if isinstance(saved, dict):
        if split not in saved:
            raise UserError(f"{key}={path} has no split {split!r}; its splits are {', '.join(saved)}")
        saved = saved[split]
    return _plain(saved)


def _hub_rows(name: str, split: str, key: str) -> list[Any]:
    import datasets

    repository, _, subset = (name, "", "") if is_path(name) else name.partition(":")
    try:
        return _plain(datasets.load_dataset(repository, subset or None, split=split))
    except (OSError, ValueError, LookupError, datasets.exceptions.DatasetsError) as error:
        raise UserError(
            f"{key}={name}, split {split!r}, cannot be loaded: {_one_line(error)}; {_fix(error, key)}"
        ) from error


def _plain(loaded: Any) -> list[Any]:
    """Rows as they are stored: images stay encoded bytes."""
    return loaded.with_format("arrow")[:].to_pylist()


def _fix(error: Exception, key: str) -> str:
    if "Config name is missing" in str(error):
        return f'write {key} = "NAME:SUBSET"'
    if "split" in str(error):
        return f"set {'data.eval_split' if key == 'data.eval' else 'data.split'}"
    return "check the name and the network, or give a file or folder"


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300]


def _paths(value: Any, prefix: str = "") -> list[str]:
    """The paths of all plain values in a row, such as `["question", "reward_model.ground_truth"]`."""
    if isinstance(value, dict):
        items = list(value.items())
    elif isinstance(value, list) and value:
        items = [("0", value[0])]
    else:
        return [prefix]
    return [path for name, child in items for path in _paths(child, f"{prefix}.{name}" if prefix else str(name))]
