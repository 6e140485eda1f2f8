"""Reads run files: TOML, with `base = "other.toml"` for shared keys. Every mistake is one line that names its key.

Paths are relative to the file that holds them.
"""

from __future__ import annotations

import tomllib
from collections.abc import Sequence
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from pydantic import ValidationError

from cepo.errors import UserError
from cepo.names import is_path

if TYPE_CHECKING:
    from cepo.run.config import RunConfig

Tree = dict[str, Any]
OTHER_NAMES = {
    "sampling.prompts_per_step": "sampling.prompts",
    "sampling.group_size": "sampling.samples",
    "loop.max_off_policy_steps": "loop.lag",
    "algorithm.tis_cap": "algorithm.importance_cap",
    "data.chat_template_kwargs": "data.template",
    "data.apply_chat_template_kwargs": "data.template",
    "data.enable_thinking": "data.template = {enable_thinking = ...}",
}
"""Names of other libraries for keys of a run file; the message for an unknown key gives ours."""


def load(path: Path, overrides: Sequence[str] = ()) -> RunConfig:
    """Reads and validates a run file.

    Args:
        overrides: `key=value` each, the value in TOML or a bare word, such as `loop.steps=10`. Paths are relative to
            the working directory. Another `algorithm.name` discards the file's other algorithm keys.

    Raises:
        UserError: the file is missing or not TOML, or a key or value does not fit; names the key and the fix.
    """
    tree = _read(path, ())
    for override in sorted(overrides, key=lambda text: text.partition("=")[0].strip() != "algorithm.name"):
        _set(tree, override)  # the name first, so that the other parameters are its own
    _resolve_paths(tree, Path.cwd())
    return parse(tree)


def parse(tree: Tree) -> RunConfig:
    """Validates a run given as plain data, such as `{"name": "mine", "model": {"path": "./model"}, ...}`.

    Raises:
        UserError: a key or value does not fit; names the first.
    """
    from cepo.run.config import RunConfig  # loads PyTorch, which the help of a command does not need

    try:
        return RunConfig.model_validate(tree)
    except ValidationError as error:
        raise UserError(_explain(error)) from error


def _read(path: Path, heirs: tuple[Path, ...]) -> Tree:
    """The keys of a run file over those of its `base`, with absolute paths."""
    where = path.resolve()
    if where in heirs:
        raise UserError(f"run file {path} is its own base")
    try:
        tree = tomllib.loads(path.read_text())
    except OSError as error:
        raise UserError(
            f"run file {path}: {error.strerror}; give the path of a TOML file such as deploy/runs/tiny_cepo.toml"
        ) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"run file {path} is not TOML: {error}") from error
    _resolve_paths(tree, where.parent)
    base = tree.pop("base", None)
    if base is None:
        return tree
    if not isinstance(base, str):
        raise UserError(f"config key base={base!r} in {path}: give the path of a run file")
    return _over(_read(where.parent / base, (*heirs, where)), tree)


def _over(base: Tree, tree: Tree) -> Tree:
    """`base` with the keys of `tree` in their place; another algorithm discards the base's algorithm keys."""
    merged = dict(base)
    for key, value in tree.items():
        old = base.get(key)
        if isinstance(value, dict) and isinstance(old, dict) and not _another_algorithm(key, old, value):
            merged[key] = {**old, **value}
        else:
            merged[key] = value
    return merged


def _another_algorithm(key: str, old: Tree, new: Tree) -> bool:
    return key == "algorithm" and new.get("name", old.get("name")) != old.get("name")


def _explain(error: ValidationError) -> str:
    errors = error.errors()
    # A mistyped section is both an unknown key and a missing one; the unknown key is what the user wrote.
    first = next((each for each in errors if each["type"] == "extra_forbidden"), errors[0])
    parts = [str(part) for part in first["loc"]]
    tag = 1 if parts[:1] == ["algorithm"] and len(parts) > 2 else 2 if parts[:2] == ["data", "train"] else 0
    if 0 < tag < len(parts):
        parts.pop(tag)  # which member of the union it is
    key = ".".join(parts)
    match first["type"]:
        case "extra_forbidden":
            known = _known_keys(parts[:-1], first["loc"])
            ours = f"write {OTHER_NAMES[key]}; " if key in OTHER_NAMES else ""
            hint = "" if ours else _nearest(parts[-1], known, parts[:-1])
            return f"config key {key} is unknown; {ours}known here: {', '.join(known)}{hint}"
        case "missing":
            return f"config key {key} is missing"
        case "union_tag_invalid":
            tag, tags = first["ctx"]["tag"], first["ctx"]["expected_tags"]
            hint = _nearest(tag, [name.strip("'") for name in tags.split(", ")], [])
            return f"config key algorithm.name={tag!r} is unknown; known: {tags}{hint}"
        case "union_tag_not_found":
            return 'config key algorithm.name is missing; for example name = "cepo"'
        case "value_error":
            section = "algorithm." if parts[:1] == ["algorithm"] else ""
            return f"config key {section}{first['ctx']['error']}"  # it names its key
        case "model_type" | "dict_type":
            return f"config key {key}={first['input']!r}: write a table, such as [{key}]"
    return f"config key {key}={first['input']!r}: {first['msg']}"


def _nearest(word: str, known: Sequence[str], parents: Sequence[str]) -> str:
    near = get_close_matches(word, known, n=1)
    return f"; did you mean {'.'.join([*parents, near[0]])}?" if near else ""


def _known_keys(parents: list[str], loc: tuple[int | str, ...]) -> list[str]:
    from cepo.algo.variants import ALGORITHMS
    from cepo.run.config import RunConfig
    from cepo.run.data import SourceConfig

    section: Any = RunConfig
    if parents[:2] == ["data", "train"]:
        section, parents = SourceConfig, [key for key in parents[3:] if key == "reward"]
    for parent in parents:
        section = (
            ALGORITHMS[str(loc[1])] if parent == "algorithm" else _section(section.model_fields[parent].annotation)
        )
    return sorted(section.model_fields)


def _section(annotation: Any) -> Any:
    """The class of a section, which may be optional."""
    return next((each for each in get_args(annotation) if each is not type(None)), annotation)


def _set(tree: Tree, override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key.strip():
        raise UserError(f"--set {override!r}: write key=value, for example --set loop.steps=10")
    try:
        value = tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        value = text  # a bare word is a string
    *parents, last = key.strip().split(".")
    node = tree
    for parent in parents:
        node = node.setdefault(parent, {})
        if not isinstance(node, dict):
            raise UserError(f"--set {override!r}: {parent} is not a section")
    if [*parents, last] == ["algorithm", "name"] and _another_algorithm("algorithm", node, {last: value}):
        node.clear()
    node[last] = value


def _resolve_paths(tree: Tree, folder: Path) -> None:
    for section, key in (("model", "path"), ("data", "train"), ("data", "eval")):
        node = tree.get(section)
        if isinstance(node, dict):
            _resolve(node, key, f"{section}.{key}", folder)
    sources = node.get("train") if isinstance(node := tree.get("data"), dict) else None
    for at, source in enumerate(sources if isinstance(sources, list) else ()):
        if isinstance(source, dict):
            _resolve(source, "path", f"data.train.{at}.path", folder)


def _resolve(node: Tree, key: str, name: str, folder: Path) -> None:
    if isinstance(node.get(key), str) and is_path(node[key]):
        try:
            node[key] = str((folder / Path(node[key]).expanduser()).resolve())
        except RuntimeError as error:
            raise UserError(f"config key {name}={node[key]!r}: {error}") from error
