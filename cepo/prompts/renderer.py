"""Messages to token ids through the model's own chat template; the one place where the prompt boundary is computed.

A response is never re-tokenised: a scored sequence is the prompt's ids followed by the sampled ids.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from jinja2 import TemplateError

from cepo.errors import UserError
from cepo.messages.groups import ImageRef, Message, Placement
from cepo.messages.hints import MARK, with_hint
from cepo.prompts.pixels import Pixels
from cepo.prompts.steps import split_steps, step_ends

_CANARY_TEXT = "To check the weights we add 12 and 34, write the step 12+34=46, and put 46 within \\boxed{46}."
_CANARY_TOKENS = 16


class Renderer:
    """A tokenizer with the operations that services share."""

    def __init__(self, model: str) -> None:
        """Loads the tokenizer of a Hugging Face name or folder.

        Raises:
            UserError: there is no such folder or tokenizer, or it has no chat template.
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
        self._model = model
        self.tokenizer.model_max_length = int(1e9)  # lengths are checked where a limit is known, with a clear message
        if not self.tokenizer.chat_template:
            raise UserError(f"model {model!r} has no chat template; use an instruction-tuned model or add one")

    def prompt_ids(self, messages: Sequence[Message], images: Sequence[ImageRef] = ()) -> tuple[int, ...]:
        """Token ids of a conversation, up to and with the start of the assistant's turn, images expanded.

        Raises:
            UserError: the template refuses the messages, or an image does not fit the model or its place.
        """
        ids = self.compact_ids(messages, len(images))
        return self.pixels.expanded(ids, images) if images else ids

    def compact_ids(self, messages: Sequence[Message], images: int) -> tuple[int, ...]:
        """The same with one placeholder for each image: the first so many <image> marks."""
        turns = _turns(messages, images)
        try:
            encoded = self.tokenizer.apply_chat_template(turns, add_generation_prompt=True, return_dict=True)
        except TemplateError as error:
            raise UserError(f"the model's chat template refuses the messages: {error}") from error
        return tuple(encoded["input_ids"])

    def hinted_ids(
        self,
        messages: Sequence[Message],
        hint: str,
        shown: str | Sequence[int],
        placement: Placement,
        images: Sequence[ImageRef] = (),
    ) -> tuple[int, ...]:
        """Token ids of a conversation with a hint, up to where the response starts, images expanded.

        Args:
            hint: the template; {answer} is replaced.
            shown: a text, or tokens of another response. After the generation prompt such tokens stand as they were
                sampled, without the template, as in the reference code.
        """
        if placement is not Placement.ASSISTANT:
            text = shown if isinstance(shown, str) else self.text(shown)
            return self.prompt_ids(with_hint(messages, hint, text, placement), images)
        if isinstance(shown, str):
            shown = self.tokenizer.encode(hint.replace("{answer}", shown), add_special_tokens=False)
        return (*self.prompt_ids(messages, images), *shown)

    def blind_ids(self, token_ids: Sequence[int]) -> tuple[int, ...]:
        """A context with padding in the places of its images, as the reference code shows it to the teacher."""
        pad = self.tokenizer.pad_token_id
        return tuple(pad if token == self.pixels.placeholder else token for token in token_ids)

    def response_ids(self, text: str) -> tuple[int, ...]:
        """A given response as the model would have sampled it, with the token that ends it."""
        return (*self.tokenizer.encode(text, add_special_tokens=False), self.tokenizer.eos_token_id)

    def text(self, token_ids: Sequence[int]) -> str:
        """A response as text, without special tokens."""
        return str(self.tokenizer.decode(token_ids, skip_special_tokens=True))

    def step_ends(self, token_ids: Sequence[int], delimiter: str) -> tuple[int, ...]:
        """How many tokens of a response there are up to the end of each of its steps; the last is all of them."""
        ends = split_steps(self.text(token_ids), delimiter)
        return step_ends(len(token_ids), lambda count: len(self.text(token_ids[:count])), ends)

    @property
    def stop_ids(self) -> frozenset[int]:
        """Ids that end a response."""
        return frozenset({self.tokenizer.eos_token_id})

    @cached_property
    def sees(self) -> bool:
        """Whether the model has a vision part."""
        from transformers import AutoConfig

        return hasattr(AutoConfig.from_pretrained(self._model), "vision_config")

    @cached_property
    def pixels(self) -> Pixels:
        """How the model takes images.

        Raises:
            UserError: it takes none.
        """
        return Pixels(self._model)

    @cached_property
    def canary_ids(self) -> tuple[int, ...]:
        """A fixed sequence whose log-prob proves which weights an engine uses."""
        return tuple(self.tokenizer.encode(_CANARY_TEXT, add_special_tokens=False)[:_CANARY_TOKENS])

    @cached_property
    def sha256(self) -> str:
        """Digest of the vocabulary, merges and chat template."""
        content = self.tokenizer.backend_tokenizer.to_str() + self.tokenizer.chat_template
        return hashlib.sha256(content.encode()).hexdigest()


def _turns(messages: Sequence[Message], images: int) -> list[dict[str, Any]]:
    """Messages as chat templates have them; text alone stays a string, since not every template knows parts."""
    turns: list[dict[str, Any]] = []
    for message in messages:
        texts = message.content.split(MARK, 0 if message.role == "system" else images)
        images -= len(texts) - 1
        parts = [part for text in texts for part in ({"type": "image"}, {"type": "text", "text": text})][1:]
        kept = [part for part in parts if part.get("text") != ""]
        turns.append({"role": message.role, "content": kept if len(texts) > 1 else message.content})
    return turns


def require_model(path: str) -> None:
    """Checks that a model folder is one.

    Raises:
        UserError: there is no folder, or no config.json in it.
    """
    if path.startswith("/") and not (Path(path) / "config.json").is_file():
        raise UserError(f"model.path={path}: no config.json there; give a Hugging Face name or a model folder")
