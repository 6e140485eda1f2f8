"""Chat templates: what they drop is refused, their arguments, named templates, and how they end a turn."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

import cepo.tiny
from cepo.errors import UserError
from cepo.messages.groups import Message, Placement
from cepo.messages.hints import HINT
from cepo.prompts.renderer import Renderer
from tests.helpers.templates import CHATML, GEMMA, PARTS, QWEN3, TEMPLATES, renderer_of, saved

QUESTION = Message(role="user", content="244 - 5 = ?")
SYSTEM = Message(role="system", content="Be brief.")
NO_SYSTEM = CHATML.replace("for message in messages", "for message in messages if message.role != 'system'")
TOOL = {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}
CALL = {"function": {"name": "add", "arguments": {"a": 1}}}


@pytest.mark.parametrize("template", [NO_SYSTEM, TEMPLATES["phi3"][0]])
def test_a_dropped_system_message_or_hint_is_refused(tmp_path: Path, template: str) -> None:
    renderer = Renderer(saved(tmp_path, template))
    assert renderer.prompt_ids([QUESTION])
    with pytest.raises(UserError, match=r"chat template drops the system message 'Be brief\.'; leave it out, move it"):
        renderer.prompt_ids([SYSTEM, QUESTION])
    with pytest.raises(UserError, match="drops the system message 'Here is a sample answer: 244'"):
        renderer.hinted_ids([QUESTION], HINT, "244", Placement.SYSTEM)


def test_a_dropped_question_is_refused(tmp_path: Path) -> None:
    renderer = Renderer(saved(tmp_path, "{{- '<|im_start|>user<|im_end|>' }}"))
    with pytest.raises(UserError, match=r"drops the user message \'244 - 5 = \?\'"):
        renderer.prompt_ids([QUESTION])


def test_a_template_that_reads_parts_alone_gets_parts(tmp_path: Path) -> None:
    parts, text = Renderer(saved(tmp_path / "a", PARTS)), Renderer(saved(tmp_path / "b", CHATML))
    assert parts.prompt_ids([SYSTEM, QUESTION]) == text.prompt_ids([SYSTEM, QUESTION])
    strict = PARTS.replace("{{- part.text }}", "{{- part['text'] }}").replace("if part.type == 'text'", "")
    assert Renderer(saved(tmp_path / "c", strict)).prompt_ids([QUESTION]) == text.prompt_ids([QUESTION])


def test_a_template_may_trim_a_message_and_leave_out_earlier_reasoning(tmp_path: Path) -> None:
    gemma, qwen = renderer_of(tmp_path / "a", "gemma"), renderer_of(tmp_path / "b", "qwen3")
    assert gemma.prompt_ids([Message(role="user", content=" 2 + 3\n")])
    thought = Message(role="assistant", content="<think>\nsecret\n</think>\n\n2")
    assert "secret" not in qwen.tokenizer.decode(qwen.prompt_ids([QUESTION, thought, QUESTION]))


def test_the_words_of_a_template_that_rejects_are_shown(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="chat template rejects the messages: System role not supported"):
        Renderer(saved(tmp_path, GEMMA)).prompt_ids([SYSTEM, QUESTION])


def test_arguments_reach_the_template_and_the_digest(tmp_path: Path) -> None:
    folder = saved(tmp_path, *TEMPLATES["qwen3"])
    thinks, brief = Renderer(folder), Renderer(folder, {"enable_thinking": False})
    ids = brief.prompt_ids([QUESTION])
    assert brief.tokenizer.decode(ids).endswith("assistant\n<think>\n\n</think>\n\n")
    assert thinks.prompt_ids([QUESTION]) == ids[: len(thinks.prompt_ids([QUESTION]))]
    assert brief.sha256 != thinks.sha256
    same = thinks.with_template({"enable_thinking": False})
    assert (same.prompt_ids([QUESTION]), same.sha256) == (ids, brief.sha256)
    assert thinks.with_template({}).sha256 == thinks.sha256


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (
            {"enable_thnking": False},
            r"data\.template\.enable_thnking has no effect: .* enable_thinking$",
        ),
        ({"messages": []}, r"data\.template\.messages is given by the conversation"),
        ({"chat_template": "rag"}, r"data\.template\.chat_template='rag': model .* has one chat template"),
    ],
)
def test_an_argument_without_effect_is_refused(tmp_path: Path, arguments: dict[str, Any], says: str) -> None:
    folder = saved(tmp_path, QWEN3 + "{% generation %}{% endgeneration %}")
    with pytest.raises(UserError, match=says):
        Renderer(folder, arguments)


def test_named_templates_are_chosen_by_name(tmp_path: Path) -> None:
    other = CHATML.replace("'<|im_start|>'", "'<|im_start|>the '", 1)
    folder = saved(tmp_path, {"default": CHATML, "tool_use": other})
    plain, named = Renderer(folder), Renderer(folder, {"chat_template": "tool_use"})
    assert plain.prompt_ids([QUESTION]) == Renderer(str(cepo.tiny.path())).prompt_ids([QUESTION])
    assert "the user" in named.tokenizer.decode(named.prompt_ids([QUESTION]))
    assert len({plain.sha256, named.sha256}) == 2
    with pytest.raises(UserError, match="has no chat template 'rag'; choose from default, tool_use"):
        Renderer(folder, {"chat_template": "rag"})


def test_tool_calls_and_tools_reach_a_template_that_reads_them_and_are_refused_by_others(tmp_path: Path) -> None:
    call = Message(role="assistant", content="", extra=json.dumps({"tool_calls": [CALL]}))
    result = Message(role="tool", content='{"sum": 1}')
    asked = QUESTION.model_copy(update={"extra": json.dumps({"tools": [TOOL]})})
    renderer = renderer_of(tmp_path / "a", "tools")
    text = renderer.tokenizer.decode(renderer.prompt_ids([asked, call, result, QUESTION]))
    assert '"name": "add", "parameters"' in text
    assert '<tool_call>{"name": "add", "arguments": {"a": 1}}</tool_call>' in text
    assert '<|im_start|>tool\n{"sum": 1}<|im_end|>' in text
    bare = Renderer(saved(tmp_path / "b", CHATML))
    with pytest.raises(UserError, match="drops the tool call 'add'"):
        bare.prompt_ids([QUESTION, call, result, QUESTION])
    with pytest.raises(UserError, match="drops the tool 'add'"):
        bare.prompt_ids([asked])


@pytest.mark.parametrize(
    ("family", "end"),
    [
        ("chatml", "<|im_end|>"),
        ("llama3", "<|eot_id|>"),
        ("gemma", "<end_of_turn>"),
        ("mistral", "</s>"),
        ("phi3", "<|end|>"),
        ("deepseek", "<|end|>"),
    ],
)
def test_a_response_ends_as_the_template_ends_a_turn(tmp_path: Path, family: str, end: str) -> None:
    renderer = renderer_of(tmp_path, family)
    (last,) = renderer.tokenizer.convert_tokens_to_ids([end])
    assert renderer.response_ids("x") == (*renderer.tokenizer.encode("x"), last)
    assert last in renderer.stop_ids


def test_stop_ids_include_those_of_generation_config(tmp_path: Path) -> None:
    folder = saved(tmp_path, CHATML, eos_token="<|endoftext|>")
    assert Renderer(folder).stop_ids == {0, 2}
    (tmp_path / "generation_config.json").write_text(json.dumps({"eos_token_id": [0, 7]}))
    assert Renderer(folder).stop_ids == {0, 2, 7}
    assert Renderer(folder).response_ids("x")[1:] == (2,)


def test_a_model_without_any_end_is_refused(tmp_path: Path) -> None:
    folder = saved(tmp_path, "{{- messages[-1].content }}")
    (tmp_path / "config.json").unlink()
    path = tmp_path / "tokenizer_config.json"
    config = json.loads(path.read_text())
    path.write_text(json.dumps({key: value for key, value in config.items() if key != "eos_token"}))
    renderer = Renderer(folder)
    with pytest.raises(UserError, match="has no end-of-sequence token: its tokenizer names none"):
        _ = renderer.stop_ids


@pytest.mark.parametrize(
    ("extra", "says"),
    [
        ("[]", "must be a JSON object without role and content"),
        ('{"role": "system"}', "must be a JSON object without role and content"),
        ("{", "Expecting property name"),
        ('{"tools": 5}', "tools must be a list of objects"),
        ('{"tool_calls": ["add"]}', "tool_calls must be a list of objects"),
        ('{"name": "\\ud800"}', "surrogates not allowed"),
        ('{"a":' * 100_000, "nested too deeply"),
    ],
)
def test_further_fields_of_a_turn_are_checked(extra: str, says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        Message(role="user", content="1", extra=extra)


def test_a_tool_of_an_unknown_form_does_not_stop_the_rendering(tmp_path: Path) -> None:
    odd = QUESTION.model_copy(update={"extra": json.dumps({"tools": [{"function": "add"}]})})
    assert renderer_of(tmp_path, "tools").prompt_ids([odd])
