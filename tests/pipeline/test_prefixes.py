"""Continuations with real vLLM: a run that values the steps of its responses."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.pipeline.support import rows, start

pytestmark = [pytest.mark.slow, pytest.mark.timeout(300)]
SETTINGS = ("loop.steps=2", "sampling.prompts=3", "data.eval=''", 'algorithm={name="vineppo", continuations=3}')


def test_responses_are_gone_on_from_and_their_steps_get_credit(tmp_path: Path) -> None:
    process = start(tmp_path / "run", *(word for setting in SETTINGS for word in ("--set", setting)))
    printed, _ = process.communicate(timeout=240)
    assert process.returncode == 0, printed
    found = rows(tmp_path / "run")
    assert len(found) == 2
    for row in found:
        assert row["groups/failed"] == 0
        assert row["groups/total"] > 3
        assert row["tokens/continued"] > 0
        assert row["value/states"] >= 3 * 8
        assert 0 < row["value/mean"] < 1
        assert row["rollout/logp_gap"] < 1e-3
    assert any(row["grad_norm"] > 0 for row in found)
