"""What a run says at its end: the commands it proposes are ones that work."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest

from cepo.cli.progress import Progress
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
    Progress(config, folder).summary(path)
    said = capsys.readouterr().out
    proposed = [line for line in said.splitlines() if "to compare" in line]
    assert len(proposed) == (config.algorithm.name not in ("dpo", "ctdpo", "prm"))
    for line in proposed:
        words = shlex.split(line)
        other = runfile.load(Path(words[words.index("train") + 1]), [words[words.index("--set") + 1]])
        assert other.algorithm.name != config.algorithm.name
