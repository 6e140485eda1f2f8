"""Prompts and hints, rendered with the tiny model's tokenizer."""

from __future__ import annotations

from pathlib import Path

import pytest

import cepo.tiny
from cepo.errors import UserError
from cepo.messages.groups import Message, Placement
from cepo.messages.hints import HINT, INSTRUCTION, with_hint, with_instruction
from cepo.prompts.renderer import Renderer, require_model

HEADER = "<|im_start|>assistant\n"
QUESTION = "12 + 30 - 11 = ?"
MESSAGES = (
    Message(role="system", content="Be brief."),
    Message(role="user", content="1 + 1 = ?"),
    Message(role="assistant", content="2"),
    Message(role="user", content=f"{QUESTION}\n{INSTRUCTION}"),
)


@pytest.fixture(scope="module")
def renderer() -> Renderer:
    return Renderer(str(cepo.tiny.path()))


def decoded(renderer: Renderer, messages: tuple[Message, ...]) -> str:
    return renderer.tokenizer.decode(renderer.prompt_ids(messages))


def test_the_hint_is_the_last_line_of_the_last_user_turn(renderer: Renderer) -> None:
    hinted = with_hint(MESSAGES, HINT, "31")
    assert hinted[:-1] == MESSAGES[:-1]
    assert hinted[-1].content.split("\n") == [QUESTION, INSTRUCTION, "Here is a sample answer: 31"]
    assert decoded(renderer, hinted).endswith(f"{INSTRUCTION}\nHere is a sample answer: 31<|im_end|>\n{HEADER}")


def test_contexts_differ_in_the_hint_alone(renderer: Renderer) -> None:
    plain, hinted = decoded(renderer, MESSAGES), decoded(renderer, with_hint(MESSAGES, HINT, "31"))
    assert hinted.replace("\nHere is a sample answer: 31", "") == plain
    assert plain.endswith(HEADER)


def test_contexts_share_the_ids_up_to_the_hint(renderer: Renderer) -> None:
    ends = renderer.prompt_ids(with_hint(MESSAGES, HINT, "31")), renderer.prompt_ids(with_hint(MESSAGES, HINT, "900"))
    plain = renderer.prompt_ids(MESSAGES)
    shared = next(i for i, ids in enumerate(zip(plain, *ends, strict=False)) if len(set(ids)) > 1)
    assert INSTRUCTION in renderer.tokenizer.decode(plain[:shared])


@pytest.mark.parametrize("answer", ["31", "-7/3", "\\frac{1}{2}", "{answer}", "42 \u20ac", "x^2 + {}"])
def test_the_answer_is_readable_in_the_context(renderer: Renderer, answer: str) -> None:
    assert f"Here is a sample answer: {answer}<|im_end|>" in decoded(renderer, with_hint(MESSAGES, HINT, answer))


def test_the_hint_goes_into_the_last_user_turn_though_another_follows() -> None:
    followed = (*MESSAGES, Message(role="assistant", content="First"))
    hinted = with_hint(followed, "Hint: {answer}", "31")
    assert hinted[3].content.endswith("\nHint: 31")
    assert (hinted[:3], hinted[4:]) == (followed[:3], followed[4:])


PAPER = "{prompt}.\nHere is a sample answer: {answer}"


def test_a_hint_with_the_prompt_in_it_is_the_whole_turn() -> None:
    hinted = with_hint(MESSAGES, PAPER, "31")
    assert hinted[-1].content == f"{QUESTION}\n{INSTRUCTION}.\nHere is a sample answer: 31"
    assert hinted[:-1] == MESSAGES[:-1]


def test_placeholders_in_a_question_or_an_answer_are_plain_text() -> None:
    turn = (Message(role="user", content="What is {answer} in {prompt}?"),)
    assert with_hint(turn, PAPER, "{prompt}")[0].content == (
        "What is {answer} in {prompt}?.\nHere is a sample answer: {prompt}"
    )
    assert with_instruction("{question}?", "{question} Be brief.") == "{question}? Be brief."


@pytest.mark.parametrize(
    ("instruction", "turn"),
    [("", "1 + 1 = ?"), ("Be brief.", "1 + 1 = ?\nBe brief."), ("{question} Go.", "1 + 1 = ? Go.")],
)
def test_an_instruction_follows_the_question_or_contains_it(instruction: str, turn: str) -> None:
    assert with_instruction("1 + 1 = ?", instruction) == turn


