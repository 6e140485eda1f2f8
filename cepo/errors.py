"""The hierarchy of errors, each of which can be caught by itself or as `CepoError`.

CepoError
├── UserError         bad input: names the key, row or field and the fix; exit 2, HTTP 422, INVALID_ARGUMENT
│   └── StorageError  a file cannot be written, such as on a full disk: the process must exit; exit 2
├── Unreachable       another process does not answer: names the address and how to start it; exit 2
├── EngineDown        the engine of this process has died: the process must exit and be restarted
├── PolicyError       an adapter's bytes or the loaded weights do not match the policy; they are never used
└── WireError         a message cannot be parsed or violates an invariant

Add a type only if some code catches it. Every type also inherits from the matching built-in exception.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any


class CepoError(Exception):
    """The base class of all errors that this project raises on purpose."""


class UserError(CepoError, ValueError):
    """Invalid input. The message names the input and the fix."""


class StorageError(UserError):
    """A file cannot be written. The message names the path and the fix. No fault of a group, so no stage fails it."""


class Unreachable(CepoError, ConnectionError):
    """A required process does not answer."""


class EngineDown(CepoError, RuntimeError):
    """The engine of this process has died. Only a new process can recover."""


class PolicyError(CepoError, RuntimeError):
    """The loaded or received weights are not those of the requested policy."""


class WireError(CepoError, ValueError):
    """The bytes of a message do not decode to a valid message."""


OUR_WORDS = {
    "extra_forbidden": "unknown key",
    "missing": "is missing",
    "model_type": 'write an object, such as {"key": "value"}',
    "model_attributes_type": 'write an object, such as {"key": "value"}',
    "dict_type": 'write an object, such as {"key": "value"}',
    "list_type": "write a list, such as [...]",
    "string_type": "write a text in quotes",
}
"""Messages for pydantic's types of errors, whose own messages speak of Python."""


def first_mistake(errors: Sequence[Any], *, unnamed: str = "body") -> str:
    """The first of pydantic's errors as one line. Example: "responses.0.text: write a text in quotes".

    Args:
        errors: the result of `ValidationError.errors()`; not empty.
        unnamed: the name to use for an error without a field.
    """
    first = errors[0]
    message = OUR_WORDS.get(first["type"]) or str(first["msg"]).removeprefix("Value error, ")
    return f"{'.'.join(map(str, first['loc'])) or unnamed}: {message}"


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """A hint for an unknown word: the nearest known one, or all of them if none is near.

    >>> did_you_mean("positve", ["positive", "negative"]), did_you_mean("x", ["positive", "negative"])
    ('did you mean `positive`?', 'known: negative, positive')
    """
    from difflib import get_close_matches

    words = sorted(known)
    near = get_close_matches(word, words, n=1)
    return f"did you mean `{near[0]}`?" if near else f"known: {', '.join(words)}"
