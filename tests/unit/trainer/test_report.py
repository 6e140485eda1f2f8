"""The report of a step, and the run folder it is written to."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from statistics import pstdev
from typing import Any

import pytest

from cepo.errors import UserError
from cepo.messages.arrays import Float32Array
from cepo.messages.groups import (
    ContextName,
    EvidencedGroup,
    EvidenceReason,
    EvidenceRow,
    FinishReason,
    GroupFailed,
    Outcome,
    Stage,
)
from cepo.run.folder import RunDir
from cepo.service.stage import GIVEN_UP
from services.trainer.report import (
    accuracy,
    answer_share,
    failures,
    finished,
    first_failure,
    group_metrics,
    hint_metrics,
    judged,
    versions,
)
from tests.helpers.factories import (
    make_config,
    make_evidenced,
    make_failed,
    make_ragged,
    make_scored,
    make_task,
    make_verdict,
)


def make_run(path: Path) -> RunDir:
    run = RunDir(path / "run")
    run.create(make_config(), resume=False)
    return run


def texts(ids: Sequence[int]) -> list[str]:
    return [f"<{token}>" for token in ids]


def test_group_metrics_count_what_came() -> None:
    unparsed = make_scored([1.0, 0.0], make_task(index=2))
    verdict = unparsed.verdicts[1].model_copy(update={"outcome": Outcome.UNPARSED, "reward": -0.5})
    cut = unparsed.rollout.completions[0].model_copy(update={"finish_reason": FinishReason.LENGTH})
    rollout = unparsed.rollout.model_copy(update={"completions": (cut, unparsed.rollout.completions[1])})
    last = unparsed.model_copy(update={"rollout": rollout, "verdicts": (unparsed.verdicts[0], verdict)})
    groups: list[EvidencedGroup | GroupFailed] = [
        make_evidenced([1.0, 1.0]),
        make_evidenced([0.0, 0.0], make_task(index=1)),
        EvidencedGroup(scored=last),
        make_failed(make_task(index=3)),
    ]
    metrics = group_metrics(groups)
    assert metrics["reward/mean"] == pytest.approx(2.5 / 6)
    assert metrics["accuracy/train"] == accuracy(groups) == pytest.approx(0.5)
    assert (metrics["length/mean"], metrics["length/max"], metrics["tokens/generated"]) == (3.5, 4.0, 21.0)
    assert metrics["length/truncated_fraction"] == pytest.approx(1 / 6)
    outcomes = {o.name.lower(): metrics[f"outcome/{o.name.lower()}"] for o in Outcome}
    assert outcomes["correct"] == pytest.approx(0.5)
    assert outcomes["unparsed"] == pytest.approx(1 / 6)
    assert sum(outcomes.values()) == pytest.approx(1.0)
    assert (metrics["groups/total"], metrics["groups/failed"]) == (4.0, 1.0)
    assert metrics["reward/std"] == pytest.approx(pstdev([1.0, 1.0, 0.0, 0.0, 1.0, -0.5]))
    assert (metrics["length/empty_fraction"], metrics["tokens/measured"]) == (0.0, 2 * 2 * 7.0)
    for key, share in (("all_correct", 1), ("all_wrong", 1), ("evidenced", 2), ("zero_spread", 2), ("single", 0)):
        assert metrics[f"groups/{key}"] == pytest.approx(share / 3)
    assert metrics["time/teacher_seconds"] == 1.0


def test_what_has_no_verdict_is_counted_and_in_no_mean() -> None:
    timeout = make_verdict(0.0).model_copy(update={"outcome": Outcome.TIMEOUT, "reason": "comparing took longer"})
    paid = make_verdict(1.0).model_copy(update={"format": 1.0, "penalty": -0.25, "functions": 0.5, "reward": 1.25})
    groups = [EvidencedGroup(scored=make_scored(verdicts=[paid, timeout]))]
    metrics = group_metrics(groups)
    assert (metrics["samples/failed"], metrics["outcome/timeout"]) == (1.0, 0.5)
    assert (metrics["reward/mean"], metrics["accuracy/train"], metrics["groups/all_correct"]) == (1.25, 1.0, 1.0)
    assert (metrics["reward/format"], metrics["reward/penalty"], metrics["reward/functions"]) == (1.0, -0.25, 0.5)
    assert (metrics["groups/single"], metrics["groups/zero_spread"], metrics["reward/std"]) == (1.0, 1.0, 0.0)
    assert judged(groups) == [paid]
    nothing = EvidencedGroup(scored=make_scored(verdicts=[timeout, timeout]))
    mixed = group_metrics([*groups, nothing])
    assert (mixed["groups/all_correct"], mixed["groups/all_wrong"], mixed["samples/failed"]) == (0.5, 0.0, 3.0)
    with pytest.raises(UserError, match="judged none of 2 responses, the first because: comparing took longer"):
        group_metrics([nothing])


def test_responses_without_a_token_are_counted() -> None:
    assert group_metrics(make_ragged([(3, 0), (2, 5)]))["length/empty_fraction"] == 0.25


def test_hint_metrics_say_why_each_rejected_answer_is_what_it_is() -> None:
    group = make_evidenced([1.0, 0.0, 0.0])
    answer, rejected = group.evidence
    changes: list[dict[str, Any]] = [
        {},
        {"reason": EvidenceReason.NO_ANSWER, "context": ContextName.PLAIN},
        {"hint_tokens": 7},
    ]
    rows = [row.model_copy(update=change) for row, change in zip(rejected.rows, changes, strict=True)]
    unused = EvidenceRow(
        logps=Float32Array(), applicable=False, context=ContextName.PLAIN, reason=EvidenceReason.ONLY_SELF
    )
    evidence = (
        answer.model_copy(update={"rows": [row.model_copy(update={"hint_tokens": 4}) for row in answer.rows]}),
        rejected.model_copy(update={"rows": (*rows, unused)}),
    )
    metrics = hint_metrics([group.model_copy(update={"evidence": evidence})])
    expected = {"rejected_asked": 2 / 4, "rejected_no_answer": 1 / 4, "rejected_only_self": 1 / 4}
    expected |= {"rejected_unused": 1 / 4, "answer_tokens": 4.0, "rejected_tokens": 3.5}
    zeros = {"rejected_no_rejected": 0.0, "rejected_same_as_answer": 0.0, "rejected_too_few": 0.0}
    assert metrics == pytest.approx({f"hint/{key}": value for key, value in (expected | zeros).items()})


def test_a_step_of_failures_reports_zeros_and_the_failures() -> None:
    metrics = group_metrics([make_failed(), make_failed()])
    assert metrics.pop("groups/failed") == metrics.pop("groups/total") == 2.0
    assert set(metrics.values()) == {0.0}
    assert finished([make_failed()]) == []


def test_the_share_of_credit_on_the_final_answer_is_that_of_its_last_place() -> None:
    """The answer 12 stands in two lines; only the second is the final answer. 0.005 nats are within the dead band."""
    pieces = ["1", "2", "\n", "{1", "2", "}"]
    (group,) = make_ragged([(6, 6)])
    verdicts = [v.model_copy(update={"extracted": "12"}) for v in group.scored.verdicts]
    deltas = {ContextName.ANSWER: (-3.0, 0.0, 0.005, -0.5, -0.5, 0.0), ContextName.REJECTED: (0.0,) * 6}
    evidence = [
        each.model_copy(
            update={
                "rows": tuple(
                    row.model_copy(
                        update={"logps": Float32Array.of(deltas[each.ask.context]), "applicable": index == 0}
                    )
                    for index, row in enumerate(each.rows)
                )
            }
        )
        for each in group.evidence
    ]
    scored = group.scored.model_copy(update={"verdicts": tuple(verdicts)})
    group = group.model_copy(update={"scored": scored, "evidence": tuple(evidence)})
    assert answer_share([group, make_failed()], lambda ids: pieces) == {"credit/answer_share": 0.25}
    alone = group.model_copy(update={"evidence": tuple(evidence[:1])})
    assert answer_share([alone], lambda ids: pieces) == {}
    none = scored.model_copy(update={"verdicts": tuple(v.model_copy(update={"extracted": ""}) for v in verdicts)})
    assert answer_share([group.model_copy(update={"scored": none})], lambda ids: pieces) == {"credit/answer_share": 0.0}


def test_what_was_given_up_is_named_with_its_reason(tmp_path: Path) -> None:
    timeout = make_verdict(0.0).model_copy(update={"outcome": Outcome.TIMEOUT, "reason": "comparing took longer"})
    judged_but_one = EvidencedGroup(scored=make_scored(verdicts=[make_verdict(1.0), timeout]))
    group, sample = failures(
        [make_failed(make_task(index=3)), judged_but_one, make_evidenced([1.0, 0.0])], 4, RunDir(tmp_path)
    )
    assert (group["step"], group["stage"], group["error"], group["sample"]) == (4, "verify", "it broke", None)
    assert group["group"] == make_task(index=3).group_id
    assert (sample["sample"], sample["error"]) == (1, "timeout: comparing took longer")


def test_a_group_whose_workers_ended_is_told_with_what_ended_them(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    (run.logs / "rollout.log").write_text(
        "(EngineCore pid=7) IndexError: index out of range in self\n"
        "cepo.errors.EngineDown: vLLM's engine process has stopped\n"
    )
    given_up = GroupFailed(
        task=make_task(),
        stage=Stage.ROLLOUT,
        error=f"{GIVEN_UP} after 5 deliveries that ended its workers",
        deliveries=6,
    )
    told = f"{given_up.error}, the last by IndexError: index out of range in self; see {run.logs / 'rollout.log'}"
    assert first_failure([make_evidenced(), given_up], run) == told
    row, _ = failures([given_up, make_failed()], 0, run)
    assert row["error"] == told
    assert first_failure([make_failed()], run) == "it broke"  # a verifier on another machine: no log here
    (run.logs / "verifier.log").touch()
    assert first_failure([make_failed()], run) == f"it broke; see {run.logs / 'verifier.log'}"


def test_the_oldest_version_of_each_engine_is_told() -> None:
    assert versions([make_evidenced([1.0, 0.0]), make_failed()])["version/rollout"] == make_task().policy.version
    assert versions([make_failed()]) == {}


def test_a_last_line_cut_by_a_crash_is_left_out_and_overwritten(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    assert run.rows() == []
    for step in range(3):
        run.append({"step": step})
    with run.metrics.open("a") as file:
        file.write('{"step": 3, "reward/me')
    assert [row["step"] for row in run.rows()] == [0, 1, 2]
    run.truncate(3)
    run.append({"step": 3})
    assert [row["step"] for row in run.rows()] == [0, 1, 2, 3]


def test_steps_that_will_be_done_again_are_dropped(tmp_path: Path) -> None:
    run = make_run(tmp_path)
    run.truncate(0)
    for step in range(4):
        run.append({"step": step, "x": step / 3})
    run.truncate(2)
    assert run.rows() == [{"step": 0, "x": 0.0}, {"step": 1, "x": 1 / 3}]
    assert len(run.metrics.read_text().splitlines()) == 2


def test_a_run_folder_is_neither_overwritten_nor_resumed_by_accident(tmp_path: Path) -> None:
    run = RunDir(tmp_path / "run")
    with pytest.raises(UserError, match="holds no run to resume"):
        run.create(make_config(), resume=True)
    assert not run.path.exists()
    run.create(make_config(), resume=False)
    with pytest.raises(
        UserError, match=f"holds a run already; continue it with `cepo resume {run.path}`, or give another"
    ):
        run.create(make_config("loop.seed=1"), resume=False)
    assert "seed = 0" in run.config.read_text()
    run.create(make_config("loop.seed=1"), resume=True)
    assert "seed = 1" in run.config.read_text()
