"""Turns the prompt of a credit request into token ids, without a hint and with an answer as a hint."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import takewhile

from cepo.credit import CreditRequest, Response
from cepo.errors import UserError
from cepo.messages.groups import Given, ImageRef, Message
from cepo.messages.hints import hinted_turn, with_hint, with_marks
from cepo.prompts.renderer import Renderer
from cepo.prompts.turns import trajectory_of


@dataclass(frozen=True)
class Prompt:
    """The prompt of a request."""

    plain: tuple[int, ...]
    """The ids of x, the prompt without a hint."""
    hinted: Callable[[str], tuple[int, ...]]
    """Returns the ids of (x, r), the prompt with answer r as the last line of its last user turn."""
    messages: tuple[Message, ...]
    """The prompt in the form that the grader takes."""
    images: tuple[ImageRef, ...]
    """The images of every context, in the order of their placeholders."""
    renderer: Renderer
    """Renders the messages of the request, with its arguments of the chat template."""


def prompt_of(request: CreditRequest, images: tuple[ImageRef, ...], renderer: Renderer) -> Prompt:
    """Reads the prompt from `messages`, `prompt` or `prompt_token_ids`.

    A text or ids are the plain context unchanged. If they end as the chat template ends a user turn, the hint goes
    before that ending, so that a templated prompt gives the same contexts as its messages. Otherwise the hint is the
    last line. Control tokens that a text writes out are control tokens; in messages and answers they are text.

    Raises:
        UserError: the messages have no user turn or the template rejects them, an id is outside the vocabulary, or an
            image has no place in the prompt or is not supported by the model.
    """
    _require_supported(images, renderer)
    if request.chat_template_kwargs is not None:
        try:
            renderer = renderer.with_template(request.chat_template_kwargs)
        except UserError as error:
            raise UserError(str(error).replace("data.template", "chat_template_kwargs")) from error
    if request.messages is not None:
        return _of_messages(request, images, renderer)
    if request.prompt is not None:
        text = request.prompt
        plain = token_ids(text, renderer)
    else:
        plain = require_vocabulary(request.prompt_token_ids or (), renderer, "prompt_token_ids")
        text = str(renderer.tokenizer.decode(plain))
    plain = _placed(plain, images, renderer)
    ending = _turn_ending(renderer)
    head, tail = (text.removesuffix(ending), ending) if text.endswith(ending) else (text, "\n")

    def hinted(answer: str) -> tuple[int, ...]:
        (template, hint), shown = renderer.control.hidden((request.template, answer), beside=text)
        return _placed(renderer.control.encode(hinted_turn(head, template, hint) + tail, shown), images, renderer)

    return Prompt(plain, hinted, (Message(role="user", content=text),), images, renderer)


def _of_messages(request: CreditRequest, images: tuple[ImageRef, ...], renderer: Renderer) -> Prompt:
    try:
        messages = tuple(request.messages or ())
        if images or renderer.is_vision_language:
            messages = with_marks(messages, len(images))
        plain = renderer.prompt_ids(messages, images)
        with_hint(messages, request.template, request.positive)
    except UserError as error:
        raise UserError(f"messages: {error}") from error

    def hinted(answer: str) -> tuple[int, ...]:
        return renderer.prompt_ids(with_hint(messages, request.template, answer), images)

    return Prompt(plain, hinted, messages, images, renderer)


def response_of(
    sent: Response, at: int, prompt: Prompt, renderer: Renderer
) -> tuple[tuple[int, ...], tuple[Given, ...]]:
    """Reads a response from its `text`, `token_ids` or `messages`.

    Args:
        at: the index of the response, for messages.

    Returns:
        Its token ids, and those of them that were given to the model.

    Raises:
        UserError: an id is outside the vocabulary, or the template rejects the messages.
    """
    if sent.text is not None:
        return token_ids(sent.text, renderer), ()
    if sent.messages is None:
        ids = require_vocabulary(sent.token_ids or (), renderer, f"responses.{at}.token_ids")
        return ids, tuple(sent.given)
    try:
        trajectory = trajectory_of(prompt.renderer, prompt.messages, sent.messages)
    except UserError as error:
        raise UserError(f"responses.{at}.messages: {error}") from error
    return tuple(trajectory.token_ids), trajectory.given


def _require_supported(images: Sequence[ImageRef], renderer: Renderer) -> None:
    for at, image in enumerate(images):
        if not renderer.is_vision_language:
            raise UserError("images: this teacher's model takes none; leave them out")
        try:
            renderer.pixels.tokens(image)
        except UserError as error:
            raise UserError(f"images.{at}: {error}") from error


def _placed(ids: tuple[int, ...], images: tuple[ImageRef, ...], renderer: Renderer) -> tuple[int, ...]:
    """Expands each image's placeholder to as many as the image has tokens, unless the ids are expanded already."""
    if not images:
        return ids
    pixels = renderer.pixels
    try:
        if ids.count(pixels.placeholder) == sum(map(pixels.tokens, images)):
            compact = pixels.compact(ids, images)
            if pixels.expanded(compact, images) == ids:
                return ids
        return pixels.expanded(ids, images)
    except UserError as error:
        raise UserError(f"images: {error}") from error


def token_ids(text: str, renderer: Renderer) -> tuple[int, ...]:
    """Tokenizes a text without adding tokens; a special token written out in the text becomes that token."""
    return tuple(renderer.tokenizer.encode(text, add_special_tokens=False))


def require_vocabulary(ids: Sequence[int], renderer: Renderer, field: str) -> tuple[int, ...]:
    """Returns the ids as a tuple.

    Raises:
        UserError: an id is outside the vocabulary; the message names the field and the index.
    """
    size = len(renderer.tokenizer)
    for at, token in enumerate(ids):
        if not 0 <= token < size:
            raise UserError(f"{field}.{at}: {token} is outside the vocabulary of {size} tokens")
    return tuple(ids)


def _turn_ending(renderer: Renderer) -> str:
    """Returns the text that the chat template puts between the end of a user turn and the response.

    It is the common suffix of two rendered prompts with different contents, for example "<|im_end|>" and the line
    that opens the assistant's turn.
    """
    first, second = (renderer.prompt_ids([Message(role="user", content=word)]) for word in ("a", "b"))
    shared = takewhile(lambda pair: pair[0] == pair[1], zip(reversed(first), reversed(second), strict=False))
    return str(renderer.tokenizer.decode([token for token, _ in shared][::-1]))
