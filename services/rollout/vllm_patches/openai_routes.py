"""vLLM's OpenAI-compatible routes on an engine that is already running.

Written against vLLM 0.32, whose API server starts an engine of its own and does not export its routes. Without this
module the service has no `/v1/completions`, `/v1/chat/completions`, `/tokenize` or `/detokenize`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

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


async def add_openai_routes(
    app: FastAPI, engine: Any, model: str, served_names: Sequence[str], adapters: Mapping[str, Any]
) -> None:
    """Adds the routes and vLLM's error handlers to an application.

    Args:
        engine: a running AsyncLLMEngine.
        model: Hugging Face name or folder of the base model.
        served_names: names of the base model in requests.
        adapters: LoRARequest by name; looked up in each request, so the mapping may change.
    """
    arguments = make_arg_parser(FlexibleArgumentParser()).parse_args([])
    arguments.model = model
    arguments.served_model_name = list(served_names)
    arguments.enable_tokenizer_info_endpoint = True  # lm-eval then needs no local tokenizer
    await init_app_state(engine, app.state, arguments, await engine.get_supported_tasks())
    app.state.openai_serving_models.lora_requests = adapters
    for routes in (completion, chat, tokenize):
        routes.attach_router(app)
    init_exception_handler(app)

    @app.exception_handler(HTTPException)
    async def refuse(request: Request, error: HTTPException) -> JSONResponse:
        answer: JSONResponse = await http_exception_handler(request, error)  # vLLM registers FastAPI's own
        answer.headers.update(error.headers or {})
        return answer
