"""The progress lines of a run, and the commands that its summary suggests."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import httpx
import pytest

from cepo.cli.progress import ProgressDisplay
from cepo.run import file as runfile
from cepo.run.folder import RunDir
from tests.helpers.factories import RUNS


@pytest.mark.parametrize("path", sorted(RUNS.glob("*.toml")), ids=lambda path: path.stem)
def test_the_method_proposed_to_compare_with_loads(
    tmp_path: Path, path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config, folder = runfile.load(path), RunDir(tmp_path / "run")
    folder.create(config, resume=False)
    row = {"step": 0, "reward/mean": 0.5, "time/step_seconds": 1.0}
    (folder.path / "metrics.jsonl").write_text(json.dumps(row) + "\n")
    ProgressDisplay(config, folder).summary(path)
    said = capsys.readouterr().out
    proposed = [line for line in said.splitlines() if "to compare" in line]
    assert len(proposed) == (config.algorithm.name not in ("dpo", "ctdpo", "prm"))
    for line in proposed:
        words = shlex.split(line)
        other = runfile.load(Path(words[words.index("train") + 1]), [words[words.index("--set") + 1]])
        assert other.algorithm.name != config.algorithm.name


def test_each_step_is_printed_once_and_nan_is_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config, folder = runfile.load(RUNS / "tiny_cepo.toml"), RunDir(tmp_path / "run")
    folder.create(config, resume=False)
    folder.append({"step": 0, "reward/mean": 0.5, "time/step_seconds": 1.0})
    with ProgressDisplay(config, folder) as progress, httpx.Client(base_url="http://127.0.0.1:9") as trainer:
        folder.append({"step": 1, "reward/mean": float("nan"), "time/step_seconds": 1.0})
        progress.poll(trainer)
        progress.poll(trainer)
        with folder.metrics.open("a") as file:
            file.write('{"step": 2, "rew')
        progress.poll(trainer)
    said = capsys.readouterr().out.splitlines()
    assert [line.partition("  step time")[0] for line in said] == ["step 1  reward nan"]
