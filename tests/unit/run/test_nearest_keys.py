"""Unknown keys of a run file: the message ends with the nearest key."""

from __future__ import annotations

import pytest

from cepo.errors import UserError
from cepo.run.file import parse
from tests.helpers.factories import make_config


@pytest.mark.parametrize(
    ("override", "key", "nearest"),
    [
        ("loop.stepz=3", "loop.stepz", "loop.steps"),
        ("algorithm.lamda=0.5", "algorithm.lamda", "algorithm.lam"),
        ("algorithm.name=cepoo", "algorithm.name='cepoo'", "cepo"),
    ],
)
def test_an_unknown_key_or_algorithm_names_the_nearest(override: str, key: str, nearest: str) -> None:
    with pytest.raises(UserError) as refusal:
        make_config(override)
    assert str(refusal.value).startswith(f"config key {key} is unknown; known")
    assert str(refusal.value).endswith(f"; did you mean {nearest}?")


def test_a_mistyped_section_is_named_rather_than_the_section_that_is_missing() -> None:
    tree = make_config().model_dump(mode="json", exclude_none=True)
    tree["algorith"] = tree.pop("algorithm")
    with pytest.raises(UserError, match=r"^config key algorith is unknown; .*; did you mean algorithm\?$"):
        parse(tree)
