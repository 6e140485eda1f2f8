"""REST of the rollout service: vLLM's OpenAI-compatible routes on its engine, and the list of the run's policies."""

from __future__ import annotations

import logging

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse

from cepo.messages.groups import BASE_POLICY
from cepo.net.settings import Settings
from services.rollout.engine import GONE, VllmGenerator
from services.rollout.models import NEWEST, Policies, add_models
from services.rollout.sessions.rest import add_sessions, trainer_sessions
from services.rollout.vllm_patches.engine import EngineDeadError
from services.rollout.vllm_patches.openai_routes import add_openai_routes
from services.rollout.vllm_patches.recorded_chat import record_sessions

log = logging.getLogger(__name__)


async def application(generator: VllmGenerator, settings: Settings) -> FastAPI:
    """`/v1/models`, `/v1/completions`, `/v1/chat/completions`, `/tokenize`, `/detokenize`, `/tokenizer_info`, and
    `/v1/sessions`."""
    app, policies = FastAPI(), Policies(generator.resident)
    add_models(app, policies, settings.model, settings.max_model_len)
    names = [BASE_POLICY.name, NEWEST, settings.model]
    await add_openai_routes(app, generator.engine, settings.model, names, policies, generator.renderer)
    sessions = trainer_sessions(settings)
    record_sessions(app.state.openai_serving_chat, sessions, generator.load, generator.renderer.stop_ids)
    add_sessions(app, sessions)

    @app.exception_handler(EngineDeadError)
    async def engine_down(request: Request, error: EngineDeadError) -> JSONResponse:
        log.error(GONE)  # this process exits, and its supervisor starts another one
        body = {"message": "the engine has stopped and is restarted; try again", "type": "ServiceUnavailable"}
        return JSONResponse({"error": body | {"code": 503}}, 503)

    return app
