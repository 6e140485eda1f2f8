"""The model's chat template: which one, its arguments, and whether a rendered conversation holds what was put in."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any

from jinja2 import TemplateError, TemplateSyntaxError, meta
from jinja2.sandbox import ImmutableSandboxedEnvironment

from cepo.errors import UserError

NAME = "chat_template"
"""The argument that chooses one of a tokenizer's named templates, such as "tool_use"."""
DEFAULT = "default"
_GIVEN = (
    "messages",
    "tools",
    "documents",
    "add_generation_prompt",
    "continue_final_message",
    "tokenize",
    "return_dict",
)
"""What the template gets from the conversation, or a parameter of transformers' function that calls it."""
_GENERATION_TAGS = re.compile(r"\{%-?\s*(?:end)?generation\s*-?%\}")
"""Tags of transformers that Jinja does not know."""
_SHOWN_CHARACTERS = 60
_PROBE = ({"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"})
_SYSTEM = {"role": "system", "content": "s"}


class ChatTemplate:
    """Renders conversations with one chat template of a tokenizer."""

    def __init__(self, tokenizer: Any, model: str, arguments: Mapping[str, Any]) -> None:
        """Chooses the template.

        Args:
            model: the model's name, for messages.
            arguments: variables for the template, such as `{"enable_thinking": False}`; "chat_template" names one of
                several templates.

        Raises:
            UserError: there is no such template, or the template reads no such argument.
        """
        self._tokenizer = tokenizer
        self._model = model
        self._name = arguments.get(NAME)
        self.arguments = {name: value for name, value in arguments.items() if name != NAME}
        self._require_read()

    @property
    def is_named(self) -> bool:
        """Whether the arguments choose one of several templates."""
        return self._name is not None

    @property
    def text(self) -> str:
        """The template in Jinja."""
        return _chosen(self._tokenizer.chat_template, self._model, self._name)

    def render(self, turns: Sequence[Mapping[str, Any]], tools: Sequence[Any] = (), *, opened: bool = True) -> str:
        """The text of a conversation.

        Args:
            turns: messages in the format of chat templates.
            tools: the functions that the model may call, as JSON schemas.
            opened: whether the text ends with the start of the assistant's turn.

        Raises:
            UserError: the template rejects the messages, or drops a part of them.
        """
        try:
            return self._whole(turns, turns, tools, opened)
        except UserError:
            parted = [{**turn, "content": _parts(turn["content"])} for turn in turns]
            with contextlib.suppress(UserError):  # some templates read lists of parts alone
                return self._whole(parted, turns, tools, opened)
            raise

    def _whole(
        self, form: Sequence[Mapping[str, Any]], turns: Sequence[Mapping[str, Any]], tools: Sequence[Any], opened: bool
    ) -> str:
        """The text of `form`, the conversation `turns` with contents as texts or as parts, if it holds all of it."""
        text = self._rendered(form, tools, opened)
        if missing := next(_missing(text, turns, tools), None):
            raise UserError(
                f"the model's chat template drops {missing}; leave it out, move it, or use another template"
            )
        return text

    @cached_property
    def probe(self) -> str:
        """A conversation of a system, a user and an assistant turn, for the tokens that the template itself writes."""
        for turns in ((_SYSTEM, *_PROBE), _PROBE, _PROBE[:1]):
            try:
                return self._rendered(turns, (), opened=False)
            except UserError:
                continue
        return ""

    @cached_property
    def turn_end(self) -> str:
        """The text after an assistant's last turn, such as "<|im_end|>" and a line break; empty if there is none."""
        word = "QyzzyxQ"
        turns = (_PROBE[0], {"role": "assistant", "content": word})
        for form in (turns, [{**turn, "content": _parts(turn["content"])} for turn in turns]):
            with contextlib.suppress(UserError):
                text = self._rendered(form, (), opened=False)
                if word in text:
                    return text.rpartition(word)[2]
        return ""

    def _rendered(self, turns: Sequence[Mapping[str, Any]], tools: Sequence[Any], opened: bool) -> str:
        try:
            return str(
                self._tokenizer.apply_chat_template(
                    list(turns),
                    tools=list(tools) or None,
                    chat_template=self.text,
                    add_generation_prompt=opened,
                    tokenize=False,
                    **self.arguments,
                )
            )
        except (TemplateError, TypeError, ValueError, KeyError, IndexError, AttributeError) as error:
            reason = " ".join(str(error).split())
            raise UserError(f"the model's chat template rejects the messages: {reason}") from error

    def _require_read(self) -> None:
        text, model = self.text, self._model
        if not self.arguments:
            return
        if bad := set(self.arguments) & {*_GIVEN}:
            raise UserError(f"data.template.{min(bad)} is given by the conversation; leave it out")
        try:
            tree = ImmutableSandboxedEnvironment(extensions=["jinja2.ext.loopcontrols"]).parse(
                _GENERATION_TAGS.sub("", text)
            )
        except TemplateSyntaxError as error:
            raise UserError(f"the chat template of model {model!r} is not valid: {error}") from error
        known = meta.find_undeclared_variables(tree)
        if unread := sorted(set(self.arguments) - known):
            names = sorted(known - {*_GIVEN, *self._tokenizer.special_tokens_map, "raise_exception", "strftime_now"})
            raise UserError(
                f"data.template.{unread[0]} has no effect: the chat template of model {model!r} reads "
                f"{', '.join(names) or 'no arguments'}"
            )


def _chosen(templates: Any, model: str, name: Any) -> str:
    if not templates:
        raise UserError(f"model {model!r} has no chat template; use an instruction-tuned model or add one")
    if isinstance(templates, str):
        if name not in (None, DEFAULT):
            raise UserError(f"data.template.{NAME}={name!r}: model {model!r} has one chat template; leave the key out")
        return templates
    wanted = DEFAULT if name is None else name
    if not isinstance(wanted, str) or wanted not in templates:
        raise UserError(
            f"data.template.{NAME}: model {model!r} has no chat template {wanted!r}; choose from {', '.join(templates)}"
        )
    return str(templates[wanted])


def _missing(text: str, turns: Sequence[Mapping[str, Any]], tools: Sequence[Any]) -> Iterator[str]:
    """The parts of a conversation that its rendered text does not hold.

    An earlier answer is not looked for: templates leave its reasoning out.
    """
    squeezed = ""
    for turn in turns:
        for part in _parts(turn["content"]) if turn["role"] != "assistant" else ():
            content = part.get("text", "")
            if content in text:
                continue
            squeezed = squeezed or "".join(text.split())
            forms = (content, json.dumps(content, ensure_ascii=False)[1:-1])
            if not any("".join(form.split()) in squeezed for form in forms):
                yield f"the {turn['role']} message {content[:_SHOWN_CHARACTERS]!r}"
        for call in turn.get("tool_calls") or ():
            if (name := _function(call)) not in text:
                yield f"the tool call {name!r}"
    for tool in tools:
        if (name := _function(tool)) not in text:
            yield f"the tool {name!r}"


def _function(tool: Mapping[str, Any]) -> str:
    """The function's name of a tool or a tool call, in OpenAI's format or the function alone."""
    function = tool.get("function")
    return str((function if isinstance(function, Mapping) else tool).get("name", ""))


def _parts(content: Any) -> list[Any]:
    return content if isinstance(content, list) else [{"type": "text", "text": content}]
