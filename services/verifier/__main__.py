"""`python -m services.verifier` runs the verifier as a process, configured by CEPO_* variables."""

from __future__ import annotations

import os

import grpc

from cepo.messages.groups import RolloutGroup, Stage
from cepo.net.settings import Settings
from cepo.pb.cepo.v1 import services_pb2_grpc
from cepo.service.bus import RedisBus
from cepo.service.chassis import Service, main, stage_service, unary
from cepo.service.stage import StageLoop
from services.verifier.handler import Verifier
from services.verifier.pool import GraderPool
from services.verifier.rest import application
from services.verifier.scorers import StepScorers


async def build(settings: Settings) -> Service:
    """Builds the service around a pool of graders."""
    bus = await RedisBus.connect(settings)
    functions = tuple(settings.reward_functions.split(",")) if settings.reward_functions else ()
    pool = GraderPool(settings.threads or os.cpu_count() or 1, functions=functions)
    scorers = StepScorers(settings.step_scorers.split(",") if settings.step_scorers else ())
    verifier = Verifier(pool, scorers)

    class VerifierServicer(services_pb2_grpc.VerifierServiceServicer):
        Verify = staticmethod(unary(RolloutGroup, verifier.verify))

    def register(server: grpc.aio.Server) -> None:
        services_pb2_grpc.add_VerifierServiceServicer_to_server(VerifierServicer(), server)

    loop = StageLoop.of(settings, bus, Stage.VERIFY, verifier.verify)
    return stage_service("verifier", "cepo.v1.VerifierService", register, loop, pool, application(pool))


if __name__ == "__main__":
    main("verifier", build)
