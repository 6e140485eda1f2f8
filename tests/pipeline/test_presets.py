"""Every shipped run file trains the tiny model with its method, through one set of real services."""

from __future__ import annotations

import asyncio
import json
import math
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import islice
from pathlib import Path

import pytest
import torch

from benchmarks import _stack
from cepo import tiny
from cepo.algo.base import Metrics
from cepo.messages.hints import INSTRUCTION
from cepo.run import file as runfile
from cepo.tiny import demos, task
from services.trainer.loop import Run, train
from services.trainer.report import finished
from tests.helpers.factories import RUNS
from tests.pipeline.support import ROOT, asked, rows

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

STEPS = 3
PRESETS = sorted(path.stem for path in RUNS.glob("*.toml"))
SIZES = (
    "model.dtype=float32",
    "model.max_length=224",
    "lora.rank=8",
    "sampling.prompts=4",
    "sampling.samples=4",
    "sampling.max_tokens=40",
    f"loop.steps={STEPS}",
    "engine.device=cpu",
    "engine.max_num_seqs=64",
    "engine.max_lora_rank=8",
    'data.eval=""',
    'data.question="question"',
    'data.answer="answer"',
    "data.where=[]",
    f"data.instruction='{INSTRUCTION}'",  # the tiny model knows no other, and would never earn a reward
)
SPLITS = ("_correct", "_wrong", "_raised", "_lowered")
PARTICULAR = {
    "dapo": ("reward.overlong_buffer=8",),
    "dapo17k_cepo": ("reward.overlong_buffer=8",),
    "dpo": ('data.answer="chosen"',),
    "ctdpo": ('data.answer="chosen"', "algorithm.estimator_steps=1"),
    "clipo-gsm8k": ("algorithm.head_warmup=1",),
    "clipo-math": ("algorithm.head_warmup=1",),
    "ppo": ("algorithm.critic_lr=1e-3",),
    "spo-tree": ("algorithm.branching=[2, 2]", "algorithm.segment_tokens=8"),
    "vineppo": ("algorithm.continuations=2", 'algorithm.step_delimiter=" "', "algorithm.max_states=4"),
    "spo-chain": ("algorithm.continuations=2", "algorithm.max_states=4"),
}
"""Overrides that adapt a preset to responses of 40 tokens."""


@dataclass(frozen=True)
class Services:
    """The running services, and the overrides that all presets share."""

    engines: _stack.Services
    overrides: tuple[str, ...]


class Scorer(BaseHTTPRequestHandler):
    """Scores each reasoning step with the share of its characters that are digits."""

    def do_POST(self) -> None:
        steps = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["steps"]
        scores = [sum(c.isdigit() for c in step) / max(1, len(step)) for step in steps]
        body = json.dumps({"scores": scores}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *arguments: object) -> None: ...


@pytest.fixture(scope="module")
def scorer() -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Scorer)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/score"
    server.shutdown()


@pytest.fixture(scope="module")
def services(tmp_path_factory: pytest.TempPathFactory, scorer: str) -> Iterator[Services]:
    """Rollout, verifier and teacher as `cepo up` starts them. The tests take the trainer's place."""
    folder = tmp_path_factory.mktemp("services")
    data = folder / "train.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in islice(examples(), 64)))
    overrides = (*SIZES, f"model.path={tiny.path()}", f"data.train={data}")
    widest = ["model.max_length=256", f"reward.scorer={scorer}"]  # a context may hold a peer's response
    # The rollout service runs only the environments that its run file names.
    environment = runfile.load(RUNS / "tiny_tools_cepo.toml").data.environment
    widest += [f"data.environment={environment}", "data.max_turns=4"]
    config = runfile.load(RUNS / "prm.toml", [*overrides, *widest])
    with _stack.services(config) as engines:
        alone = engines.settings.model_copy(update={"threads": 1})
        yield Services(replace(engines, settings=alone), (*overrides, f"reward.scorer={scorer}"))


def examples() -> Iterator[dict[str, str]]:
    """Rows of problems with a solution, a correct response (`chosen`) and a wrong one (`rejected`)."""
    for problem in task.problems(0, held_out=False):
        right, wrong = demos.solution(problem)[0], demos.solution(problem, slip=1)[0]
        answer = str(problem.answer)
        yield {"question": problem.question, "answer": answer, "solution": right, "chosen": right, "rejected": wrong}


@asynccontextmanager
async def trainer(preset: str, services: Services, folder: Path, *overrides: str) -> AsyncIterator[Run]:
    """A run of a preset, which serves its adapters to the engines."""
    torch.set_num_threads(1)
    common = [o for o in services.overrides if not o.startswith("reward.scorer") or preset == "prm"]
    config = runfile.load(RUNS / f"{preset}.toml", [*common, *PARTICULAR.get(preset, ()), *overrides])
    async with _stack.trainer(services.engines, config, folder) as run:
        yield run


