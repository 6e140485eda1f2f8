"""vLLM's OpenAI-compatible routes on an engine that is already running.

Written against vLLM 0.32, whose API server starts an engine of its own and does not export its routes. Without this
module the service has no `/v1/completions`, `/v1/chat/completions`, `/tokenize` or `/detokenize`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
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

from cepo.prompts.control import ControlTokens
from cepo.prompts.renderer import Renderer


async def add_openai_routes(
    app: FastAPI,
    engine: Any,
    model: str,
    served_names: Sequence[str],
    adapters: Mapping[str, Any],
    prompts: Renderer,
) -> None:
    """Adds the routes and vLLM's error handlers to an application.

    Args:
        engine: a running AsyncLLMEngine.
        model: Hugging Face name or folder of the base model.
        served_names: names of the base model in requests.
        adapters: LoRARequest by name; looked up in each request, so the mapping may change.
        prompts: renders the prompts of training; chats get the same arguments of the chat template, and the same ids.
    """
    arguments = make_arg_parser(FlexibleArgumentParser()).parse_args([])
    arguments.model = model
    arguments.served_model_name = list(served_names)
    arguments.enable_tokenizer_info_endpoint = True  # lm-eval then needs no local tokenizer
    arguments.default_chat_template_kwargs = dict(prompts.template.arguments)
    if prompts.template.is_named:
        arguments.chat_template = prompts.template.text
    keep_text(engine.renderer.tokenizer, prompts.control)
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


def keep_text(tokenizer: Any, control: ControlTokens) -> None:
    """Makes a tokenizer of vLLM encode control tokens in chat messages as text, as training does.

    vLLM renders a chat to text and reads the control tokens of its messages as its own. The tokenizer gets a subclass
    of its class, as vLLM's own wrappers do; it returns token ids for such a chat, and for others what it returned
    before.
    """
    kind: Any = tokenizer.__class__

    def apply_chat_template(self: Any, conversation: Any, tools: Any = None, **options: Any) -> Any:
        apply = partial(kind.apply_chat_template, self)
        (hidden, hidden_tools), shown = control.hidden((conversation, tools))
        if not shown:
            return apply(conversation=conversation, tools=tools, **options)
        text = apply(conversation=hidden, tools=hidden_tools, **options | {"tokenize": False})
        return list(control.encode(text, shown))

    tokenizer.__class__ = type(f"Text{kind.__name__}", (kind,), {"apply_chat_template": apply_chat_template})
