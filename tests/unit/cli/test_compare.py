"""`cepo compare` on a terminal: settings, paired differences, flips, credit side by side, curves."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from cepo.cli import main
from cepo.cli.compare.differences import flips, held_out, shades
from cepo.cli.compare.page import page
from cepo.cli.compare.runs import differing, read_runs
from cepo.cli.compare.text import COLOURS, spark
from cepo.run.folder import RunDir
from cepo.run.rollouts import Rollouts
from tests.helpers.compared import compared_runs, held_out_group
from tests.helpers.runs import make_run
from tests.helpers.terminals import on_a_terminal, plain


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[RunDir, RunDir]:
    """A GRPO run, and a CEPO run that solves two problems more and one less of 40."""
    return compared_runs(tmp_path_factory.mktemp("runs"))


@pytest.fixture(scope="module")
def screen(runs: tuple[RunDir, RunDir]) -> str:
    code, text = on_a_terminal(lambda: main(["compare", *(str(run.path) for run in runs)]))
    assert code == 0
    return text


def test_a_terminal_shows_what_differs_and_by_how_much(screen: str) -> None:
    text = plain(screen)
    settings = text.split("settings that differ")[1].split("held-out accuracy")[0]
    assert 'algorithm.name  "grpo"  "cepo"' in settings
    assert "algorithm.eps_w" not in settings  # only one of the methods has it
    assert "lora.rank" not in settings
    accuracy = text.split("held-out accuracy")[1].split("curves")[0]
    assert "+2.5 points [-5.0, +10.0]" in accuracy
    assert "paired over 40 problems, may be chance" in " ".join(accuracy.split())
    assert "2 solved, 1 lost" in text
    assert "solved  7 + 1 = ?" in text
    assert text.index("credit at step 5") < text.index("20+30=50")
    assert "\u2581" in text.split("curves")[1]


def test_every_run_has_its_colour(screen: str, runs: tuple[RunDir, RunDir]) -> None:
    for run, colour in zip(runs, COLOURS, strict=False):
        red, green, blue = (int(colour[at : at + 2], 16) for at in (1, 3, 5))
        assert f"38;2;{red};{green};{blue}m{run.path.name}" in screen


def test_the_difference_is_paired_over_the_same_problems(runs: tuple[RunDir, RunDir]) -> None:
    first, other = read_runs([run.path for run in runs])
    result = held_out(other, first)
    assert result.problems == 40
    assert result.difference == pytest.approx(1 / 40)
    assert result.low < 0 < result.high
    same = held_out(first, first)
    assert (same.difference, same.low, same.problems) == (None, None, 0)
    back = held_out(first, other)
    assert (back.difference, back.low, back.high) == pytest.approx((-result.difference, -result.high, -result.low))


def test_the_newest_evaluation_is_compared_and_flips_are_sorted(tmp_path: Path) -> None:
    runs = compared_runs(tmp_path)
    old = Rollouts(runs[0].rollouts)
    old.write("held-out", 1, [held_out_group(at, [False] * 2) for at in range(40)])
    first, other = read_runs([run.path for run in runs])
    found = flips(other, first)
    assert [(flip.answer, flip.gained) for flip in found] == [("8", True), ("9", True), ("10", False)]
    assert [(flip.before, flip.after) for flip in found] == [(0.0, 1.0), (0.0, 1.0), (1.0, 0.0)]


def test_runs_without_shared_groups_have_a_difference_without_an_interval(tmp_path: Path) -> None:
    for name, accuracy in (("a", 0.5), ("b", 0.75)):
        make_run(tmp_path / name).append({"step": 0, "accuracy/eval": accuracy})
    first, other = read_runs([tmp_path / "a", tmp_path / "b"])
    result = held_out(other, first)
    assert (result.accuracy, result.difference, result.low, result.problems) == (0.75, 0.25, None, 0)
    code, text = on_a_terminal(lambda: main(["compare", str(tmp_path / "a"), str(tmp_path / "b")]))
    assert code == 0
    assert "+25.0 points" in plain(text)
    assert "no interval: the runs share no held-out groups" in " ".join(plain(text).split())
    assert "none: the runs have the same configuration" in plain(text)


def test_a_token_that_is_not_trained_on_has_no_shade() -> None:
    assert shades({"advantage": [-0.5, 0.0, 0.0, 0.0, -0.5, -0.75]}) == [0.0, 0.0, 0.0, 0.0, 0.0, -0.5]
    assert shades({"advantage": []}) == shades({}) == []


def test_curves_are_bars_on_one_scale() -> None:
    assert spark([0.0, 0.5, 1.0], 0.0, 1.0) == "\u2581\u2585\u2588"
    assert spark([3.0] * 100, 3.0, 3.0) == "\u2581" * 40
    assert spark([*[0.0] * 99, 7.0], 0.0, 7.0)[-1] == "\u2588"


@pytest.mark.parametrize(
    ("names", "says"),
    [
        (["a"], "give two or more different run folders: cepo compare RUN_DIR OTHER_RUN_DIR"),
        (["a", "a/../a"], "give two or more different run folders"),
        (["a", "absent"], "absent holds no run; give a folder with config.toml and metrics.jsonl"),
        (["a", "broken"], "config.toml cannot be read: "),
    ],
)
def test_folders_that_cannot_be_compared_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any, names: list[str], says: str
) -> None:
    monkeypatch.chdir(tmp_path)
    make_run(Path("a"), 1)
    shutil.copytree("a", "broken")
    Path("broken/config.toml").write_text("= 3")
    assert main(["compare", *names]) == 2
    assert says in capsys.readouterr().err


def test_folders_of_one_name_are_told_apart_by_their_paths(tmp_path: Path) -> None:
    runs = read_runs([make_run(tmp_path / name / "seed-0", 1).path for name in ("a", "b")])
    assert [run.name for run in runs] == [str(tmp_path / name / "seed-0") for name in ("a", "b")]
    assert differing(runs) == {}


def test_the_html_file_is_written_and_an_unwritable_one_is_refused(
    tmp_path: Path, runs: tuple[RunDir, RunDir], capsys: Any
) -> None:
    paths = [str(run.path) for run in runs]
    assert main(["compare", *paths, "--html", str(tmp_path / "out.html")]) == 0
    assert (tmp_path / "out.html").read_text() == page(read_runs([run.path for run in runs]))
    assert f"comparison written to {tmp_path / 'out.html'}" in capsys.readouterr().err
    assert main(["compare", *paths, "--html", str(tmp_path / "out.html" / "no")]) == 2
    assert "--html" in capsys.readouterr().err
