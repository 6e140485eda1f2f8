"""Step scores from a real HTTP server: the request it receives, and every way it can fail."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from cepo.cli.preflight import data_checks
from cepo.cli.preflight.preflight import Preflight
from cepo.data.problems import load_problems
from cepo.errors import UserError
from cepo.messages.groups import FinishReason, Outcome, Reward, ScoredGroup
from services.verifier.handler import Verifier
from services.verifier.pool import GraderPool
from services.verifier.scorers import StepScorers
from tests.helpers.factories import make_completion, make_config, make_group, make_task

Answer = Callable[[dict[str, Any]], tuple[int, str]]
TEXTS = ("3+4\n=7\n\\boxed{7}", "\\boxed{5}", "")


@contextmanager
def server(answer: Answer) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """The address of a scorer with this reply, and the requests it received."""
    received: list[dict[str, Any]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            received.append(body)
            status, text = answer(body)
            self.send_response(status)
            self.send_header("Content-Length", str(len(text)))
            self.end_headers()
            self.wfile.write(text.encode())

        def log_message(self, *_: object) -> None: ...

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as made:
        thread = threading.Thread(target=made.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{made.server_port}/score", received
        finally:
            made.shutdown()
            thread.join()


async def scored(address: str, deadline_seconds: float = 100.0, allowed: str | None = None) -> ScoredGroup:
    """The group of these texts, scored by a verifier with this scorer; no answer needs algebra."""
    task = make_task(samples=len(TEXTS), reward=Reward(scorer=address), step_delimiter="\n")
    ends = [(2, 4, 6), (3,), (1,)]
    completions = tuple(
        make_completion(text, end[-1], FinishReason.STOP).model_copy(update={"step_ends": end})
        for text, end in zip(TEXTS, ends, strict=True)
    )
    group = make_group(TEXTS, task).model_copy(update={"completions": completions})
    scorers = StepScorers([address if allowed is None else allowed], deadline_seconds)
    return await Verifier(GraderPool(1), scorers).verify(group)


def each(body: dict[str, Any]) -> tuple[int, str]:
    return 200, json.dumps({"scores": [0.5 + i / 4 for i in range(len(body["steps"]))], "model": "toy"})


async def test_every_step_of_a_response_gets_a_number_and_rewards_stay_as_they_are() -> None:
    with server(each) as (address, received):
        group = await scored(address)
    assert [v.step_rewards for v in group.verdicts] == [(0.5, 0.75, 1.0), (0.5,), ()]
    assert [v.outcome for v in group.verdicts] == [Outcome.CORRECT, Outcome.WRONG, Outcome.UNPARSED]
    assert [v.reward for v in group.verdicts] == [1.0, 0.0, 0.0]
    sent = sorted(received, key=lambda body: len(body["steps"]))
    question = group.task.messages[-1].content
    assert sent == [
        {"question": question, "steps": ["\\boxed{5}"]},
        {"question": question, "steps": ["3+4", "\n=7", "\n\\boxed{7}"]},
    ]


def slow(body: dict[str, Any]) -> tuple[int, str]:
    time.sleep(0.5)
    return each(body)


@pytest.mark.parametrize(
    ("answer", "outcome", "reason"),
    [
        (slow, Outcome.TIMEOUT, "the step scorer took longer than 0.2 s"),
        (lambda _: (503, "busy"), Outcome.GRADER_ERROR, "the step scorer answered 503"),
        (lambda _: (200, "no JSON"), Outcome.GRADER_ERROR, "the step scorer answered no scores: Invalid JSON"),
        (lambda _: (200, '{"values": []}'), Outcome.GRADER_ERROR, "the step scorer answered no scores: Field required"),
        (lambda _: (200, '{"scores": [NaN, 1, 1]}'), Outcome.GRADER_ERROR, "the step scorer answered no scores: "),
        (lambda _: (200, '{"scores": [1, 1]}'), Outcome.GRADER_ERROR, "the step scorer answered 2 scores for"),
    ],
)
async def test_a_scorer_that_fails_fails_the_samples_and_not_the_group(
    answer: Answer, outcome: Outcome, reason: str
) -> None:
    with server(answer) as (address, _):
        group = await scored(address, deadline_seconds=0.2 if answer is slow else 100.0)
    asked, empty = group.verdicts[:2], group.verdicts[2]
    assert [(v.outcome, v.failed, v.reward, v.step_rewards) for v in asked] == [(outcome, True, 0.0, ())] * 2
    assert all(v.reason.startswith(reason) for v in asked)
    assert not empty.failed


async def test_a_scorer_that_is_not_there_fails_the_samples() -> None:
    with server(each) as (address, _):
        pass
    group = await scored(address)
    assert [v.outcome for v in group.verdicts[:2]] == [Outcome.GRADER_ERROR] * 2
    assert group.verdicts[0].reason.startswith("the step scorer is not reached: ConnectError")


async def test_only_the_scorers_this_process_was_started_with_are_called() -> None:
    other = "http://127.0.0.1:1/other"
    with server(each) as (address, received), pytest.raises(UserError, match=f"with CEPO_STEP_SCORERS={address}"):
        await scored(address, allowed=other)
    assert received == []


async def test_without_a_scorer_nothing_is_asked() -> None:
    task = make_task(samples=1)
    group = await Verifier(GraderPool(1)).verify(make_group(["\\boxed{5}"], task))
    assert group.verdicts[0].step_rewards == ()


def test_the_checks_before_a_run_ask_the_scorer(tmp_path: Path) -> None:
    def checked(address: str) -> Preflight:
        config = make_config('algorithm={name="prm"}', f"reward.scorer={address}")
        preflight = Preflight(config, tmp_path)
        preflight.train = load_problems(config, preflight.renderer)
        return preflight

    with server(each) as (address, received):
        assert [state for state, _ in data_checks.reward(checked(address))] == ["ok"]
    assert [len(body["steps"]) for body in received] == [1, 1]
    refusal = "reward.scorer=.*: the step scorer answered 503; start it, or fix it"
    with server(lambda _: (503, "")) as (address, _), pytest.raises(UserError, match=refusal):
        list(data_checks.reward(checked(address)))
