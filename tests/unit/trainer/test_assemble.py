"""The trainer's parts as assembled from a run folder."""

from __future__ import annotations

import json
from pathlib import Path

from cepo.net.settings import Settings
from cepo.run.folder import RunDir
from cepo.service.bus import RedisBus
from services.trainer.__main__ import assemble
from tests.helpers.factories import make_config
from tests.helpers.runs import begin_run


async def test_rows_that_the_run_leaves_out_are_never_sampled(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"question": f"{i} + 1 = ?", "answer": str(i + 1)}) + "\n" for i in range(4)))
    folder = RunDir(tmp_path / "run")
    config = make_config(f"data.train={path}", f"data.eval={path}", "data.on_bad_row=drop")
    begin_run(folder, config, excluded={"train": {1: "no grade"}, "eval": {0: "no grade", 3: "no grade"}})
    feeder = assemble(folder, RedisBus("redis://127.0.0.1:1/0"), Settings()).feeder
    assert [problem.row for problem in feeder.train.problems] == [0, 2, 3]
    assert feeder.held_out is not None
    assert [problem.row for problem in feeder.held_out.problems] == [1, 2]
