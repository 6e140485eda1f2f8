"""What a resume may change: laws over every key of a run, and the table that classifies the keys."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from hypothesis import given, strategies as st
from pydantic import BaseModel

from cepo.algo.variants import ALGORITHMS
from cepo.errors import UserError
from cepo.run.config import RunConfig
from cepo.run.file import load
from cepo.run.folder import RunDir
from cepo.run.resuming import KEYS, Change, changed_model, changes, check_changes, class_of, record
from tests.helpers.factories import RUNS, make_config

pytestmark = pytest.mark.filterwarnings("ignore:Pydantic serializer warnings")  # of values that fit no key
RUN = RunDir(Path("runs/first"))
BASE = make_config("algorithm.teacher.source=ema", "algorithm.teacher.ema_rate=0.5")


def fields(model: type[BaseModel]) -> Iterator[str]:
    """The keys of a run file, such as `name` and `lora.rank`, without those of the method."""
    for name, field in model.model_fields.items():
        kind = field.annotation
        if name == "algorithm":
            continue
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            yield from (f"{name}.{key}" for key in fields(kind))
        else:
            yield name


def leaves(tree: dict[str, Any], parents: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in tree.items():
        if isinstance(value, dict):
            yield from leaves(value, f"{parents}{name}.")
        else:
            yield parents + name, value


def another(value: Any) -> Any:
    """A value of the same kind that differs."""
    match value:
        case bool():
            return not value
        case int() | float():
            return value + 1
        case str():
            return f"{value}x"
        case tuple() | list():
            return [*value, "x"]
    return "x"


def with_changes(config: RunConfig, keys: set[str]) -> RunConfig:
    """The run with other values for these keys, which need not make sense together."""

    def changed(model: BaseModel, parents: str) -> BaseModel:
        update = {}
        for name in type(model).model_fields:
            value, key = getattr(model, name), f"{parents}{name}"
            if isinstance(value, BaseModel):
                update[name] = changed(value, f"{key}.")
            elif key in keys:
                update[name] = another(value)
        return model.model_copy(update=update)

    result = changed(config, "")
    assert isinstance(result, RunConfig)
    return result


def fixed(key: str) -> bool:
    with suppress(KeyError):  # the first test names a key without a class
        return class_of(key) == "fixed"
    return False


ALL = [key for key, _ in leaves(BASE.model_dump(mode="json")) if key != "algorithm.name"]
FIXED = [key for key in ALL if fixed(key)]


def test_every_key_of_a_run_is_classified_once_and_every_classified_key_exists() -> None:
    keys = list(fields(RunConfig))
    assert set(KEYS) == {key.partition(".")[0] if "." in key else "" for key in keys} | {"algorithm"}
    for key in keys:
        assert class_of(key) in ("free", "problems", "fixed"), f"{key} is in no class of cepo/run/resuming.py"
    listed = [
        f"{section}.{name}".lstrip(".")
        for section, classes in KEYS.items()
        for names in classes.values()
        for name in names.split()
        if name != "*"
    ]
    open_sections = tuple(f"{section}." for section, classes in KEYS.items() if "*" in classes.values())
    assert sorted(listed) == sorted(key for key in keys if not key.startswith(open_sections))


def test_the_keys_of_every_method_are_fixed() -> None:
    for method in ALGORITHMS.values():
        assert {class_of(f"algorithm.{name}") for name in method.model_fields} == {"fixed"}


@pytest.mark.parametrize("path", sorted(RUNS.glob("*.toml")), ids=lambda path: path.stem)
def test_the_configuration_of_a_run_folder_is_that_of_its_run_file(tmp_path: Path, path: Path) -> None:
    config = load(path)
    written = tmp_path / "config.toml"
    written.write_text(tomli_w.dumps(config.model_dump(mode="json", exclude_none=True)))
    assert changes(load(written), config) == []


@given(st.sets(st.sampled_from(ALL)))
def test_exactly_the_keys_that_differ_are_told(keys: set[str]) -> None:
    asked = with_changes(BASE, keys)
    assert {change.key for change in changes(BASE, asked)} == keys
    for change in changes(BASE, asked):
        assert change.was != change.now
    assert [(c.key, c.now, c.was) for c in changes(asked, BASE)] == [
        (c.key, c.was, c.now) for c in changes(BASE, asked)
    ]


@given(st.sets(st.sampled_from(ALL)), st.sets(st.sampled_from(FIXED)))
def test_a_resume_is_refused_exactly_if_a_fixed_key_differs_that_is_not_allowed(
    keys: set[str], allowed: set[str]
) -> None:
    asked, refused = with_changes(BASE, keys), sorted((keys & set(FIXED)) - allowed)
    if not refused:
        assert {change.key for change in check_changes(BASE, asked, sorted(allowed), RUN)} == keys
        return
    with pytest.raises(UserError) as error:
        check_changes(BASE, asked, sorted(allowed), RUN)
    said = str(error.value)
    for change in changes(BASE, asked):
        assert (str(change) in said) == (change.key in refused)
    asked_for = re.findall(r"--allow-change (\S+)", said)
    assert sorted(word.rstrip(",;.") for word in asked_for) == refused
    assert check_changes(BASE, asked, [*allowed, *refused], RUN)  # the words of the message are enough


@given(st.sets(st.sampled_from(FIXED), min_size=1))
def test_allowing_a_section_allows_its_keys(keys: set[str]) -> None:
    sections = sorted({key.partition(".")[0] for key in keys})
    assert {change.key for change in check_changes(BASE, with_changes(BASE, keys), sections, RUN)} == keys


def test_both_values_are_named_and_another_method_is_one_change() -> None:
    asked = make_config("algorithm.name=grpo", "lora.alpha=256", "loop.steps=99")
    with pytest.raises(UserError) as error:
        check_changes(BASE, asked, (), RUN)
    assert str(error.value) == (
        f"the run in {RUN.path} would change what it computes: algorithm.name ('cepo' -> 'grpo'), "
        "lora.alpha (16 -> 256); leave the new values out (`cepo resume RUN_DIR` keeps those of the run), or give "
        "--allow-change algorithm.name --allow-change lora.alpha"
    )
    allowed = check_changes(BASE, asked, ["algorithm.name", "lora"], RUN)
    assert list(map(str, allowed)) == [
        "algorithm.name ('cepo' -> 'grpo')",
        "lora.alpha (16 -> 256)",
        "loop.steps (20 -> 99)",
    ]


def test_an_unknown_key_cannot_be_allowed() -> None:
    with pytest.raises(
        UserError, match=r"--allow-change optim\.rate: there is no such key; give one such as optim\.lr"
    ):
        check_changes(BASE, BASE, ["optim.rate"], RUN)


def test_changes_are_recorded_with_the_step_from_which_they_hold(tmp_path: Path) -> None:
    run = RunDir(tmp_path / "run")
    run.create(BASE, resume=False)
    record(run, [])
    assert not run.changes.exists()
    (run.checkpoints / "step-000002").mkdir()
    (run.checkpoints / "step-000010").mkdir()
    record(run, [Change("lora.alpha", 16, 256), Change("loop.steps", 2, 4)])
    rows = [json.loads(line) for line in run.changes.read_text().splitlines()]
    assert [(row["step"], row["key"], row["was"], row["now"]) for row in rows] == [
        (10, "lora.alpha", 16, 256),
        (10, "loop.steps", 2, 4),
    ]
    assert (changed_model(rows, 10), changed_model(rows, 11)) == (["lora.alpha"], [])
