"""The groups that a trainer writes to rollouts/."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cepo.errors import StorageError
from cepo.run.rollouts import Rollouts
from cepo.run.sections import TelemetryConfig
from services.trainer.learning.batch import pack
from services.trainer.rollouts import RolloutWriter, compact
from tests.helpers.factories import make_ragged


def texts(ids: Sequence[int]) -> list[str]:
    return [f"<{token}>" for token in ids]


def writer(folder: Path, **telemetry: Any) -> RolloutWriter:
    return RolloutWriter(Rollouts(folder), TelemetryConfig(**telemetry), texts)


def test_written_rollouts_hold_every_tokens_advantage_and_evidence(tmp_path: Path) -> None:
    groups = make_ragged([(3, 0), (2, 4)])
    batch = pack(groups)
    written = writer(tmp_path)
    written.train(7, groups, torch.arange(16.0).reshape(4, 4))
    written.finish()
    rows = [json.loads(line) for line in (tmp_path / "step-000007.jsonl").read_text().splitlines()]
    assert [row["group"] for row in rows] == ["run/0/0", "run/0/1"]
    samples = [sample for row in rows for sample in row["samples"]]
    assert [sample["advantage"] for sample in samples] == [[0.0, 1.0, 2.0], [], [8.0, 9.0], [12.0, 13.0, 14.0, 15.0]]
    for i, sample in enumerate(samples):
        group = groups[i // 2]
        assert sample["token_ids"] == list(batch.response_ids[i])
        assert sample["tokens"] == texts(sample["token_ids"])
        assert [e["logps"] for e in sample["evidence"]] == [list(e.rows[i % 2].logps) for e in group.evidence]
        assert [e["context"] for e in sample["evidence"]] == ["ANSWER", "REJECTED"]
        assert sample["outcome"] == ("wrong", "correct")[i % 2]


def test_as_many_rollouts_are_written_as_asked_for(tmp_path: Path) -> None:
    groups = make_ragged([(3, 1), (2, 4)])
    for limit, written in ((0, 0), (1, 1), (None, 2)):
        folder = tmp_path / str(limit)
        folder.mkdir()
        some = writer(folder, rollouts_per_step=limit)
        some.train(0, groups, pack(groups).mask_BT)
        some.held_out(0, groups)
        some.finish()
        assert len(Rollouts(folder).groups("train", 0)) == written
        assert [row["samples"][0]["advantage"] for row in Rollouts(folder).groups("held-out", 0)] == [[]] * written
        assert (list(folder.iterdir()) == []) is (limit == 0)


def test_a_disk_that_is_full_ends_the_run_and_not_the_thread_alone(tmp_path: Path) -> None:
    some = writer(tmp_path / "missing")
    some.train(0, make_ragged([(3, 1)]), torch.ones(2, 3))
    with pytest.raises(StorageError, match=r"step-000000\.jsonl cannot be written"):
        some.finish()


def test_numbers_on_disk_are_short_and_have_the_precision_of_a_float32() -> None:
    numbers = np.array([0.1, -13.815511, 1e-4 / 3, 0.0, 123456.78], "<f4")
    assert json.dumps(compact(numbers)) == "[0.1, -13.81551, 3.333333e-05, 0.0, 123456.8]"
    assert compact(numbers) == pytest.approx(numbers.tolist(), rel=6e-8 * 10)
    assert compact(np.array([-np.inf, np.nan, 1e-30, 3e38], "<f4"))[0] == -np.inf
    assert compact([]) == []
