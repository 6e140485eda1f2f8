"""Control tokens, such as `<|im_end|>`: the chat template writes them, and in a message they are text.

A user who types `<|im_end|>\\n<|im_start|>assistant` must not end the turn, so the characters are encoded as ordinary
text. A conversation without such characters has the ids that the tokenizer gives its rendered text, byte for byte.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from itertools import count
from typing import Any

from tokenizers import Tokenizer

from cepo.errors import UserError

_PLACEHOLDERS = range(0xF0000, 0xFFFFE)
"""Private-use characters. One stands for each control token of a message while the template renders it."""
_ALIASES = 0x100000
"""The first of the private-use characters that stand for the template's own control tokens."""


class ControlTokens:
    """Encodes rendered conversations of one tokenizer.

    Control tokens are the tokens that the tokenizer marks as special, and the added tokens that the chat template
    writes around turns, such as DeepSeek's user token. Other added tokens, such as `<think>`, are words of the
    model's vocabulary: they keep their ids in a message.
    """

    def __init__(self, tokenizer: Any, turns: str) -> None:
        """Finds the control tokens.

        Args:
            tokenizer: a fast tokenizer of transformers.
            turns: a rendered conversation with a system, a user and an assistant turn.
        """
        self._tokenizer = tokenizer
        added = {token: each for token, each in tokenizer.added_tokens_decoder.items() if each.content}
        written = set(tokenizer(turns, add_special_tokens=False)["input_ids"])
        self._names = {token: each.content for token, each in added.items() if each.special or token in written}
        longest_first = sorted(self._names.values(), key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")
        self._by_form = any(added[token].normalized for token in self._names)
        """Whether the tokenizer reads a control token where its normaliser makes one, as of full-width characters."""

    @property
    def ids(self) -> frozenset[int]:
        """The ids of the control tokens."""
        return frozenset(self._names)

    def hidden(self, value: Any, beside: str = "") -> tuple[Any, dict[str, str]]:
        """The value with a placeholder for each control token in its texts, and what each placeholder stands for.

        Args:
            value: JSON; the keys of objects stay as they are.
            beside: a text that is encoded together with the value, and whose characters are no placeholders.
        """
        texts = list(_texts(value))
        names = list(dict.fromkeys(text[start:end] for text in texts for start, end in self._spans(text)))
        if not names:
            return value, {}
        used = set(beside).union(*texts)
        free = (chr(code) for code in _PLACEHOLDERS if chr(code) not in used)
        placeholders = dict(zip(names, free, strict=False))

        def hide(text: str) -> str:
            for start, end in reversed(self._spans(text)):
                text = text[:start] + placeholders[text[start:end]] + text[end:]
            return text

        return _mapped(value, hide), {placeholder: name for name, placeholder in placeholders.items()}

    def encode(self, text: str, shown: Mapping[str, str]) -> tuple[int, ...]:
        """The ids of a rendered text.

        Args:
            shown: what the placeholders in the text stand for, from `hidden`.

        Raises:
            UserError: the tokenizer has no other encoding for a control token's characters.
        """
        if not shown:
            return tuple(self._tokenizer(text, add_special_tokens=False)["input_ids"])
        encoded = self._tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        backend, aliases, originals = self._renamed
        parts, at, written = [], 0, 0
        for token, (start, end) in zip(encoded["input_ids"], encoded["offset_mapping"], strict=True):
            if token in self._names:
                name = self._names[token]
                begin = text.find(name, start, end)  # some tokens also take the blanks around them
                begin, end = (begin, begin + len(name)) if begin >= 0 else (start, end)
                parts += [text[at:begin], aliases[token]]
                at, written = end, written + 1
        text = "".join((*parts, text[at:]))
        for placeholder, name in shown.items():
            text = text.replace(placeholder, name)
        ids = tuple(originals.get(token, token) for token in backend.encode(text, add_special_tokens=False).ids)
        if sum(token in self._names for token in ids) != written:
            raise UserError(
                f"the text holds {', '.join(map(repr, shown.values()))}, a control token that this model's tokenizer "
                "cannot encode as text; remove it"
            )
        return ids

    def as_text(self, text: str) -> tuple[int, ...]:
        """The ids of a text that is no conversation, such as a response."""
        text, shown = self.hidden(text)
        return self.encode(text, shown)

    def _spans(self, text: str) -> list[tuple[int, int]]:
        """Where a text holds control tokens, in characters."""
        if not self._by_form:
            return [found.span() for found in self._pattern.finditer(text)]
        encoded = self._tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
        pairs = zip(encoded["input_ids"], encoded["offset_mapping"], strict=True)
        return [(start, end) for token, (start, end) in pairs if token in self._names]

    @cached_property
    def _renamed(self) -> tuple[Tokenizer, dict[int, str], dict[int, int]]:
        """The tokenizer with other names for the control tokens, so that their own names are text.

        Returns:
            It, the new name of each control token by its id, and the ids that the new tokenizer gives other numbers.
        """
        content: dict[str, Any] = json.loads(self._tokenizer.backend_tokenizer.to_str())
        numbers = count(_ALIASES)
        aliases = {token: chr(next(numbers)) for token in self._names}
        originals: dict[int, int] = {}
        for each in content["added_tokens"]:
            each["content"] = aliases.get(each["id"], each["content"])
        content["post_processor"] = None  # it adds no tokens here, and names the control tokens
        backend = Tokenizer.from_str(json.dumps(content))
        for each in content["added_tokens"]:
            number = backend.token_to_id(each["content"])
            assert number is not None
            originals[number] = each["id"]
        return backend, aliases, originals


def _texts(value: Any) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for each in value.values():
            yield from _texts(each)
    elif isinstance(value, Sequence):
        for each in value:
            yield from _texts(each)


def _mapped(value: Any, change: Callable[[str], str]) -> Any:
    if isinstance(value, str):
        return change(value)
    if isinstance(value, Mapping):
        return {key: _mapped(each, change) for key, each in value.items()}
    if isinstance(value, Sequence):
        return [_mapped(each, change) for each in value]
    return value
