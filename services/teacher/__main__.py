"""`python -m services.teacher`: the teacher service, configured by the CEPO_* environment variables."""

from __future__ import annotations

import grpc

from cepo.messages.groups import ScoredGroup, Stage
from cepo.net.settings import Settings
from cepo.pb.cepo.v1 import services_pb2_grpc
from cepo.prompts.renderer import Renderer
from cepo.service.adapters import resident
from cepo.service.bus import RedisBus
from cepo.service.chassis import Service, main, stage_service, unary
from cepo.service.image_cache import trainer_images
from cepo.service.relay import AdapterRelay
from cepo.service.stage import StageLoop
from cepo.teaching.handler import make_handler
from services.teacher.credit import TokenCredit
from services.teacher.grading import remote_verifier
from services.teacher.images import GivenImages
from services.teacher.rest import application


async def build(settings: Settings) -> Service:
    """Builds the service around a transformers model."""
    from cepo.teaching.engine import TransformersScorer  # torch loads only in a process that scores

    bus = await RedisBus.connect(settings)
    renderer = Renderer(settings.model, settings.template)
    relay = AdapterRelay("teacher", settings)
    images = GivenImages(trainer_images(settings).read)
    scorer = TransformersScorer(settings, renderer, relay.cache, images.read)
    handler = make_handler(scorer, renderer, scorer.context_length)
    grader = remote_verifier(settings) if settings.verifier_address else None
    app = application(TokenCredit(scorer, renderer, scorer.context_length, grader, images))

    class TeacherServicer(services_pb2_grpc.TeacherServiceServicer):
        Score = staticmethod(unary(ScoredGroup, handler))

    def register(server: grpc.aio.Server) -> None:
        services_pb2_grpc.add_TeacherServiceServicer_to_server(TeacherServicer(), server)
        relay.register(server)

    loop = StageLoop.of(settings, bus, Stage.TEACH, handler)
    engine = resident(scorer, bus, relay.cache)
    return stage_service("teacher", "cepo.v1.TeacherService", register, loop, engine, app)


if __name__ == "__main__":
    main("teacher", build)
