"""REST: vLLM's own OpenAI-compatible routes on the engine that samples the rollouts, with our list of models."""

from __future__ import annotations

import logging

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException
from vllm.entrypoints.launchers.api_server.app_state import init_app_state
from vllm.entrypoints.launchers.cli_args import make_arg_parser
from vllm.entrypoints.openai.chat_completion import api_router as chat
from vllm.entrypoints.openai.completion import api_router as completion
from vllm.entrypoints.serve.exception_handling.handlers.http import http_exception_handler
from vllm.entrypoints.serve.exception_handling.register import init_exception_handler
from vllm.entrypoints.serve.tokenize import api_router as tokenize
from vllm.utils.argparse_utils import FlexibleArgumentParser
from vllm.v1.engine.exceptions import EngineDeadError

from cepo.messages.groups import BASE_POLICY
from cepo.net.settings import Settings
from services.rollout.engine import GONE, VllmGenerator
from services.rollout.models import NEWEST, Policies, add_models

log = logging.getLogger(__name__)


async def application(generator: VllmGenerator, settings: Settings) -> FastAPI:
    """`/v1/models`, `/v1/completions`, `/v1/chat/completions`, `/tokenize`, `/detokenize` and `/tokenizer_info`."""
    app = FastAPI()
    engine, policies = generator.engine, Policies(generator.resident)
    arguments = make_arg_parser(FlexibleArgumentParser()).parse_args([])
    arguments.model = settings.model
    arguments.served_model_name = [BASE_POLICY.name, NEWEST, settings.model]
    arguments.enable_tokenizer_info_endpoint = True  # lm-eval then needs no tokenizer of its own
    await init_app_state(engine, app.state, arguments, await engine.get_supported_tasks())
    app.state.openai_serving_models.lora_requests = policies
    add_models(app, policies, settings.model, settings.max_model_len)
    for routes in (completion, chat, tokenize):
        routes.attach_router(app)
    init_exception_handler(app)

    @app.exception_handler(HTTPException)
    async def refuse(request: Request, error: HTTPException) -> JSONResponse:
        answer: JSONResponse = await http_exception_handler(request, error)  # vLLM's is not for Starlette's own errors
        answer.headers.update(error.headers or {})
        return answer

    @app.exception_handler(EngineDeadError)
    async def engine_down(request: Request, error: EngineDeadError) -> JSONResponse:
        log.error(GONE)  # this process ends with it, and another is started
        body = {"message": "the engine is gone and starts again; try later", "type": "ServiceUnavailable", "code": 503}
        return JSONResponse({"error": body}, 503)

    return app
