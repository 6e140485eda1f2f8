"""Sessions of agents on a toy engine: what they record, their bounds, and a run that trains on them."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from http import HTTPStatus
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest, ChatCompletionResponse
from vllm.entrypoints.serve.engine.protocol import ErrorResponse
from vllm.entrypoints.serve.exception_handling.error_response import create_error_response

from cepo.errors import Unreachable
from cepo.messages.groups import BASE_POLICY, Message, PolicyRef, Sampling, SessionTerms
from cepo.net.settings import Settings
from cepo.service.chassis import Service, rest
from services.rollout.sessions.book import IDLE_SECONDS, Sessions
from services.rollout.sessions.rest import add_sessions
from services.rollout.vllm_patches.recorded_chat import record_sessions
from services.trainer.outside.sent import SentGroup
from tests.helpers.agent import AGAIN, solve
from tests.helpers.scorers import RENDERER
from tests.unit.trainer.test_outside import Outside

QUESTION = "3 + 4 = ?"
WRONG, RIGHT = "3+4=8, \\boxed{8}", "3+4=7, \\boxed{7}"
TERMS = SessionTerms(policy=BASE_POLICY, sampling=Sampling(max_tokens=60, temperature=0.7), samples=2)


class ToyChat:
    """vLLM's chat handler: answers wrongly, and rightly once it is told to try again or is asked in session b."""

    def __init__(self) -> None:
        self.requests: list[ChatCompletionRequest] = []
        self.rewritten = False
        """Whether the chat template drops the text of earlier turns."""

    async def create_chat_completion(self, request: Any, raw_request: Request) -> Any:
        self.requests.append(request)
        turns = [Message(role=turn["role"], content=turn["content"]) for turn in request.messages]
        said = RIGHT if len(turns) > 1 or raw_request.headers["x-cepo-session"].endswith("b") else WRONG
        if self.rewritten:
            turns = [turn.model_copy(update={"content": ""}) if turn.role == "assistant" else turn for turn in turns]
        ids = RENDERER.response_ids(said)
        content = [{"token": "x", "logprob": -0.5} for _ in ids]
        choice = {"index": 0, "message": {"role": "assistant", "content": said}, "token_ids": ids}
        return ChatCompletionResponse.model_validate(
            {
                "model": request.model,
                "choices": [choice | {"logprobs": {"content": content}}],
                "usage": {"prompt_tokens": 1, "completion_tokens": 1, "total_tokens": 2},
                "prompt_token_ids": RENDERER.prompt_ids(turns),
            }
        )

    def create_error_response(self, message: str, kind: str, status: HTTPStatus) -> ErrorResponse:
        return create_error_response(message, kind, status)


def says(line: str) -> Callable[[openai.APIStatusError], bool]:
    """Whether the reply of a refused request holds a line."""
    return lambda error: line in error.response.text


class Port:
    """The REST of a rollout service, with a toy engine and a trainer that the test stands for."""

    def __init__(self, **trainer: Any) -> None:
        self.now, self.sent, self.chat, self.loaded = 0.0, list[dict[str, Any]](), ToyChat(), list[PolicyRef]()
        self.down = False
        self.sessions = Sessions(trainer.get("terms", self._terms), trainer.get("send", self._send), lambda: self.now)
        self.app = FastAPI()
        self.app.add_api_route("/v1/chat/completions", self._complete, methods=["POST"])
        record_sessions(self.chat, self.sessions, self._load, RENDERER.stop_ids)
        add_sessions(self.app, self.sessions)

        async def work(stop: asyncio.Event) -> None: ...

        service = Service("rollout", "cepo.v1.RolloutService", lambda server: None, work, self.app)
        rest(service, Settings(token="secret"))
        http: Any = httpx.AsyncClient(transport=httpx.ASGITransport(self.app))
        self.client = openai.AsyncOpenAI(
            base_url="http://127.0.0.1/v1", api_key="secret", http_client=http, max_retries=0
        )

    async def turn(self, session: str, *more: str, group: str = "g", **options: Any) -> Any:
        """A chat completion whose messages are the question and `more`, with assistant and user in turn."""
        messages: Any = [
            {"role": ("user", "assistant")[at % 2], "content": text} for at, text in enumerate((QUESTION, *more))
        ]
        headers = {"X-CEPO-Session": session, "X-CEPO-Group": group}
        asked = {"model": "policy", "messages": messages, "extra_headers": headers} | options
        return await self.client.chat.completions.create(**asked)

    async def finish(self, session: str, **body: Any) -> dict[str, Any]:
        reply: dict[str, Any] = await self.client.post(f"/sessions/{session}/finish", body=body, cast_to=dict[str, Any])
        return reply

    async def _complete(self, request: ChatCompletionRequest, raw_request: Request) -> JSONResponse:
        create: Any = self.chat.create_chat_completion
        reply = await create(request, raw_request)
        return JSONResponse(reply.model_dump(), reply.error.code if isinstance(reply, ErrorResponse) else 200)

    async def _load(self, policy: PolicyRef) -> None:
        self.loaded.append(policy)

    async def _terms(self) -> SessionTerms:
        return TERMS

    async def _send(self, body: dict[str, Any]) -> dict[str, Any]:
        if self.down:
            raise Unreachable("trainer at 127.0.0.1:1: it restarts")
        self.sent.append(SentGroup.model_validate(body).model_dump())
        return {"step": 3}


