"""Groups that arrive from outside: their checks, their place in a step, and a run that trains on them."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import torch

from cepo.messages.groups import Stage
from cepo.net.rest import surface
from cepo.net.settings import Settings
from cepo.run.folder import RunDir
from cepo.service import adapters
from cepo.service.chassis import Service, rest
from cepo.service.stage import StageLoop
from cepo.teaching.handler import make_handler
from cepo.testing import MemoryBus
from services.trainer.__main__ import assemble
from services.trainer.loop import Run, train
from services.trainer.outside.feeder import OutsideFeeder
from services.trainer.outside.intake import Intake
from services.trainer.outside.rest import add_groups
from tests.helpers.credit import grade
from tests.helpers.factories import make_config
from tests.helpers.runs import begin_run
from tests.helpers.scorers import RENDERER
from tests.unit.trainer.loops import ProvenScorer, timeless

torch.set_num_threads(1)
SMALL = ("data.source=groups", "data.eval=", "loop.steps=2", "sampling.prompts=2", "lora.rank=2")
QUESTION = {"role": "user", "content": "3 + 4 = ?"}
TURNS = [
    {"role": "assistant", "content": "add(3,4)"},
    {"role": "tool", "content": "7"},
    {"role": "assistant", "content": "\\boxed{7}"},
]


def make_body(number: int = 0, **changes: Any) -> dict[str, Any]:
    """A group of a response with a tool and of one without; the second has its log-probs."""
    ids = list(RENDERER.response_ids(f"{number}+3, \\boxed{{8}}"))
    plain = {"token_ids": ids, "logps": [-0.5] * len(ids)}
    group = {"id": f"task-{number}", "policy_version": 0, "messages": [QUESTION], "answer": "7"}
    return group | {"responses": [{"messages": TURNS}, plain]} | changes


class Outside:
    """A run in this process, with the REST route of its trainer."""

    def __init__(self, folder: Path, *overrides: str) -> None:
        self.folder, self.bus = RunDir(folder), MemoryBus()
        begin_run(self.folder, make_config(*SMALL, *overrides), resume=self.folder.config.is_file())
        self.run: Run = assemble(self.folder, self.bus, Settings(threads=1))
        assert isinstance(self.run.feeder, OutsideFeeder)
        self.arrivals, app = self.run.feeder.arrivals, surface()
        self.intake = Intake(self.run.feeder, RENDERER, self.run.collector.expect)
        add_groups(app, self.intake)

        async def work(stop: asyncio.Event) -> None: ...

        rest(Service("trainer", "cepo.v1.TrainerService", lambda server: None, work, app), Settings(token="secret"))
        self.client = httpx.AsyncClient(
            transport=httpx.ASGITransport(app, raise_app_exceptions=False),
            base_url="http://trainer",
            headers={"Authorization": "Bearer secret"},
        )
        self.drain = asyncio.Event()

    @contextlib.asynccontextmanager
    async def training(self) -> AsyncIterator[None]:
        """Runs the loop and the stages; sampling is not among them."""
        stop, scorer = asyncio.Event(), ProvenScorer(self.run)
        handlers: dict[Stage, Any] = {Stage.VERIFY: grade, Stage.TEACH: make_handler(scorer, RENDERER, 200)}
        async with asyncio.TaskGroup() as group:
            for stage, handler in handlers.items():
                group.create_task(StageLoop(self.bus, stage, handler).run(stop))
            loop = group.create_task(train(self.run, self.drain))
            while self.arrivals.pipeline is None:
                await asyncio.sleep(0.01)
            yield
            await loop
            stop.set()

    async def send(self, body: dict[str, Any]) -> httpx.Response:
        return await self.client.post("/v1/groups", json=body)

    async def sampled_with(self, version: int) -> None:
        """Waits until a version is published."""
        async with asyncio.timeout(60):
            while self.run.status.policy.version < version:
                await asyncio.sleep(0.01)


async def fed(outside: Outside, *numbers: int) -> list[dict[str, Any]]:
    """Sends groups, each with the policy of its step, and returns the replies."""
    replies = []
    for number in numbers:
        await outside.sampled_with(number // 2)
        reply = await outside.send(make_body(number, policy_version=number // 2))
        assert reply.status_code == 200, reply.text
        replies.append(reply.json())
    return replies


async def test_a_run_trains_on_what_arrives_and_resumes_to_the_same_bytes(tmp_path: Path) -> None:
    whole = Outside(tmp_path / "whole" / "run")
    async with whole.training():
        replies = await fed(whole, 0, 1, 2, 3)
    assert [(reply["step"], reply["index"], reply["waiting_for"]) for reply in replies] == [
        (0, 0, 1), (0, 1, 0), (1, 0, 1), (1, 1, 0)
    ]  # fmt: skip
    rows = whole.folder.rows()
    assert [row["policy_version"] for row in rows] == [0, 1]
    for row in rows:
        assert (row["groups/failed"], row["accuracy/train"], row["reward/mean"]) == (0, 0.5, 0.5)
        assert row["length/turns"] == 1.5
        assert row["credit/tokens"] == row["tokens/trained"] > 0
        assert row["tokens/given"] > 0

    broken = Outside(tmp_path / "broken" / "run")
    async with broken.training():
        await fed(broken, 0, 1, 2)
        broken.drain.set()
    assert len(broken.folder.rows()) == 1
    resumed = Outside(tmp_path / "broken" / "run")
    async with resumed.training():
        again = await resumed.send(make_body(2, policy_version=1))
        assert again.json() == replies[2]
        await fed(resumed, 3)
    assert timeless(resumed.folder.rows()) == timeless(rows)
    digests = [adapters.digest(adapters.read(each.folder.adapters / "v000002")) for each in (whole, resumed)]
    assert digests[0] == digests[1]


async def test_rewards_that_come_with_the_responses_are_the_rewards(tmp_path: Path) -> None:
    outside = Outside(tmp_path / "run", "loop.steps=1", "algorithm={name='grpo'}")
    responses = [
        {**response, "reward": reward} for response, reward in zip(make_body()["responses"], (0.25, 2.0), strict=True)
    ]
    async with outside.training():
        assert (await outside.send(make_body(0, responses=responses))).status_code == 200
        assert (await outside.send(make_body(1, responses=responses, answer=""))).status_code == 200
    (row,) = outside.folder.rows()
    assert row["reward/mean"] == (0.25 + 2.0) / 2
    assert row["accuracy/train"] == (1 + 0 + 0.25 + 1) / 4, "the answer decides, and the reward where there is none"


REFUSED: list[tuple[dict[str, Any], int, str]] = [
    ({"policy_version": 1}, 409, "version 1 is not one that step 0 may train on with loop.lag=0; sample with 0"),
    ({"answer": ""}, 422, "answer: give the reference answer, or every response a reward"),
    ({"answer": "\\boxed{}"}, 422, "answer: reference answer"),
    ({"id": "a b"}, 422, "id"),
    ({"prompt_token_ids": [5, 9999]}, 422, "prompt_token_ids.1: 9999 is outside the vocabulary of 512 tokens"),
    ({"responses": [{"token_ids": [-1]}] * 2}, 422, "responses.0.token_ids.0: -1 is outside"),
    ({"responses": [{"token_ids": [5] * 99}] * 2}, 422, "responses.0: 99 tokens, above sampling.max_tokens=48"),
    ({"responses": [{"token_ids": [5], "logps": []}] * 2}, 422, "0 logps for 1 token_ids"),
    ({"responses": [{"token_ids": [5], "logps": [None]}] * 2}, 422, "logps.0 is null, but this token was sampled"),
    ({"responses": [{"token_ids": [5], "logps": [0.5]}] * 2}, 422, "responses.0.logps.0"),
    ({"responses": [{"token_ids": [5], "reward": 1.0}, {"token_ids": [5]}]}, 422, "responses.1: give every"),
    ({"responses": [{"messages": TURNS[:2]}] * 2}, 422, "must be assistant turns"),
    ({"responses": [{"messages": TURNS}]}, 422, "responses"),
]


async def test_what_cannot_be_trained_on_is_refused_and_a_group_is_taken_once(tmp_path: Path) -> None:
    idle = Outside(tmp_path / "run")
    async with idle.training():
        for changes, status, says in REFUSED:
            reply = await idle.send(make_body(**changes))
            assert (reply.status_code, says in reply.json()["detail"]) == (status, True), reply.text
        assert idle.arrivals.inbox.next_place == (0, 0)
        first = await idle.send(make_body())
        assert first.json() == {"id": "task-0", "step": 0, "index": 0, "waiting_for": 1}
        assert (await idle.send(make_body())).json() == first.json()
        other = await idle.send(make_body(answer="8"))
        assert (other.status_code, "another group 'task-0' has arrived before" in other.text) == (422, True)
        headers = {"Authorization": "Bearer wrong"}
        assert (await idle.client.post("/v1/groups", json=make_body(1), headers=headers)).status_code == 401
        idle.drain.set()
    assert idle.arrivals.inbox.next_place == (0, 1)
