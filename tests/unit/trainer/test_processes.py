"""How a process of a trainer learns its place: from torchrun's variables, or it is alone."""

from __future__ import annotations

import pytest

from cepo.errors import UserError
from cepo.settings import Place
from services.trainer.__main__ import main


def test_a_place_is_what_torchrun_says(monkeypatch: pytest.MonkeyPatch) -> None:
    assert Place.from_environment() is None
    for name, value in Place(rank=5, local_rank=1, size=8).to_environment().items():
        monkeypatch.setenv(name, value)
    assert Place.from_environment() == Place(rank=5, local_rank=1, size=8)


@pytest.mark.parametrize(("name", "value"), [("LOCAL_RANK", None), ("WORLD_SIZE", "two")])
def test_a_place_that_is_not_whole_is_refused(monkeypatch: pytest.MonkeyPatch, name: str, value: str | None) -> None:
    for variable, number in (Place(0, 0, 2).to_environment() | {name: value}).items():
        if number is not None:
            monkeypatch.setenv(variable, number)
    with pytest.raises(
        UserError, match=f"^RANK is set, and {name}='{value or ''}' is no number; start the trainer with"
    ):
        Place.from_environment()


def test_a_trainer_without_a_run_says_what_it_needs(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["trainer"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 2
    assert capsys.readouterr().err == ("cepo trainer: give the folder of a run: python -m services.trainer RUN_DIR\n")