def measured(services: Services, metric: str) -> dict[str, float]:
    """The current value of a metric in rollout and teacher."""
    pages = {name: asked(f"{services.engines.http[name]}/metrics") for name in ("rollout", "teacher")}
    return {name: float(page.split(f"\n{metric} ")[1].split("\n")[0]) for name, page in pages.items()}


def documented(key: str) -> bool:
    """Whether docs/metrics.md names a key, in full or with a star at its end."""
    plain = next((key.removesuffix(end) for end in SPLITS if key.endswith(end)), key)
    names = (ROOT / "docs" / "metrics.md").read_text().split("`")[1::2]
    return key in names or plain in names or any(fnmatch(key, name) for name in names if "*" in name)


async def trained(preset: str, services: Services, folder: Path, *overrides: str) -> tuple[Run, list[Metrics]]:
    """Trains a preset in this process through the services. Returns the run and its rows of metrics."""
    async with trainer(preset, services, folder, *overrides) as run:
        await asyncio.wait_for(train(run, asyncio.Event()), 120)
    metrics = rows(folder)
    assert [row["step"] for row in metrics] == list(range(STEPS))
    assert all(math.isfinite(value) for row in metrics for value in row.values())
    assert not {key for row in metrics for key in row if not documented(key)}
    assert sum(row["groups/failed"] for row in metrics) == 0
    return run, metrics


@pytest.mark.parametrize("preset", PRESETS)
async def test_a_preset_trains_three_steps_and_writes_finite_metrics(
    preset: str, services: Services, tmp_path: Path
) -> None:
    run, metrics = await trained(preset, services, tmp_path / preset)
    sampling = run.config.sampling
    whole = sampling.top_k == 0 and sampling.top_p == 1.0  # otherwise the engine renormalises its log-probs
    assert max(row["rollout/logp_gap"] for row in metrics) < (1e-3 if whole else 0.5)
    assert len(list(run.folder.adapters.glob("v*"))) == STEPS


async def test_a_teacher_near_the_base_model_is_weighed_against_the_present_student_in_its_thoughts(
    services: Services, tmp_path: Path
) -> None:
    """No preset uses the trust region, or a thought that ends with the first line."""
    present = ('algorithm.teacher={source="trust_region", actor_share=0.5}', 'algorithm.student_logp="current"')
    runs = [
        await trained("rlsd-paper", services, tmp_path / f"near{i}", *present, *more)
        for i, more in enumerate([(), ('algorithm.thought_end="\\n"',)])
    ]
    first = [metrics[0] for _, metrics in runs]  # the policies of later steps differ
    assert all(row["credit/delta_std"] > 0 for row in first)
    assert all(row["version/teacher"] == 0 for _, metrics in runs for row in metrics)  # proven too
    assert 0 < first[1]["credit/tokens"] < first[0]["credit/tokens"]


async def test_responses_are_continued_and_their_steps_get_credit(services: Services, tmp_path: Path) -> None:
    settings = ("algorithm.continuations=3", "sampling.prompts=3", "sampling.samples=8")
    _, metrics = await trained("vineppo", services, tmp_path / "steps", *settings)
    for row in metrics:
        assert row["groups/total"] > 3
        assert row["tokens/continued"] > 0
        assert row["value/states"] >= 3 * 8
        assert 0 < row["value/mean"] < 1
        assert row["rollout/logp_gap"] < 1e-3
    assert any(row["grad_norm"] > 0 for row in metrics)


async def test_engines_load_announced_policies_before_a_task_names_them_and_finish_tasks_of_older_ones(
    services: Services, tmp_path: Path
) -> None:
    async with trainer("tiny_cepo", services, tmp_path / "announced") as run:
        policies = []
        for version in (901, 902):
            with torch.no_grad():
                for parameter in run.learner.parameters:
                    parameter.add_(0.01)
            policies.append(await run.publisher.publish(version))
            async with asyncio.timeout(200):
                while set(measured(services, "cepo_engine_policy_version").values()) != {version}:
                    await asyncio.sleep(0.1)
        loads = measured(services, "cepo_engine_load_seconds_count")
        old, new = policies
        tasks = [*run.feeder.tasks(0, new, new), *run.feeder.tasks(1, old, old), *run.feeder.tasks(2, new, old)]
        run.collector.expect(tasks)
        await run.feeder.publish(tasks)
        groups = finished(await asyncio.wait_for(run.collector.take(tasks), 200))
        assert measured(services, "cepo_engine_load_seconds_count") == loads
    assert [group.task for group in groups] == tasks  # none failed, and the engines proved the policies of each
    assert [group.scored.rollout.proof.policy for group in groups] == [task.policy for task in tasks]
    assert {proof.policy for group in groups for proof in group.proofs} == {old, new}
