"""Environments in their processes and behind URLs: what they are told, and what hostile ones cost."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import threading
import time
from collections.abc import AsyncIterator, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from cepo.errors import UserError
from services.rollout.environments.pool import Environments, Episode
from services.rollout.environments.protocol import EnvironmentFailure, EnvironmentStep, GivenTurn

HERE = "tests.unit.rollout.hostile_environments"
NAMES = tuple(f"{HERE}:{name}" for name in ("Echo", "Waiting", "Plain", "Hostile", "Partial", "BadReset"))
CALCULATOR = "services.rollout.environments.calculator:Calculator"
GUESSING = "services.rollout.environments.guessing:GuessTheNumber"
DEADLINE_SECONDS = 1.0
pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def pool() -> AsyncIterator[Environments]:
    async with Environments((*NAMES, CALCULATOR, GUESSING), at_once=4, deadline_seconds=100) as made:
        yield made


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def hasty() -> AsyncIterator[Environments]:
    async with Environments(NAMES, at_once=4, deadline_seconds=DEADLINE_SECONDS) as made:
        yield made


def episode(name: str, answer: str = "7", seed: int = 1) -> Episode:
    full = name if ":" in name else f"{HERE}:{name}"
    return Episode(full, {"question": "3 + 4 = ?", "answer": answer}, seed, "my-run/0/0/0")


def said(text: str) -> dict[str, Any]:
    return {"role": "assistant", "content": text}


async def played(pool: Environments, begun: Episode, *turns: str) -> list[EnvironmentStep]:
    async with pool.playing(begun) as environment:
        return [await environment.step(said(turn)) for turn in turns]


async def contents(pool: Environments, begun: Episode, *turns: str) -> list[str]:
    return [turn.content for step in await played(pool, begun, *turns) for turn in step.messages]


async def test_an_environment_gets_its_row_and_every_turn_and_its_rewards_come_back(pool: Environments) -> None:
    first, two, last = await played(pool, episode("Echo"), "hello", "two", "stop")
    assert first == EnvironmentStep(messages=[GivenTurn(content="7 1 hello")], reward=0.5)
    assert [(turn.role, turn.content, turn.name) for turn in two.messages] == [("tool", "a", "t"), ("user", "b", "")]
    assert last == EnvironmentStep(done=True, reward=1.0)


async def test_coroutines_and_classes_without_reset_are_environments_too(pool: Environments) -> None:
    assert await contents(pool, episode("Waiting"), "a", "b") == ["7", "7"]
    assert await contents(pool, episode("Plain"), "a") == ["plain"]


async def test_random_numbers_depend_on_the_seed_alone(pool: Environments) -> None:
    turns = ("random", "random")
    one, again, other = [await contents(pool, episode("Echo", seed=seed), *turns) for seed in (5, 5, 6)]
    assert one == again
    assert set(one).isdisjoint(other)


async def test_trajectories_at_the_same_time_have_a_process_each_and_no_more_than_allowed(pool: Environments) -> None:
    playing, most, four = 0, 0, asyncio.Barrier(4)

    async def one(answer: int) -> tuple[str, str]:
        nonlocal playing, most
        async with pool.playing(episode("Echo", str(answer))) as environment:
            playing += 1
            most = max(most, playing)
            await four.wait()
            pid = (await environment.step(said("process"))).messages[0].content
            told = (await environment.step(said("x"))).messages[0].content
            playing -= 1
            return pid, told

    found = await asyncio.gather(*map(one, range(12)))
    assert [told for _, told in found] == [f"{answer} 2 x" for answer in range(12)]
    assert most == 4
    assert len({pid for pid, _ in found}) <= 4


HOSTILE = {
    "crash": "its process ended",
    "exit": "its process ended",
    "raise": "KeyError: 'no such\\\\nthing'",
    "eat": "MemoryError",
    "flood": r"ValueError: its answer has 1000\d+ bytes, above 1048576",
    "bytes": "malformed: messages.0|TypeError",
    "surrogate": "UnicodeEncodeError: 'utf-8' codec can't encode",
    "nan": "Out of range float values are not JSON compliant",
    "object": r"step must return \(messages, reward\), or \(True, reward\)",
    "no reward": r"step must return \(messages, reward\), or \(True, reward\)",
    "nothing": "no messages and is not done",
    "not done": "no messages and is not done",
    "role": "role 'assistant', which is the policy's",
    "field": "malformed: messages.0.evil",
    "number": "malformed: messages.0.content",
}


@pytest.mark.parametrize("turn", HOSTILE)
async def test_a_hostile_environment_costs_its_own_trajectory(pool: Environments, turn: str) -> None:
    async with pool.playing(episode("Hostile")) as innocent:
        with pytest.raises(EnvironmentFailure, match=HOSTILE[turn]) as failure:
            await played(pool, episode("Hostile"), "hello", turn)
        assert "\n" not in str(failure.value)
        assert not failure.value.timed_out
        assert (await innocent.step(said("hello"))).messages[0].content == "fine"
    assert await contents(pool, episode("Echo"), "x") == ["7 1 x"]


async def test_environments_that_hang_end_at_the_deadline_while_others_play(hasty: Environments) -> None:
    async def fails(name: str, turn: str) -> EnvironmentFailure:
        with pytest.raises(EnvironmentFailure) as failure:
            await played(hasty, episode(name), turn)
        return failure.value

    hanging = [("Hostile", "hang"), ("Hostile", "loop"), ("Partial", "partial")]
    begun = time.perf_counter()
    tasks = [asyncio.create_task(fails(*each)) for each in hanging]
    assert await contents(hasty, episode("Echo"), "x") == ["7 1 x"]
    failures = await asyncio.gather(*tasks)
    assert time.perf_counter() - begun < 3 * DEADLINE_SECONDS
    assert {(str(failure), failure.timed_out) for failure in failures} == {("no answer within 1 s", True)}


async def test_many_that_stop_in_the_middle_of_an_answer_keep_no_other_waiting() -> None:
    async with Environments(NAMES, at_once=10, deadline_seconds=1000) as pool:
        stopped = [asyncio.create_task(played(pool, episode("Partial"), "partial")) for _ in range(9)]
        assert await contents(pool, episode("Echo"), "x") == ["7 1 x"]
        for each in stopped:
            each.cancel()
        await asyncio.gather(*stopped, return_exceptions=True)


async def test_bytes_that_an_environment_writes_to_the_connection_are_a_failure(pool: Environments) -> None:
    with pytest.raises(EnvironmentFailure, match="its answer is not UTF-8: byte 0 is 0xff"):
        await played(pool, episode("Partial"), "garbage")
    with pytest.raises(EnvironmentFailure, match="more than 1048576 bytes"):
        await played(pool, episode("Partial"), "huge")


async def test_a_reset_that_fails_is_a_failure(pool: Environments) -> None:
    with pytest.raises(EnvironmentFailure, match="ValueError: no"):
        await played(pool, episode("BadReset", "no"))
    with pytest.raises(EnvironmentFailure, match="its process ended"):
        await played(pool, episode("BadReset", "crash"))
    with pytest.raises(EnvironmentFailure, match="reset returned list; the row's question begins the conversation"):
        await played(pool, episode("BadReset", "messages"))


async def test_a_process_that_is_killed_between_turns_costs_its_trajectory_only(pool: Environments) -> None:
    async with pool.playing(episode("Echo")) as environment:
        os.kill(int((await environment.step(said("process"))).messages[0].content), signal.SIGKILL)
        with pytest.raises(EnvironmentFailure, match="its process ended"):
            await environment.step(said("x"))
    assert await contents(pool, episode("Echo"), "x") == ["7 1 x"]


async def test_a_trajectory_that_is_cancelled_leaves_the_pool_usable(hasty: Environments) -> None:
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.2):
            await played(hasty, episode("Hostile"), "hang")
    assert await contents(hasty, episode("Echo"), "x") == ["7 1 x"]


async def test_an_environment_that_cannot_be_imported_stops_the_start() -> None:
    for name, why in [
        ("no_such_module:Class", "No module named 'no_such_module'"),
        (f"{HERE}:Absent", "has no attribute 'Absent'"),
        (f"{HERE}:NOTHING", "is not a class with a method step"),
    ]:
        with pytest.raises(UserError, match=f"environment {name} .*{why}"):
            async with Environments([name]):
                pass


async def test_a_closed_pool_leaves_no_process() -> None:
    async with Environments(NAMES) as pool:
        pid = int((await contents(pool, episode("Echo"), "process"))[0])
    async with asyncio.timeout(60):
        while Path(f"/proc/{pid}").exists():
            await asyncio.sleep(0.01)


async def test_an_environment_that_was_not_allowed_is_refused(pool: Environments) -> None:
    pool.check_allowed(CALCULATOR)
    with pytest.raises(UserError, match=r"environment os:system is not one .* CEPO_ENVIRONMENTS=os:system"):
        pool.check_allowed("os:system")


@contextlib.contextmanager
def server(*replies: bytes, status: int = 200) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """A server that gives these replies in turn, and what it was asked; `hang` keeps a client waiting."""
    received: list[dict[str, Any]] = []
    released = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            assert self.path == "/step"
            received.append(json.loads(self.rfile.read(int(self.headers["content-length"]))))
            reply = replies[received[-1]["turn"]]
            if reply == b"hang":
                released.wait()
            self.send_response(status)
            self.end_headers()
            with contextlib.suppress(OSError):
                for _ in range(100 if reply == b"flood" else 1):
                    self.wfile.write(b" " * 10**6 if reply == b"flood" else reply)

        def log_message(self, *_: object) -> None:
            pass

    httpd = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=httpd.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{httpd.server_port}", received
    finally:
        released.set()
        httpd.shutdown()
        thread.join()
        httpd.server_close()


async def test_a_url_is_an_environment() -> None:
    replies = (b"{}", b'{"messages": [{"role": "tool", "content": "13"}]}', b'{"done": true, "reward": 2}')
    with server(*replies) as (url, received):
        async with Environments([url]) as pool:
            first, last = await played(pool, episode(url), "calc(61-48)", "13")
    assert (first.messages, first.reward) == ([GivenTurn(content="13")], 0.0)
    assert last == EnvironmentStep(done=True, reward=2.0)
    same = {"trajectory": "my-run/0/0/0", "seed": 1, "row": {"question": "3 + 4 = ?", "answer": "7"}}
    messages = [None, said("calc(61-48)"), said("13")]
    assert received == [{**same, "turn": turn, "message": message} for turn, message in enumerate(messages)]


@pytest.mark.parametrize(
    ("reply", "reason"),
    [
        (b"hang", "no answer within 1 s"),
        (b"flood", "more than 1048576 bytes"),
        (b'{"messages": [{"content": "\xff"}]}', "not UTF-8: byte 27 is 0xff"),
        (b'{"messages": [{"content": "\\ud800"}]}', "malformed"),
        (b'{"messages": "13"}', "malformed: messages"),
        (b'{"reward": NaN, "done": true}', "malformed"),
        (b'{"messages": [{"content": "x"}], "done": true}', "messages and is done"),
        (b"{" * 100_000, "malformed"),
        (b"", "malformed"),
    ],
    ids=lambda value: repr(value[:16]) if isinstance(value, bytes) else "",
)
async def test_a_hostile_url_costs_its_own_trajectory(reply: bytes, reason: str) -> None:
    with server(b"{}", reply) as (url, _):
        async with Environments([url], deadline_seconds=DEADLINE_SECONDS) as pool:
            with pytest.raises(EnvironmentFailure, match=reason):
                await played(pool, episode(url), "x")


async def test_a_url_that_is_not_reached_or_answers_an_error_is_a_failure() -> None:
    with server(b"{}", status=500) as (url, _):
        async with Environments([url]) as pool:
            with pytest.raises(EnvironmentFailure, match="it answered 500"):
                await played(pool, episode(url))
    async with Environments([url]) as pool:
        with pytest.raises(EnvironmentFailure, match="it is not reached: ConnectError"):
            await played(pool, episode(url))


async def test_the_calculator_answers_calls_until_a_turn_has_none(pool: Environments) -> None:
    first, second, last = await played(pool, episode(CALCULATOR), "calc(61-48)", "so calc(13+71)", "\\boxed{84}")
    assert [step.messages[0].content for step in (first, second)] == ["13", "84"]
    assert last == EnvironmentStep(done=True)
