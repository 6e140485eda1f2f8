"""Records the chat completions of sessions from vLLM's chat handler.

Written against vLLM 0.32, whose replies have token ids and log-probs if the request asks for them. A turn of a session
is sampled with the policy and the sampling parameters of the run, whatever the request says, because its log-probs are
trained on. Without this module agents cannot be trained through chat completions.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable
from http import HTTPStatus
from typing import Any

from fastapi import Request

from cepo.errors import CepoError, PolicyError, Unreachable, UserError
from cepo.messages.groups import PolicyRef, Sampling
from services.rollout.models import NEWEST
from services.rollout.sessions.book import Sessions
from services.rollout.sessions.rest import messages_of
from services.rollout.sessions.session import Turn

SESSION, GROUP = "x-cepo-session", "x-cepo-group"
_TAKEN = frozenset((
    "messages", "model", "max_tokens", "max_completion_tokens", "temperature", "top_p", "top_k", "presence_penalty",
    "seed", "stop", "tools", "tool_choice", "parallel_tool_calls", "user", "metadata", "store", "chat_template_kwargs",
    "logprobs", "top_logprobs", "return_token_ids",
))  # fmt: skip
"""Fields of a request that a session takes; others may change the distribution that is sampled from."""
_STATUS = {UserError: HTTPStatus.BAD_REQUEST, PolicyError: HTTPStatus.CONFLICT, Unreachable: HTTPStatus(503)}


def record_sessions(
    chat: Any, sessions: Sessions, load: Callable[[PolicyRef], Awaitable[Any]], stop_ids: Iterable[int]
) -> None:
    """Makes vLLM's chat handler record the requests that name a session.

    Args:
        load: loads a policy into the engine, unless it is resident.
        stop_ids: the token ids that end a turn in training.
    """
    create, ends = chat.create_chat_completion, sorted(stop_ids)

    async def turn(request: Any, raw_request: Request, name: str) -> Any:
        _check(request)
        messages = messages_of(await raw_request.json())
        group = raw_request.headers.get(GROUP, "")
        async with sessions.turn(name, group, messages) as session:
            terms = session.group.agreed
            if request.model not in (NEWEST, terms.policy.name):
                raise UserError(f'model: group {group} samples with {terms.policy.name}; send model="{NEWEST}"')
            await load(terms.policy)
            request.model = terms.policy.name
            shown = bool(request.logprobs), bool(request.return_token_ids)
            _sample_as(request, terms.sampling, session.room, ends)
            reply = await create(request, raw_request)
            if not hasattr(reply, "choices"):
                return reply  # vLLM's error
            sessions.record(session, _turn_of(reply))
            _hide(reply, *shown)
            return reply

    async def create_chat_completion(request: Any, raw_request: Request | None = None) -> Any:
        name = raw_request.headers.get(SESSION) if raw_request is not None else None
        if raw_request is None or name is None:
            return await create(request, raw_request)
        try:
            return await turn(request, raw_request, name)
        except CepoError as error:
            status = _STATUS.get(type(error), HTTPStatus.INTERNAL_SERVER_ERROR)
            return chat.create_error_response(str(error), type(error).__name__, status)

    chat.create_chat_completion = create_chat_completion


def _check(request: Any) -> None:
    """Refuses the fields that a session does not take, unless they have their default."""
    for name in sorted(request.model_fields_set - _TAKEN):
        value = getattr(request, name)
        if value and value != type(request).model_fields[name].default:
            raise UserError(f"{name}: a session does not take this field; leave it out")
    if request.tool_choice not in (None, "none", "auto"):
        raise UserError('tool_choice: a session takes "auto" or "none", as its turns are sampled freely')


def _sample_as(request: Any, sampling: Sampling, room: int, ends: list[int]) -> None:
    """Gives a request the sampling parameters of the run, in place of its own and of the model's defaults."""
    sent = request.model_dump(include={"max_tokens", "max_completion_tokens"})
    request.max_completion_tokens = min([room, *filter(None, sent.values())])
    request.temperature, request.top_p, request.top_k = sampling.temperature, sampling.top_p, sampling.top_k
    request.presence_penalty, request.frequency_penalty = sampling.presence_penalty, 0.0
    request.repetition_penalty, request.min_p = 1.0, 0.0
    request.stop_token_ids = ends
    request.logprobs, request.top_logprobs, request.return_token_ids = True, request.top_logprobs or 0, True


def _turn_of(reply: Any) -> Turn:
    (choice,) = reply.choices
    logps = tuple(token.logprob for token in choice.logprobs.content)
    return Turn(tuple(reply.prompt_token_ids), tuple(choice.token_ids), logps, choice.finish_reason == "length")


def _hide(reply: Any, logprobs: bool, token_ids: bool) -> None:
    """Removes what the client has not asked for."""
    if not token_ids:
        reply.prompt_token_ids = reply.choices[0].token_ids = None
    if not logprobs:
        reply.choices[0].logprobs = None