async def test_an_agent_on_the_openai_sdk_trains_a_run_for_two_steps(tmp_path: Path) -> None:
    outside = Outside(tmp_path / "run", "sampling.samples=2", "sampling.max_tokens=60")

    async def terms() -> SessionTerms:
        while True:
            try:
                return outside.intake.terms()
            except Unreachable:
                await asyncio.sleep(0.01)

    async def send(body: dict[str, Any]) -> dict[str, Any]:
        return (await outside.intake.take(SentGroup.model_validate(body))).model_dump()

    port = Port(terms=terms, send=send)
    async with outside.training():
        for number in range(4):
            sessions = [f"{number}-{name}" for name in "ab"]
            replies = [await solve(port.client, name, f"task-{number}", QUESTION, "7") for name in sessions]
            assert [reply["waiting_for"] for reply in replies] == [1, 0]
            assert [reply["turns"] for reply in replies] == [2, 1]
            assert replies[1]["step"] == number // 2
    rows = outside.folder.rows()
    assert [row["policy_version"] for row in rows] == [0, 1]
    assert [policy.version for policy in port.loaded] == [0] * 6 + [1] * 6
    for row in rows:
        assert (row["groups/failed"], row["reward/mean"], row["length/turns"]) == (0, 0.75, 1.5)
        assert row["tokens/given"] > 0
        assert row["credit/tokens"] == row["tokens/trained"] > 0


async def test_a_session_records_the_ids_of_its_turns_and_samples_as_the_run_does() -> None:
    port = Port()
    reply = await port.turn("a", temperature=0, max_tokens=500)
    assert reply.choices[0].logprobs is None
    assert "token_ids" not in {key for key, value in reply.choices[0].model_dump().items() if value is not None}
    await port.turn("a", WRONG, AGAIN)
    await port.turn("b")
    sampled = port.chat.requests[0]
    assert (sampled.model, sampled.temperature, sampled.max_completion_tokens, sampled.min_p) == ("base", 0.7, 60, 0.0)
    assert sampled.stop_token_ids == sorted(RENDERER.stop_ids)
    first = await port.finish("a", answer="7")
    assert (first["waiting_for"], first["splits"], first["step"]) == (1, 0, None)
    last = await port.finish("b")
    assert (last["waiting_for"], last["step"]) == (0, 3)
    assert await port.finish("b") == last, "a request may be repeated"
    (group,) = port.sent
    turns = [Message(role="user", content=QUESTION)]
    assert tuple(group["prompt_token_ids"]) == RENDERER.prompt_ids(turns)
    said, told = RENDERER.response_ids(WRONG), [Message(role="user", content=AGAIN)]
    given = RENDERER.given_ids([*turns, Message(role="assistant", content=WRONG)], told)
    one, two = group["responses"]
    assert tuple(one["token_ids"]) == (*said, *given, *RENDERER.response_ids(RIGHT))
    assert one["given"] == [{"start": len(said), "end": len(said) + len(given)}]
    assert set(one["logps"][: len(said)]) == {-0.5}
    assert tuple(two["token_ids"]) == RENDERER.response_ids(RIGHT)


