"""docs/differences.md names, in each row, a test that exists and options and run files that exist."""

from __future__ import annotations

import re
from pathlib import Path

from cepo.algo.variants import ALGORITHMS
from cepo.messages.reward import Reward
from cepo.run.data import DataConfig
from tests.helpers.factories import RUNS

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "differences.md").read_text()
TESTS = set(
    re.findall(r"^(?:async )?def (test_\w+)", "\n".join(p.read_text() for p in ROOT.glob("tests/**/test_*.py")), re.M)
)
ROWS = [line for line in PAGE.splitlines() if line.startswith("| ") and not line.startswith(("| subject", "|---"))]


def test_every_row_names_a_test_that_exists() -> None:
    named = [re.search(r"`(test_\w+)` \|$", row) for row in ROWS]
    assert len(ROWS) > 40
    assert [row for row, test in zip(ROWS, named, strict=True) if test is None or test[1] not in TESTS] == []


def test_every_option_and_run_file_of_the_page_exists() -> None:
    keys = {f"algorithm.{key}" for method in ALGORITHMS.values() for key in method.model_fields}
    keys |= {f"reward.{key}" for key in Reward.model_fields} | {f"data.{key}" for key in DataConfig.model_fields}
    assert set(re.findall(r"`((?:algorithm|reward|data)\.\w+)", PAGE)) - keys == set()
    files = {path.name for folder in (RUNS, RUNS.parent / "sweeps") for path in folder.glob("*.toml")}
    assert set(re.findall(r"[\w.+-]+\.toml", PAGE)) - files == set()
