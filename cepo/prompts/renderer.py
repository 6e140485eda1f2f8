"""Renders messages to token ids with the model's own chat template. Only this module computes where a prompt ends.

A response is never tokenised again: a scored sequence is the prompt's ids followed by the sampled ids.
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from cepo.errors import UserError
from cepo.messages.groups import ImageRef, Message, Placement
from cepo.messages.hints import hint_line, with_hint
from cepo.messages.spans import Given, sampled_spans
from cepo.prompts import turns
from cepo.prompts.canary import canary_text
from cepo.prompts.control import ControlTokens
from cepo.prompts.pixels import Pixels
from cepo.prompts.steps import split_steps, step_ends
from cepo.prompts.template import ChatTemplate

CANARY_SPARE = 32
"""Tokens of the canary's text behind those that are used."""


class Renderer:
    """A model's tokenizer with the operations that the services share."""

    def __init__(self, model: str, template: Mapping[str, Any] | None = None) -> None:
        """Loads the tokenizer of a model, given by its Hugging Face name or folder.

        Args:
            template: arguments of the chat template (`data.template`), such as `{"enable_thinking": False}`.

        Raises:
            UserError: the folder or the tokenizer does not exist, the tokenizer has no such chat template, or the
                template reads no such argument.
        """
        from transformers import AutoTokenizer

        if model.startswith((".", "/", "~")) and not Path(model).is_dir():
            raise UserError(f"no model folder {model!r}; give a Hugging Face name or a model folder")
        try:
            self.tokenizer: Any = AutoTokenizer.from_pretrained(model)
        except (OSError, ValueError) as error:
            why = str(error).splitlines()[0].rstrip(" :.")
            raise UserError(
                f"no tokenizer for model {model!r} ({why}); give a Hugging Face name or a model folder"
            ) from error
        if not getattr(self.tokenizer, "is_fast", False):
            raise UserError(f"model {model!r} has no fast tokenizer (tokenizer.json); use a model that has one")
        self._model = model
        self.tokenizer.model_max_length = int(
            1e9
        )  # callers check lengths against the limit they know, with a clear message
        self.template = ChatTemplate(self.tokenizer, model, template or {})

    def with_template(self, arguments: Mapping[str, Any]) -> Renderer:
        """A renderer of the same tokenizer with other arguments of the chat template.

        Raises:
            UserError: the template reads no such argument.
        """
        other = copy.copy(self)
        for name in ("control", "sha256", "turn_end"):  # cached properties that depend on the template
            other.__dict__.pop(name, None)
        other.template = ChatTemplate(self.tokenizer, self._model, arguments)
        return other

    def prompt_ids(self, messages: Sequence[Message], images: Sequence[ImageRef] = ()) -> tuple[int, ...]:
        """Token ids of a conversation, up to and including the start of the assistant's turn.

        Each image takes as many placeholders as it has tokens.

        Raises:
            UserError: the chat template rejects the messages, or an image does not fit the model or its place.
        """
        return self.expanded_ids(self.compact_ids(messages, len(images)), images)

    def compact_ids(self, messages: Sequence[Message], images: int) -> tuple[int, ...]:
        """Token ids of a conversation with one placeholder per image, as vLLM takes them.

        Args:
            images: the number of images; the first `images` <image> marks become placeholders, later marks stay text.

        Raises:
            UserError: the chat template rejects the messages.
        """
        conversation, shown = self.control.hidden(turns.template_turns(messages, images))
        return self.control.encode(self.template.render(*conversation), shown)

    def expanded_ids(self, compact_ids: tuple[int, ...], images: Sequence[ImageRef]) -> tuple[int, ...]:
        """Repeats the placeholder of each image for the tokens of that image.

        Example: `(5, IMG, 6)` and one image of three tokens give `(5, IMG, IMG, IMG, 6)`.

        Raises:
            UserError: an image does not fit the model, or placeholders and images differ in number.
        """
        return self.pixels.expanded(compact_ids, images) if images else compact_ids

    def hinted_ids(
        self,
        messages: Sequence[Message],
        hint: str,
        shown: str | Sequence[int],
        placement: Placement,
        images: Sequence[ImageRef] = (),
    ) -> tuple[int, ...]:
        """Token ids of a conversation with a hint, up to the start of the response.

        Args:
            hint: a template in which {answer} is replaced by `shown`.
            shown: a text, or the token ids of another response. With `Placement.ASSISTANT`, token ids follow the
                generation prompt exactly as they were sampled and the template is not used, as in the reference code.
        """
        if placement is not Placement.ASSISTANT:
            text = shown if isinstance(shown, str) else self.text(shown)
            return self.prompt_ids(with_hint(messages, hint, text, placement), images)
        if isinstance(shown, str):
            shown = self.control.as_text(hint_line(hint, shown))
        return (*self.prompt_ids(messages, images), *shown)

    def mask_images(self, token_ids: Sequence[int]) -> tuple[int, ...]:
        """Replaces image placeholders by the padding token, as the reference code does for the teacher."""
        pad = self.tokenizer.pad_token_id
        return tuple(pad if token == self.pixels.placeholder else token for token in token_ids)

    def response_ids(self, text: str) -> tuple[int, ...]:
        """Token ids of a given response, followed by the tokens with which the chat template ends its turn."""
        return (*self.control.as_text(text), *self.turn_end)

    def given_ids(self, messages: Sequence[Message], reply: Sequence[Message]) -> tuple[int, ...]:
        """Token ids that follow a sampled turn: what the template writes after the turn's end, then `reply`, up to the
        start of the assistant's next turn.

        Example: with the template of Qwen and a reply of one tool message "5", the ids of
        "\\n<|im_start|>user\\n<tool_response>\\n5\\n</tool_response><|im_end|>\\n<|im_start|>assistant\\n".

        Args:
            messages: the conversation up to and including the assistant's message, with its `tool_calls` if the
                template needs them. Its content is not read, as its tokens were sampled.
            reply: tool results, user turns or both.

        Raises:
            UserError: the chat template rejects the messages.
        """
        return turns.given_ids(self, messages, reply)

    def text(self, token_ids: Sequence[int], given: Sequence[Given] = ()) -> str:
        """Decodes a response, without special tokens. A line break stands for the given tokens between two turns."""
        spans = sampled_spans(given, len(token_ids)) or [(0, 0)]
        return "\n".join(
            str(self.tokenizer.decode(token_ids[start:end], skip_special_tokens=True)) for start, end in spans
        )

    def step_ends(self, token_ids: Sequence[int], delimiter: str, given: Sequence[Given] = ()) -> tuple[int, ...]:
        """The number of tokens up to the end of each reasoning step of a response. Given tokens end no step.

        Example: three steps of 4, 2 and 5 tokens give `(4, 6, 11)`.
        """

        def length(count: int) -> int:
            first = [Given(start=span.start, end=min(span.end, count)) for span in given if span.start < count]
            return len(self.text(token_ids[:count], first))

        return step_ends(len(token_ids), length, split_steps(self.text(token_ids, given), delimiter))

    @cached_property
    def stop_ids(self) -> frozenset[int]:
        """Token ids that end a response: the tokenizer's, those of generation_config.json, and the turn's end.

        Raises:
            UserError: there are none.
        """
        ids = {*self._configured_ends, *self.turn_end[-1:]}
        if not ids:
            raise UserError(
                f"model {self._model!r} has no end-of-sequence token: its tokenizer names none, generation_config.json "
                "has no eos_token_id, and its chat template does not end a turn; set eos_token in tokenizer_config.json"
            )
        return frozenset(ids)

    @cached_property
    def _configured_ends(self) -> tuple[int, ...]:
        """The end-of-sequence ids of the tokenizer and of generation_config.json, or config.json without that file."""
        from transformers import GenerationConfig, PretrainedConfig

        try:
            configured = GenerationConfig.from_pretrained(self._model).eos_token_id
        except (OSError, ValueError):
            try:
                configured = PretrainedConfig.get_config_dict(self._model)[0].get("eos_token_id")
            except (OSError, ValueError):  # a folder with a tokenizer alone
                configured = None
        ids = [self.tokenizer.eos_token_id, *(configured if isinstance(configured, list) else [configured])]
        return tuple(dict.fromkeys(token for token in ids if token is not None))

    @cached_property
    def turn_end(self) -> tuple[int, ...]:
        """The tokens that end an assistant's turn, up to the first control token of the template.

        Example: a template that ends turns with "<|im_end|>" and a line break gives the id of "<|im_end|>" alone, as
        sampling stops there. A template that does not end turns gives the tokenizer's end-of-sequence token.
        """
        ids = self.control.encode(self.template.turn_end, {})
        ends = self.control.ids | set(self._configured_ends)
        for at, token in enumerate(ids):
            if token in ends:
                return ids[: at + 1]
        return self._configured_ends[:1]

    @cached_property
    def control(self) -> ControlTokens:
        """The control tokens; characters of a message that look like one are encoded as text."""
        return ControlTokens(self.tokenizer, self.template.probe)

    @cached_property
    def is_vision_language(self) -> bool:
        """Whether the model is a vision-language model."""
        from transformers import AutoConfig

        return hasattr(AutoConfig.from_pretrained(self._model), "vision_config")

    @cached_property
    def pixels(self) -> Pixels:
        """The model's image processor.

        Raises:
            UserError: the model takes no images.
        """
        return Pixels(self._model)

    def canary_ids(self, length: int) -> tuple[int, ...]:
        """The first `length` tokens of a fixed text; their log-probs show which weights an engine uses, and how."""
        sentences, ids = 1 + length // 8, tuple[int, ...]()
        while len(ids) < length + CANARY_SPARE:  # the end of a text may merge otherwise than its middle
            ids = tuple(self.tokenizer.encode(canary_text(sentences), add_special_tokens=False))
            sentences *= 2
        return ids[:length]

    @cached_property
    def sha256(self) -> str:
        """Digest of the vocabulary, merges and chat template, and of the template's arguments if there are any."""
        content = self.tokenizer.backend_tokenizer.to_str() + self.template.text
        if self.template.arguments:
            content += json.dumps(self.template.arguments, sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()


def require_model(path: str) -> None:
    """Checks that an absolute path is a model folder; a Hugging Face name passes.

    Raises:
        UserError: the folder or its config.json does not exist.
    """
    if path.startswith("/") and not (Path(path) / "config.json").is_file():
        raise UserError(f"model.path={path}: no config.json there; give a Hugging Face name or a model folder")
