"""Token credit through the Python client, from a deployed teacher and verifier."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import ExitStack

import httpx
import pytest

import cepo.tiny
from cepo.client import AsyncClient, Client
from cepo.credit import CreditReply, CreditRequest
from cepo.errors import Unreachable, UserError
from cepo.net.rest import Refusal
from cepo.net.settings import Settings
from tests.helpers.processes import RedisServer, unused_port
from tests.pipeline.support import SLOW_SECONDS, started, wait_until

pytestmark = pytest.mark.timeout(600)
TOKEN = "secret"
BODY = {
    "messages": [{"role": "user", "content": "23 + 45 - 17 = ?"}],
    "responses": [{"text": "23+45=68\n68-17=51\n\\boxed{51}"}, {"text": "23+45=68\n68-17=41\n\\boxed{41}"}],
    "positive": "51",
}
REQUEST = CreditRequest.model_validate(BODY)


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a teacher that is ready to answer."""
    folder = tmp_path_factory.mktemp("services")
    with RedisServer(folder) as redis, ExitStack() as stack:
        verifier = Settings(redis_url=redis.url, grpc_port=unused_port(), token=TOKEN, threads=1)
        teacher = verifier.model_copy(
            update={
                "grpc_port": unused_port(),
                "http_port": unused_port(),
                "verifier_address": f"127.0.0.1:{verifier.grpc_port}",
                "model": str(cepo.tiny.path()),
                "dtype": "float32",
            }
        )
        for name, settings in (("verifier", verifier), ("teacher", teacher)):
            words, log = [sys.executable, "-m", f"services.{name}"], folder / f"{name}.log"
            process = stack.enter_context(started(words, settings.to_environment(), log))
        address = f"http://127.0.0.1:{teacher.http_port}"
        wait_until(lambda: answers(address), process)
        yield address


def answers(address: str) -> bool:
    """Whether teacher and verifier answer."""
    try:
        with Client(address, TOKEN) as client:
            client.credit(REQUEST)
    except Unreachable:
        return False
    return True


def test_responses_are_graded_by_the_verifier_and_every_token_is_weighed(url: str) -> None:
    with Client(url, TOKEN) as client:
        reply = client.credit(REQUEST)
    right, wrong = reply.responses
    assert right.grade is not None
    assert (right.grade.outcome, right.negative.answer, right.negative.source) == ("correct", "41", 1)
    assert max(right.tokens, key=lambda token: token.advantage).text == "5"
    assert wrong.advantage == pytest.approx(-right.advantage)


def test_many_requests_come_one_by_one_and_a_refusal_is_one_of_them(url: str) -> None:
    bad = REQUEST.model_copy(update={"positive": "\\boxed{}"})
    with Client(url, TOKEN) as client:
        first, second, third = client.credit_many([REQUEST, bad, REQUEST])
    assert isinstance(first, CreditReply)
    assert isinstance(second, Refusal)
    assert second.detail.startswith("positive: ")
    assert third == first


async def test_the_client_for_asyncio_does_the_same(url: str) -> None:
    with Client(url, TOKEN) as client:
        expected = client.credit(REQUEST)
    async with AsyncClient(url, TOKEN) as client:
        assert await client.credit(REQUEST) == expected
        assert [reply async for reply in client.credit_many([REQUEST])] == [expected]
        assert (await client.heat_map(REQUEST)).startswith("<!doctype html>")
        with pytest.raises(UserError, match=r"^messages: .*no user turn"):
            await client.credit(CreditRequest.model_validate(BODY | {"messages": [{"role": "system", "content": "x"}]}))


def test_a_mistake_a_missing_token_and_a_missing_trainer_are_errors_of_their_own(url: str) -> None:
    with (
        Client(url, TOKEN) as client,
        pytest.raises(UserError, match=r"^responses\.0: .* exceed the teacher's context"),
    ):
        client.credit(CreditRequest.model_validate(BODY | {"responses": [{"text": "1 " * 2000}]}))
    with Client(url, "wrong") as client, pytest.raises(UserError, match="wrong or missing token"):
        client.credit(REQUEST)
    with Client("http://127.0.0.1:9") as client, pytest.raises(Unreachable, match="does not answer"):
        client.credit(REQUEST)


def test_the_page_is_served_without_a_token_and_holds_no_secret(url: str) -> None:
    page = httpx.get(url, timeout=SLOW_SECONDS)
    assert page.status_code == 200
    assert page.text.startswith("<!doctype html>")
    assert '"live": true' in page.text
    assert TOKEN not in page.text
