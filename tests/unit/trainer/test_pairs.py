"""Offline pairs: from a file to groups for the teacher, through the trainer's loop; and rejected rows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from cepo.cli.preflight.checks import run_checks
from cepo.cli.preflight.examples import example_prompts
from cepo.cli.preflight.preflight import Preflight
from cepo.data.problems import load_problems
from cepo.errors import UserError
from cepo.messages.groups import BASE_POLICY, Outcome, Stage
from cepo.net.settings import Settings
from cepo.prompts.renderer import Renderer
from cepo.run.folder import RunDir
from cepo.teaching.handler import make_handler
from cepo.testing import MemoryBus
from services.trainer.__main__ import assemble
from services.trainer.learning.batch import pack
from services.trainer.learning.learner import Learner
from tests.helpers.factories import make_config, make_ragged
from tests.helpers.runs import begin_run
from tests.unit.trainer.loops import timeless, trained
from tests.unit.trainer.test_continuing import Engines

torch.set_num_threads(1)
ALL = ("sampling.prompts=6", "optim.schedule=constant")
"""Every step trains on every pair, so that steps are comparable."""
ROWS: list[dict[str, Any]] = [
    {"prompt": f"{i} + 1 = ?", "chosen": f"{i} + 1 = {i + 1}", "rejected": f"{i} + 1 = {i}", "topic": "sums"}
    for i in range(6)
]


def config_of(path: Path, rows: list[dict[str, Any]], *overrides: str) -> Any:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = ("data.eval=''", "data.instruction=''", 'algorithm={name="dpo", beta=0.5}', "sampling.prompts=3")
    return make_config(f"data.train={path}", *settings, "loop.deterministic=true", *overrides)


async def taught(folder: RunDir, until: int = 99) -> list[dict[str, Any]]:
    """Trains the run of a folder up to a step with only a teacher; no group may reach another stage."""
    bus = MemoryBus()
    run = assemble(folder, bus, Settings())
    engines = Engines(run)
    teach = make_handler(engines, engines.renderer, 200)
    return await trained(run, bus, {Stage.TEACH: teach}, until)


async def test_a_run_on_pairs_needs_a_teacher_and_no_rollouts(tmp_path: Path) -> None:
    folder = RunDir(tmp_path / "run")
    config = config_of(tmp_path / "pairs.jsonl", ROWS, "loop.steps=4", *ALL)
    begin_run(folder, config)
    rows = await taught(folder)
    assert len(rows) == 4
    for row in rows:
        assert (row["groups/failed"], row["tokens/generated"], row["rollout/logp_gap"]) == (0.0, 0.0, 0.0)
        assert 0.0 <= row["preference/accuracy"] <= 1.0
        difference = row["preference/chosen"] - row["preference/rejected"]
        assert row["preference/margin"] == pytest.approx(difference, abs=1e-4)
        assert row["grad_norm"] > 0
    assert rows[-1]["preference/margin"] > rows[0]["preference/margin"]


async def test_critical_token_dpo_resumes_to_the_same_bytes_after_a_stop_in_either_phase(tmp_path: Path) -> None:
    algorithm = 'algorithm={name="ctdpo", beta=0.5, estimator_steps=3, estimator_lr=5e-3}'
    config = config_of(tmp_path / "pairs.jsonl", ROWS, "loop.steps=6", algorithm, *ALL)
    whole, parts = RunDir(tmp_path / "whole"), RunDir(tmp_path / "parts")
    for folder in (whole, parts):
        begin_run(folder, config)
    rows = await taught(whole)
    assert len(await taught(parts, until=1)) <= 3 < len(await taught(parts, until=4)) < 6
    assert timeless(await taught(parts)) == timeless(rows)
    last = [sorted(folder.adapters.glob("v*/*.safetensors"))[-1].read_bytes() for folder in (whole, parts)]
    assert last[0] == last[1]
    for side in ("right", "wrong"):
        losses = [row[f"estimator/loss_{side}"] for row in rows[:3]]
        assert losses == sorted(losses, reverse=True)
    assert [row["grad_norm"] > 0 for row in rows] == [False] * 3 + [True] * 3
    assert rows[-1]["preference/margin"] > rows[3]["preference/margin"]
    for row in rows[3:]:
        assert all(0 < row[f"estimator/weight_{side}"] < 1 for side in ("chosen", "rejected"))


def test_a_pair_becomes_a_group_that_only_the_teacher_sees(tmp_path: Path) -> None:
    folder = RunDir(tmp_path / "run")
    begin_run(folder, config_of(tmp_path / "pairs.jsonl", ROWS))
    feeder = assemble(folder, MemoryBus(), Settings()).feeder
    tasks = feeder.tasks(1, BASE_POLICY, BASE_POLICY)
    assert len(tasks) == 3
    renderer = Renderer(feeder.config.model.path)
    for task in tasks:
        group = feeder.group(task)  # type: ignore[attr-defined]
        assert task.route == (Stage.TEACH,)
        question = task.messages[-1].content
        row = next(row for row in ROWS if row["prompt"] == question)
        texts = [renderer.text(c.token_ids) for c in group.rollout.completions]
        assert texts == [row["chosen"], row["rejected"]]
        assert all(c.token_ids[-1] in renderer.stop_ids and c.logps == () for c in group.rollout.completions)
        assert [v.outcome for v in group.verdicts] == [Outcome.CORRECT, Outcome.WRONG]
        assert group.rollout.prompt_token_ids == renderer.prompt_ids(task.messages)


def test_chat_messages_are_responses_by_their_last_turn(tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "1 + 1 = ?"}, {"role": "assistant", "content": "2"}]
    config = config_of(tmp_path / "pairs.jsonl", [{"prompt": "1 + 1 = ?", "chosen": turns, "rejected": "3"}])
    (problem,) = load_problems(config, Renderer(config.model.path)).problems
    assert (problem.answer, problem.rejected) == ("2", "3")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rejected": None}, "row 0: column 'rejected' holds None, which is not a response"),
        ({"chosen": " "}, "row 0: column 'chosen' holds ' ', which is not a response"),
        ({"rejected": "0 + 1 = 1"}, "row 0: the chosen and the rejected response are the same"),
        ({"rejected": "1" * 99}, "row 0: a response of .* tokens is above sampling.max_tokens=48"),
        ({"prompt": "1 +" * 90}, "row 0: prompt and response make .* above model.max_length=160"),
    ],
)
def test_a_row_that_is_no_pair_is_refused(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    config = config_of(tmp_path / "pairs.jsonl", [ROWS[0] | change, *ROWS[1:]])
    with pytest.raises(UserError, match=message):
        load_problems(config, Renderer(config.model.path))


def test_columns_of_other_names_are_named_in_the_run(tmp_path: Path) -> None:
    rows = [{"prompt": row["prompt"], "better": row["chosen"], "worse": row["rejected"]} for row in ROWS]
    with pytest.raises(UserError, match="chosen"):
        load_problems(config_of(tmp_path / "a.jsonl", rows), Renderer(make_config().model.path))
    config = config_of(tmp_path / "b.jsonl", rows, "data.answer=better", "data.rejected=worse")
    assert len(load_problems(config, Renderer(config.model.path)).problems) == 6


def test_the_checks_before_a_run_accept_pairs(tmp_path: Path) -> None:
    preflight = Preflight(config_of(tmp_path / "pairs.jsonl", ROWS), tmp_path)
    texts = {finding.check: finding.text for finding in run_checks(preflight) if finding.state == "ok"}
    assert "6 problems" in texts["data"]
    assert texts["reward"] == "none: the run trains on pairs"
    assert [prompt.context for prompt in example_prompts(preflight)] == ["plain"]


@pytest.mark.parametrize("tokens", [1, 60, 10**6])
def test_micro_batches_never_split_a_group_that_must_be_whole(tokens: int) -> None:
    learner = Learner(make_config(f"optim.tokens_per_microbatch={tokens}"))
    batch = pack(make_ragged([(3, 9), (1, 2), (12, 1), (4, 4)]))
    parts = list(learner.context.microbatches(batch, range(batch.size), whole_groups=True))
    assert sorted(row for part in parts for row in part) == list(range(batch.size))
    for part in parts:
        groups = batch.group_B[part].tolist()
        assert all(groups.count(group) == 2 for group in groups)
    assert len(parts) == (1 if tokens == 10**6 else len(parts))
    assert tokens > 1 or len(parts) == 4
