"""A request's prompt as token ids, plain and with an answer as a hint."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import takewhile

from cepo.credit import CreditRequest
from cepo.errors import UserError
from cepo.messages.groups import ImageRef, Message
from cepo.messages.hints import with_hint, with_marks
from cepo.prompts.renderer import Renderer


@dataclass(frozen=True)
class Prompt:
    """What responses follow."""

    plain: tuple[int, ...]
    """x: the prompt alone."""
    hinted: Callable[[str], tuple[int, ...]]
    """(x, r): the prompt with an answer as the last line of its last user turn."""
    messages: tuple[Message, ...]
    """The prompt as the grader reads it."""
    images: tuple[ImageRef, ...]
    """Of every context, in the order of their placeholders."""


def prompt_of(request: CreditRequest, images: tuple[ImageRef, ...], renderer: Renderer) -> Prompt:
    """The prompt in whichever form it was sent.

    Text and ids are the plain context as they are. Where they end as the chat template ends a user's turn, the hint
    goes in front of that ending, so a templated prompt gives the contexts that its messages would; elsewhere it is the
    last line.

    Raises:
        UserError: messages without a user turn or that the template rejects, ids outside the vocabulary, or images
            without a place or that the model does not take.
    """
    _require_seen(images, renderer)
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
        line = request.template.replace("{answer}", answer)
        return _placed(token_ids(f"{head}\n{line}{tail}", renderer), images, renderer)

    return Prompt(plain, hinted, (Message(role="user", content=text),), images)


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

    return Prompt(plain, hinted, messages, images)


def _require_seen(images: Sequence[ImageRef], renderer: Renderer) -> None:
    for at, image in enumerate(images):
        if not renderer.is_vision_language:
            raise UserError("images: this teacher's model takes none; leave them out")
        try:
            renderer.pixels.tokens(image)
        except UserError as error:
            raise UserError(f"images.{at}: {error}") from error


def _placed(ids: tuple[int, ...], images: tuple[ImageRef, ...], renderer: Renderer) -> tuple[int, ...]:
    """Ids with as many placeholders as the images have tokens, which may be there already."""
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
    """A text's ids, nothing added; special tokens written out in it are those tokens."""
    return tuple(renderer.tokenizer.encode(text, add_special_tokens=False))


def require_vocabulary(ids: Sequence[int], renderer: Renderer, field: str) -> tuple[int, ...]:
    """The ids.

    Raises:
        UserError: one is no token; names the field and the place.
    """
    size = len(renderer.tokenizer)
    for at, token in enumerate(ids):
        if not 0 <= token < size:
            raise UserError(f"{field}.{at}: {token} is outside the vocabulary of {size} tokens")
    return tuple(ids)


def _turn_ending(renderer: Renderer) -> str:
    """What the chat template puts between a user's last word and the response."""
    one, other = (renderer.prompt_ids([Message(role="user", content=word)]) for word in ("a", "b"))
    shared = takewhile(lambda pair: pair[0] == pair[1], zip(reversed(one), reversed(other), strict=False))
    return str(renderer.tokenizer.decode([token for token, _ in shared][::-1]))
