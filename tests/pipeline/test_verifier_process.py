"""The verifier as it is deployed: a process, a real Redis, every surface."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import httpx
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

from cepo.messages.groups import Outcome, ScoredGroup
from cepo.messages.wire import from_proto, to_proto
from cepo.net.auth import call_metadata
from cepo.net.settings import Settings
from cepo.pb.cepo.v1 import services_pb2_grpc
from cepo.service.bus import RedisBus
from tests.helpers.factories import make_group, make_task
from tests.helpers.processes import RedisServer, unused_port
from tests.pipeline.support import SLOW_SECONDS, started, wait_until

COMMAND = (sys.executable, "-m", "services.verifier")
TOKEN = "secret"
AUTHORIZED = {"Authorization": f"Bearer {TOKEN}"}
SERVICE = "cepo.v1.VerifierService"
GRADE = {"response": "so \\boxed{x+x}", "answer": "2x"}


@dataclass(frozen=True)
class Running:
    """A verifier that is ready."""

    process: subprocess.Popen[str]
    settings: Settings
    web: httpx.Client
    channel: grpc.Channel

    def health(self, service: str = SERVICE) -> health_pb2.HealthCheckResponse:
        stub: Any = health_pb2_grpc.HealthStub(self.channel)  # its methods are attributes, which no stub declares
        return stub.Check(health_pb2.HealthCheckRequest(service=service))

    def stop(self) -> tuple[int, str]:
        """Exit code and what was said after SIGTERM."""
        self.process.send_signal(signal.SIGTERM)
        said, _ = self.process.communicate(timeout=SLOW_SECONDS)
        return self.process.returncode, said


@pytest.fixture(scope="module")
def verifier(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with RedisServer(tmp_path_factory.mktemp("redis")) as redis:
        settings = Settings(
            redis_url=redis.url, token=TOKEN, threads=1, grpc_port=unused_port(), http_port=unused_port()
        )
        base, headers = f"http://127.0.0.1:{settings.http_port}", AUTHORIZED
        with (
            started(COMMAND, settings.to_environment()) as process,
            httpx.Client(base_url=base, headers=headers, timeout=SLOW_SECONDS) as web,
            grpc.insecure_channel(f"127.0.0.1:{settings.grpc_port}") as channel,
        ):
            wait_until(lambda: is_ready(web), process)
            yield Running(process, settings, web, channel)


def is_ready(web: httpx.Client) -> bool:
    try:
        return web.get("/readyz").status_code == 200
    except httpx.TransportError:  # not listening yet
        return False


def test_operators_see_health_metrics_and_the_interface(verifier: Running) -> None:
    assert verifier.web.get("/healthz").text == "ok"
    verifier.web.post("/v1/verify", json=GRADE)
    assert 'cepo_verdicts_total{outcome="correct"}' in verifier.web.get("/metrics").text
    assert "/v1/verify" in verifier.web.get("/openapi.json").json()["paths"]


def test_rest_judges_one_row_or_many(verifier: Running) -> None:
    one = verifier.web.post("/v1/verify", json=GRADE)
    assert one.json() == {
        "outcome": "correct",
        "reward": 1.0,
        "accuracy": 1.0,
        "extracted": "x+x",
        "normalised": "x+x",
        "reason": "equals 2x",
    }
    many = verifier.web.post("/v1/verify", json=[GRADE, {"response": "hm", "answer": "3", "kind": "math"}])
    assert [row["outcome"] for row in many.json()] == ["correct", "unparsed"]


def test_rest_compares_by_kind(verifier: Running) -> None:
    rows = [{"response": "\\boxed{3, 2, 1}", "answer": "1, 2, 3", "kind": kind} for kind in ("set", "tuple")] + [
        {"response": "\\boxed{library}", "answer": "B", "question": "Where?\nA. bank\nB. library"}
    ]
    found = [row["outcome"] for row in verifier.web.post("/v1/verify", json=rows).json()]
    assert found == ["correct", "wrong", "correct"]


@pytest.mark.parametrize(
    ("body", "status", "says"),
    [
        ('{"response": "x"}', 422, "answer"),
        ('{"response": "x", "answer": ""}', 422, "reference answer ''"),
        ('[{"response": "x", "answer": "1"}, {"response": "x", "answer": ""}]', 422, "1: reference answer ''"),
        ('{"response": "x", "answer": "3", "kind": "telepathy"}', 422, "telepathy"),
        ('{"response": "x", "answer": "3", "extra": 1}', 422, "extra"),
        ("[" + ",".join(['{"response":"","answer":"3"}'] * 5000) + "]", 422, "at most 4096"),
        ("nonsense", 422, "JSON"),
        ('{"response": "' + "9" * 2**24 + '", "answer": "3"}', 413, "longer than"),
    ],
    ids=["missing", "reference", "row", "kind", "unknown field", "too many", "no json", "too long"],
)
def test_rest_refuses_what_it_cannot_judge(verifier: Running, body: str, status: int, says: str) -> None:
    reply = verifier.web.post("/v1/verify", content=body, headers={"content-type": "application/json"})
    assert reply.status_code == status
    assert says in reply.text


def test_grpc_judges_a_group(verifier: Running) -> None:
    group = make_group(["\\boxed{7}", "\\boxed{8}"])
    stub = services_pb2_grpc.VerifierServiceStub(verifier.channel)
    scored = from_proto(ScoredGroup, stub.Verify(to_proto(group), metadata=call_metadata(TOKEN)))
    assert [verdict.outcome for verdict in scored.verdicts] == [Outcome.CORRECT, Outcome.WRONG]
    assert scored.rollout == group


def test_grpc_compares_by_kind(verifier: Running) -> None:
    task = make_task(reference_answer="100", answer_kind="number tolerance=1%", samples=2)
    group = make_group(["\\boxed{100.9}", "\\boxed{102}"], task)
    stub = services_pb2_grpc.VerifierServiceStub(verifier.channel)
    scored = from_proto(ScoredGroup, stub.Verify(to_proto(group), metadata=call_metadata(TOKEN)))
    assert [verdict.outcome for verdict in scored.verdicts] == [Outcome.CORRECT, Outcome.WRONG]


def test_grpc_refuses_an_unknown_kind(verifier: Running) -> None:
    group = make_group(task=make_task(answer_kind="telepathy"))
    with pytest.raises(grpc.RpcError) as caught:
        services_pb2_grpc.VerifierServiceStub(verifier.channel).Verify(to_proto(group), metadata=call_metadata(TOKEN))
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "telepathy" in str(caught.value.details())


def test_grpc_refuses_a_group_without_reference(verifier: Running) -> None:
    group = make_group(task=make_task(reference_answer=""))
    with pytest.raises(grpc.RpcError) as caught:
        services_pb2_grpc.VerifierServiceStub(verifier.channel).Verify(to_proto(group), metadata=call_metadata(TOKEN))
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "reference answer ''" in str(caught.value.details())


def test_grpc_health_and_reflection(verifier: Running) -> None:
    assert verifier.health().status == verifier.health("").status == health_pb2.HealthCheckResponse.SERVING
    address = f"127.0.0.1:{verifier.settings.grpc_port}"
    with grpc.insecure_channel(address) as channel:
        authorized = grpc.intercept_channel(channel, _Authorization())
        services = set(ProtoReflectionDescriptorDatabase(authorized).get_services())
    assert {SERVICE, "grpc.health.v1.Health"} <= services


class _Authorization(grpc.StreamStreamClientInterceptor):
    def intercept_stream_stream(self, continuation: Any, client_call_details: Any, request_iterator: Any) -> Any:
        return continuation(client_call_details._replace(metadata=call_metadata(TOKEN)), request_iterator)


@pytest.mark.parametrize("headers", [{}, {"Authorization": "Bearer wrong"}, {"Authorization": TOKEN}])
def test_rest_needs_the_token_except_for_probes(verifier: Running, headers: dict[str, str]) -> None:
    with httpx.Client(base_url=verifier.web.base_url, headers=headers) as stranger:
        assert stranger.post("/v1/verify", json=GRADE).status_code == 401
        assert stranger.get("/metrics").status_code == 401
        assert stranger.get("/healthz").status_code == stranger.get("/readyz").status_code == 200


@pytest.mark.parametrize("token", ["", "wrong"])
def test_grpc_needs_the_token(verifier: Running, token: str) -> None:
    stub = services_pb2_grpc.VerifierServiceStub(verifier.channel)
    with pytest.raises(grpc.RpcError) as caught:
        stub.Verify(to_proto(make_group()), metadata=call_metadata(token))
    assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED


async def test_groups_pass_from_the_verify_stream_to_the_teach_stream(verifier: Running) -> None:
    bus = RedisBus(verifier.settings.redis_url)
    await bus.publish("verify", [make_group(["\\boxed{7}", "\\boxed{x}"], make_task(index=i)) for i in range(5)])
    found: list[ScoredGroup] = []
    while len(found) < 5:
        for item in await bus.receive("teach", "test", 5, 1.0):
            assert isinstance(item.message, ScoredGroup)
            found.append(item.message)
            await bus.complete(item, "nowhere", None)
    assert sorted(group.task.index for group in found) == [0, 1, 2, 3, 4]
    assert all([verdict.reward for verdict in group.verdicts] == [1.0, 0.0] for group in found)
    await bus.close()


@pytest.mark.parametrize("taken", ["grpc_port", "http_port"])
def test_a_taken_port_is_one_line_and_exit_2(verifier: Running, taken: str) -> None:
    port = getattr(verifier.settings, taken)
    settings = Settings(redis_url=verifier.settings.redis_url, threads=1).model_copy(update={taken: port})
    assert_refused(settings, f"127.0.0.1:{port}", f"CEPO_{taken.upper()}")


def test_an_absent_redis_is_one_line_and_exit_2(free_port: Callable[[], int]) -> None:
    port = free_port()
    assert_refused(Settings(redis_url=f"redis://127.0.0.1:{port}/0"), f"127.0.0.1:{port}", "CEPO_REDIS_URL")


def assert_refused(settings: Settings, *says: str) -> None:
    with started(COMMAND, settings.to_environment()) as process:
        said, _ = process.communicate()
    assert process.returncode == 2, said
    (line,) = said.splitlines()
    assert all(part in line for part in says), line


def test_sigterm_drains_and_ends(verifier: Running) -> None:
    """Last: it ends the verifier of this file."""
    pid = verifier.process.pid
    code, said = verifier.stop()
    assert code == 0, said
    assert "Traceback" not in said
    assert not Path(f"/proc/{pid}").exists()