def test_without_a_user_turn_there_is_no_place_for_the_hint() -> None:
    with pytest.raises(UserError, match="no user turn"):
        with_hint(MESSAGES[:1], HINT, "31")


def test_a_prompt_is_the_templates_text_encoded_once(renderer: Renderer) -> None:
    turns = [message.model_dump() for message in MESSAGES]
    text = renderer.tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    assert renderer.prompt_ids(MESSAGES) == tuple(renderer.tokenizer(text)["input_ids"])


def test_prompt_ids_stay_the_same_whatever_is_decoded_in_between(renderer: Renderer) -> None:
    before = renderer.prompt_ids(MESSAGES)
    response = (*renderer.tokenizer("31\n")["input_ids"], *renderer.stop_ids)
    assert renderer.text(response) == "31\n"
    assert renderer.prompt_ids(MESSAGES) == before


def test_the_end_of_a_response_is_the_end_of_its_turn(renderer: Renderer) -> None:
    assert renderer.stop_ids == {renderer.tokenizer.convert_tokens_to_ids("<|im_end|>")}


def test_canary_and_digest_are_the_same_in_every_process_that_loads_the_model(renderer: Renderer) -> None:
    renderer.prompt_ids(MESSAGES)
    other = Renderer(str(cepo.tiny.path()))
    assert (other.canary_ids(40), other.sha256) == (renderer.canary_ids(40), renderer.sha256)
    assert len(other.canary_ids(40)) == 40


def test_another_template_or_another_token_changes_the_digest(renderer: Renderer) -> None:
    changed = Renderer(str(cepo.tiny.path()))
    changed.tokenizer.chat_template += " "
    assert changed.sha256 != renderer.sha256
    added = Renderer(str(cepo.tiny.path()))
    added.tokenizer.add_tokens(["<extra>"])
    assert added.sha256 != renderer.sha256


def test_a_model_without_chat_template_is_refused(tmp_path: Path, renderer: Renderer) -> None:
    bare = Renderer(str(cepo.tiny.path())).tokenizer
    bare.chat_template = None
    bare.save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"has no chat template; use an instruction-tuned model"):
        Renderer(str(tmp_path))


def test_a_folder_that_is_not_there_or_holds_no_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no model folder '.*absent'; give a Hugging Face name or a model folder"):
        Renderer(str(tmp_path / "absent"))
    with pytest.raises(UserError, match="no tokenizer for model"):
        Renderer(str(tmp_path))
    with pytest.raises(UserError, match=r"no config\.json there"):
        require_model(str(tmp_path))
    require_model(str(cepo.tiny.path()))


def test_after_the_generation_prompt_the_hint_is_the_start_of_the_answer(renderer: Renderer) -> None:
    plain = renderer.prompt_ids(MESSAGES)
    hinted = renderer.hinted_ids(MESSAGES, " {answer}", "31", Placement.ASSISTANT)
    assert hinted[: len(plain)] == plain
    assert renderer.text(hinted[len(plain) :]) == " 31"


def test_tokens_of_a_peer_stand_after_the_generation_prompt_as_they_were_sampled(renderer: Renderer) -> None:
    peer = (40, 41, 2, 50)
    hinted = renderer.hinted_ids(MESSAGES, "Before {answer} after", peer, Placement.ASSISTANT)
    assert hinted == (*renderer.prompt_ids(MESSAGES), *peer)
    in_the_question = renderer.hinted_ids(MESSAGES, HINT, peer, Placement.USER)
    assert in_the_question == renderer.hinted_ids(MESSAGES, HINT, renderer.text(peer), Placement.USER)


def test_a_system_hint_ends_the_system_message_or_is_it() -> None:
    question = Message(role="user", content="3 + 4 = ?")
    system = Message(role="system", content="Be brief.")
    first, second = with_hint([system, question], "It is {answer}.", "7", Placement.SYSTEM)
    assert (first.role, first.content, second) == ("system", "Be brief.\nIt is 7.", question)
    made, same = with_hint([question], "It is {answer}.", "7", Placement.SYSTEM)
    assert (made.role, made.content, same) == ("system", "It is 7.", question)
