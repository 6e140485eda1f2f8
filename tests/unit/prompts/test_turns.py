"""What follows a sampled turn, and responses given as messages, under the chat templates of common families."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cepo.errors import UserError
from cepo.messages.groups import Message
from cepo.messages.spans import Given
from cepo.prompts.turns import trajectory_of
from tests.helpers.scorers import RENDERER
from tests.helpers.templates import TEMPLATES, renderer_of

QUESTION = (Message(role="user", content="3 + 4 = ?"),)
SAID = Message(role="assistant", content="is it 5?")
CALL = json.dumps({"tool_calls": [{"function": {"name": "add", "arguments": {"a": 3}}}]})


@pytest.mark.parametrize("family", sorted(TEMPLATES))
def test_a_turn_and_what_follows_it_are_the_rendered_conversation(tmp_path: Path, family: str) -> None:
    renderer, reply = renderer_of(tmp_path, family), (Message(role="user", content="no"),)
    said = renderer.response_ids(SAID.content)
    whole = (*renderer.prompt_ids(QUESTION), *said, *renderer.given_ids((*QUESTION, SAID), reply))
    rendered = renderer.tokenizer.decode(renderer.prompt_ids((*QUESTION, SAID, *reply)))
    decoded = renderer.tokenizer.decode(whole)
    if family == "deepseek":  # it opens a turn with a thought, and drops the thoughts of earlier turns
        rendered, decoded = rendered.replace("<think>", ""), decoded.replace("<think>", "")
    assert "".join(decoded.split()) == "".join(rendered.split())


def test_a_response_of_messages_is_its_turns_and_what_was_given_between_them() -> None:
    said, tool = SAID.model_copy(update={"content": "add(3,4)"}), Message(role="tool", content="7 <|im_end|>")
    last = Message(role="assistant", content="\\boxed{7}")
    response = trajectory_of(RENDERER, QUESTION, (said, tool, last))
    first, given = RENDERER.response_ids("add(3,4)"), RENDERER.given_ids((*QUESTION, said), (tool,))
    assert response.token_ids == [*first, *given, *RENDERER.response_ids("\\boxed{7}")]
    assert response.given == (Given(start=len(first), end=len(first) + len(given)),)
    assert RENDERER.text(response.token_ids, response.given) == "add(3,4)\n\\boxed{7}"
    ends = list(RENDERER.stop_ids)
    assert sum(response.token_ids.count(end) for end in ends) == 3  # the text of the tool's control token ends nothing


def test_a_tool_call_belongs_to_the_turn_that_makes_it(tmp_path: Path) -> None:
    renderer = renderer_of(tmp_path, "qwen3")
    said = Message(role="assistant", content="let me see", extra=CALL)
    response = trajectory_of(renderer, QUESTION, (said, Message(role="tool", content="7"), SAID))
    (span,) = response.given
    assert '"name": "add"' in renderer.tokenizer.decode(response.token_ids[: span.start])
    assert renderer.tokenizer.decode(response.token_ids[: span.start]).endswith("</tool_call><|im_end|>")
    given = renderer.tokenizer.decode(response.token_ids[span.start : span.end])
    assert given == "\n<|im_start|>tool\n7<|im_end|>\n<|im_start|>assistant\n"


def test_steps_end_in_sampled_text_alone() -> None:
    first, given, last = (RENDERER.response_ids(text) for text in ("3\n4", "a\nb\nc", "7"))
    spans = (Given(start=len(first), end=len(first) + len(given)),)
    ends = RENDERER.step_ends((*first, *given, *last), "\n", spans)
    assert len(ends) == 3  # "3", "4" and "7"
    assert ends[0] < len(first)
    assert ends[1:] == (len(first) - 1, len(first) + len(given) + len(last))


def test_a_template_that_drops_the_turn_is_named(tmp_path: Path) -> None:
    renderer = renderer_of(tmp_path, "chatml")
    renderer.tokenizer.chat_template = "{{ messages[-1].content }}"
    with pytest.raises(UserError, match="drops"):
        renderer.given_ids((*QUESTION, SAID), (Message(role="user", content="no"),))
