"""Limits on the load that one client can cause."""

from __future__ import annotations

from typing import Any

import grpc
import httpx
import pytest

from cepo.errors import PolicyError
from cepo.net.bodies import MAX_BODY_BYTES
from cepo.net.connections import MAX_MESSAGE_BYTES
from cepo.net.limits import MAX_ADDRESSES, RateLimit
from cepo.net.settings import Settings
from cepo.pb.cepo.v1 import services_pb2, services_pb2_grpc
from cepo.service.adapters import fetch_adapter
from tests.helpers.factories import POLICY
from tests.unit.security.support import served


async def test_every_service_bounds_the_body() -> None:
    async with served() as service, httpx.AsyncClient(base_url=f"http://127.0.0.1:{service.http_port}") as web:
        assert (await web.post("/echo", content=b"1" * MAX_BODY_BYTES)).json() == MAX_BODY_BYTES
        reply = await web.post("/echo", content=b"1" * (MAX_BODY_BYTES + 1))
    assert reply.status_code == 413
    assert "longer than" in reply.json()["detail"]


async def test_grpc_bounds_the_message() -> None:
    async with served() as service:
        unbounded = [("grpc.max_send_message_length", -1)]
        async with grpc.aio.insecure_channel(f"127.0.0.1:{service.grpc_port}", options=unbounded) as connection:
            call = connection.unary_unary("/cepo.v1.VerifierService/Verify")(bytes(MAX_MESSAGE_BYTES + 1))
            assert await call.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


async def test_above_the_rate_a_caller_is_told_to_wait() -> None:
    async with (
        served(requests_per_second=2.0, token="t") as service,
        httpx.AsyncClient(base_url=f"http://127.0.0.1:{service.http_port}") as web,
    ):
        replies = [await web.post("/echo", headers={"Authorization": f"Bearer {guess}"}) for guess in range(4)]
        assert [reply.status_code for reply in replies] == [401] * 4  # a burst of two seconds
        while (reply := await web.post("/echo")).status_code != 429:  # on a slow machine the bucket refills meanwhile
            assert reply.status_code == 401
    assert reply.headers["retry-after"] == "1"
    assert "2 requests per second" in reply.json()["detail"]


class Bucket:
    """A rate limit with a fake clock."""

    def __init__(self, per_second: float) -> None:
        self.now = 0.0
        self.passed = 0
        self._limit = RateLimit(self._app, per_second, lambda: self.now)

    async def request(self, address: str) -> bool:
        """Whether a request is accepted."""
        before = self.passed

        async def send(message: Any) -> None: ...

        await self._limit({"type": "http", "client": (address, 1)}, None, send)
        return self.passed > before

    async def _app(self, scope: Any, receive: Any, send: Any) -> None:
        self.passed += 1


async def test_a_bucket_fills_with_time_and_belongs_to_one_address() -> None:
    bucket = Bucket(per_second=2.0)
    assert [await bucket.request("a") for _ in range(5)] == [True] * 4 + [False]
    assert await bucket.request("b")
    bucket.now = 0.5
    assert [await bucket.request("a") for _ in range(2)] == [True, False]
    bucket.now = 1000.0
    assert [await bucket.request("a") for _ in range(5)] == [True] * 4 + [False]


async def test_many_addresses_take_bounded_memory() -> None:
    bucket = Bucket(per_second=1.0)
    for number in range(MAX_ADDRESSES + 10):
        assert await bucket.request(str(number))
    assert len(bucket._limit._buckets) == MAX_ADDRESSES


@pytest.mark.parametrize("file", ["../../evil", "tokenizer.json", ""])
async def test_a_trainer_that_sends_other_files_is_refused(file: str) -> None:
    class Evil(services_pb2_grpc.TrainerServiceServicer):
        async def FetchPolicy(self, request: Any, context: Any) -> Any:
            yield services_pb2.PolicyChunk(file=file, data=b"x")

    server = grpc.aio.server()
    services_pb2_grpc.add_TrainerServiceServicer_to_server(Evil(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    with pytest.raises(PolicyError, match="this is not an adapter"):
        await fetch_adapter(Settings(trainer_address=f"127.0.0.1:{port}"), POLICY)
    await server.stop(None)
