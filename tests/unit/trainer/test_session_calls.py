"""The gRPC calls with which a rollout service asks how to sample a group and brings it."""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from cepo.errors import PolicyError, Unreachable, UserError
from cepo.messages.groups import BASE_POLICY, SessionTerms
from cepo.messages.wire import from_proto
from cepo.net.settings import Settings
from cepo.pb.cepo.v1 import services_pb2, services_pb2_grpc
from cepo.service.fetching import ask_trainer
from services.rollout.sessions.rest import trainer_sessions
from services.trainer.outside.calls import SessionCalls
from services.trainer.outside.intake import Intake
from tests.unit.trainer.test_outside import Outside, make_body


@contextlib.asynccontextmanager
async def serving(intake: Intake | None) -> AsyncIterator[Settings]:
    """The calls on a port of their own, and the settings of a service that makes them."""
    servicer, calls, server = services_pb2_grpc.TrainerServiceServicer(), SessionCalls(intake), grpc.aio.server()
    servicer.Terms, servicer.TakeGroup = calls.terms, calls.take
    services_pb2_grpc.add_TrainerServiceServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield Settings(trainer_address=f"127.0.0.1:{port}")
    finally:
        await server.stop(0)


async def test_the_terms_are_those_of_the_next_group_and_a_group_is_taken_as_over_rest(tmp_path: Path) -> None:
    outside = Outside(tmp_path / "run", "sampling.temperature=0.5", "sampling.samples=3")
    async with serving(outside.intake) as settings:
        with pytest.raises(Unreachable, match=r"127\.0\.0\.1:.*UNAVAILABLE: the run has not started"):
            await ask_trainer(settings, "Terms", services_pb2.TermsRequest())
        async with outside.training():
            terms = from_proto(SessionTerms, await ask_trainer(settings, "Terms", services_pb2.TermsRequest()))
            assert (terms.policy, terms.samples, terms.sampling.temperature) == (BASE_POLICY, 3, 0.5)
            sent = services_pb2.OutsideGroup(json=json.dumps(make_body()))
            place = json.loads((await ask_trainer(settings, "TakeGroup", sent)).json)
            assert (await outside.send(make_body())).json() == place
            refused: list[tuple[dict[str, Any], type[Exception], str]] = [
                ({"id": "a b"}, UserError, "id"),
                ({"id": "x", "policy_version": 1}, PolicyError, "version 1 is not one that step 0"),
            ]
            for changes, error, says in refused:
                body = services_pb2.OutsideGroup(json=json.dumps(make_body(**changes)))
                with pytest.raises(error, match=says):
                    await ask_trainer(settings, "TakeGroup", body)
            outside.drain.set()


async def test_a_run_that_samples_its_own_responses_takes_no_session() -> None:
    async with serving(None) as settings:
        with pytest.raises(PolicyError, match=r'sessions need a run with data\.source="groups"'):
            async with trainer_sessions(settings).turn("a", "g", ()):
                pass
