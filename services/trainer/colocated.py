"""The teacher's stage inside the trainer: it scores on the learner's base, between the calls of the learner."""

from __future__ import annotations

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from cepo.messages.groups import ImageRef, Stage
from cepo.net.settings import Settings
from cepo.prompts.images import ImageStore
from cepo.prompts.renderer import Renderer
from cepo.run.config import RunConfig
from cepo.run.deployment import SPECS
from cepo.service.adapters import AdapterCache, resident
from cepo.service.bus import Bus
from cepo.service.stage import StageLoop
from cepo.teaching.engine import TransformersScorer
from cepo.teaching.handler import make_handler
from services.trainer.learning.learner import Learner
from services.trainer.publisher import Publisher


@asynccontextmanager
async def teaching(
    config: RunConfig,
    settings: Settings,
    bus: Bus,
    renderer: Renderer,
    store: ImageStore,
    learner: Learner,
    publisher: Publisher,
) -> AsyncIterator[None]:
    """Serves the teacher's stream with the teacher's settings within the context."""
    settings = SPECS["teacher"].settings(config, settings)

    async def read(image: ImageRef) -> bytes:
        return store.read(image)

    root = settings.adapter_cache / f"teacher-{os.getpid()}"
    adapters = AdapterCache(root, publisher.files, keep=settings.max_loras)
    scorer = TransformersScorer(settings, renderer, adapters, read, learner.base)
    loop = StageLoop.of(settings, bus, Stage.TEACH, make_handler(scorer, renderer, scorer.context_length))
    ended = asyncio.Event()
    async with resident(scorer, bus, adapters), asyncio.TaskGroup() as group:
        group.create_task(loop.run(ended))
        try:
            yield
        finally:
            ended.set()