@pytest.mark.parametrize(("body", "parts"), [({"reward": 1.0}, [0, 1]), ({"answer": "7"}, [1])])
async def test_a_prompt_that_does_not_continue_the_ids_splits_the_trajectory(
    body: dict[str, Any], parts: Sequence[int]
) -> None:
    port = Port()
    port.chat.rewritten = True
    for name in "ab":
        await port.turn(name)
        await port.turn(name, WRONG, AGAIN)
        reply = await port.finish(name, **body)
    assert (reply["splits"], reply["left_out"]) == (1, 2 - len(parts))
    responses = port.sent[0]["responses"]
    assert len(responses) == 2 * len(parts)
    whole = responses[len(parts) - 1]
    (given,) = whole["given"]
    assert given["start"] == 0
    assert tuple(whole["token_ids"][given["end"] :]) == RENDERER.response_ids(RIGHT)


async def test_a_trainer_that_restarts_gets_the_group_when_the_session_is_finished_again() -> None:
    port = Port()
    for name in "ab":
        await port.turn(name)
    await port.finish("a", reward=0.0)
    port.down = True
    with pytest.raises(openai.InternalServerError, check=says("it restarts")):
        await port.finish("b", reward=1.0)
    port.down = False
    assert (await port.finish("b", reward=1.0))["step"] == 3
    assert [response["reward"] for response in port.sent[0]["responses"]] == [0.0, 1.0]


async def test_a_session_without_requests_expires_and_another_takes_its_place() -> None:
    port = Port()
    await port.turn("a")
    await port.turn("b")
    port.now = IDLE_SECONDS / 2
    await port.finish("a", reward=0.0)
    port.now = IDLE_SECONDS + 1
    await port.turn("c")
    with pytest.raises(openai.UnprocessableEntityError, check=says("session b: it expired after 1800 s")):
        await port.finish("b", reward=1.0)
    with pytest.raises(openai.ConflictError, check=says("session b: it has ended")):
        await port.turn("b")
    assert (await port.finish("c", reward=1.0))["step"] == 3


async def test_every_mistake_is_one_clear_line(monkeypatch: pytest.MonkeyPatch) -> None:
    port = Port()
    await port.turn("a")
    refused: list[tuple[dict[str, Any], str]] = [
        ({"group": ""}, "X-CEPO-Group: session a belongs to group g"),
        ({"session": "c", "group": ""}, "X-CEPO-Group: '' is no name"),
        ({"session": "c", "stream": True}, "stream: a session does not take this field"),
        ({"session": "c", "n": 2}, "n: a session does not take this field"),
        ({"session": "c", "extra_body": {"logit_bias": {"5": 9}}}, "logit_bias: a session does not take"),
        ({"session": "c", "model": "v000009-aa"}, "group g samples with base; send model="),
        ({"session": "c", "messages": [{"role": "user", "content": "?"}]}, "begins with other messages than group g"),
        ({"more": (WRONG, "word " * 200)}, "session a: its response has reached sampling.max_tokens=60; finish it"),
    ]
    for options, expected in refused:
        more, session = options.pop("more", ()), options.pop("session", "a")
        with pytest.raises((openai.BadRequestError, openai.ConflictError)) as error:
            await port.turn(session, *more, **options)
        assert expected in error.value.response.text
    await port.turn("b")
    with pytest.raises(openai.ConflictError, check=says("group g: it has its 2 sessions")):
        await port.turn("c")
    for session, body, expected in [
        ("nobody", {}, "session nobody: it is not open"),
        ("a", {}, "answer: give the reference answer, or a reward"),
        ("a", {"rewards": 1.0}, "unknown key; did you mean `reward`"),
    ]:
        with pytest.raises(openai.APIStatusError) as wrong:
            await port.finish(session, **body)
        assert expected in wrong.value.response.text
    await port.finish("a", reward=1.0)
    with pytest.raises(openai.UnprocessableEntityError, check=says("give a reward to every session of group g")):
        await port.finish("b", answer="7")
    monkeypatch.setattr("services.rollout.sessions.book.MAX_SESSIONS", 2)
    with pytest.raises(openai.InternalServerError, check=says("2 sessions are open; finish some of them first")):
        await port.turn("d", group="h")
