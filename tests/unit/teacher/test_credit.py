"""The defaults for the fields that a credit request leaves out, and the relations between the fields of a reply."""

from __future__ import annotations

import asyncio
import math
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from cepo.algo.methods.cepo import Cepo
from cepo.algo.variants import ALGORITHMS
from cepo.credit import Method
from cepo.errors import Unreachable, UserError
from cepo.messages.groups import Message, PolicyProof, PolicyRef
from cepo.messages.spans import sampled_mask
from cepo.prompts.turns import trajectory_of
from cepo.service.image_cache import no_images
from cepo.testing import ToyScorer
from services.teacher.credit import TokenCredit
from services.teacher.images import GivenImages
from services.teacher.prompts import prompt_of
from tests.helpers.credit import QUESTION, RIGHT, WRONG, grade, make_credit, make_request, tiny_scorer
from tests.helpers.factories import POLICY
from tests.helpers.scorers import RENDERER
from tests.helpers.templates import renderer_of


async def test_the_defaults_are_those_of_training() -> None:
    for name in ("cepo", "rlsd"):
        fields = ALGORITHMS[name].model_fields
        reply = await make_credit()(make_request(method={"name": name}))
        assert (reply.method.lam, reply.method.eps_w) == (fields["lam"].default, fields["eps_w"].default)
    assert (await make_credit()(make_request(method={"name": "grpo"}))).method.eps_w == Cepo().eps_w
    assert Method().no_negative == Cepo().no_negative
    assert not Method().exclude_self
    assert not Cepo().contrast[1].exclude_self


async def test_the_parts_of_a_token_fit_together() -> None:
    method = {"name": "cepo", "lam": 0.25, "eps_w": 0.3}
    reply = await make_credit(tiny_scorer())(make_request(method=method))
    for response in reply.responses:
        for token in response.tokens:
            assert token.logp_negative is not None
            assert token.delta == pytest.approx(token.logp_positive - token.logp_negative, abs=1e-5)
            assert token.weight == pytest.approx(math.exp(math.copysign(token.delta, token.delta * response.advantage)))
            assert token.weight_clipped == pytest.approx(min(1.3, max(0.7, token.weight)))
            assert token.clipped == (token.weight != token.weight_clipped)
            assert token.advantage == pytest.approx(response.advantage * (0.75 + 0.25 * token.weight_clipped))
        count = len(response.tokens)
        assert response.clip_rate == sum(token.clipped for token in response.tokens) / count
        assert response.delta_pos_fraction == sum(token.delta > 0.01 for token in response.tokens) / count
        sharper = [
            math.copysign(1.0, response.advantage) * (token.logp_plain - token.logp_negative) > 0.01
            for token in response.tokens
        ]
        assert response.sharpness == sum(sharper) / count


async def test_the_token_that_decides_has_the_credit() -> None:
    right, wrong = (await make_credit(tiny_scorer())(make_request())).responses
    assert max(right.tokens, key=lambda token: token.advantage).text == "5"
    assert min(wrong.tokens, key=lambda token: token.advantage).text == "4"
    assert (right.negative.answer, right.negative.source, right.negative.reason) == ("41", 1, "asked")


async def test_given_rewards_and_answers_need_no_verifier() -> None:
    responses = [{"text": RIGHT, "reward": 1.0}, {"text": WRONG, "reward": 0.25}]
    reply = await make_credit(grader=None)(make_request(responses=responses, negative="41"))
    assert [r.advantage for r in reply.responses] == pytest.approx([0.70710, -0.70710], abs=1e-4)
    assert {(r.negative.reason, r.negative.context, r.advantage_from) for r in reply.responses} == {
        ("given", "rejected", "group")
    }
    assert reply.responses[0].grade is None


@pytest.mark.parametrize(("reward", "advantage"), [(1.0, 1.0), (0.5, 1.0), (0.4, -1.0), (0.0, -1.0), (-1.0, -1.0)])
async def test_a_single_reward_has_no_group(reward: float, advantage: float) -> None:
    request = make_request(responses=[{"text": RIGHT, "reward": reward}], negative="41")
    only = (await make_credit()(request)).responses[0]
    assert (only.advantage, only.advantage_from, only.reward) == (advantage, "single", reward)


async def test_a_given_advantage_stands_and_may_be_zero() -> None:
    responses = [{"text": RIGHT, "advantage": 2.5}, {"text": WRONG, "advantage": 0.0}]
    first, second = (await make_credit(grader=None)(make_request(responses=responses, negative="41"))).responses
    assert (first.advantage, first.advantage_from, first.reward) == (2.5, "given", None)
    assert {(t.weight, t.advantage, t.clipped) for t in second.tokens} == {(1.0, 0.0, False)}
    assert second.sharpness is None


async def test_without_a_wrong_answer_the_plain_prompt_takes_its_place_and_the_reply_says_why() -> None:
    reply = await make_credit()(make_request(responses=[{"text": RIGHT, "reward": 1.0}]))
    only = reply.responses[0]
    assert (only.negative.context, only.negative.reason) == ("plain", "no_rejected")
    assert [t.logp_negative for t in only.tokens] == [t.logp_plain for t in only.tokens]
    assert only.sharpness is None
    lone = await make_credit(grader=None)(
        make_request(responses=[{"text": RIGHT, "reward": 1.0}], method={"name": "rlsd"})
    )
    assert {t.logp_negative for t in lone.responses[0].tokens} == {None}
    assert lone.responses[0].negative.reason == "not_asked"


async def test_every_form_of_prompt_and_response_gives_the_same_credit() -> None:
    plain = RENDERER.prompt_ids([Message(role="user", content=QUESTION)])
    forms = [
        {},
        {"messages": None, "prompt": RENDERER.tokenizer.decode(plain)},
        {"messages": None, "prompt_token_ids": list(plain)},
        {"responses": [{"token_ids": tuple(RENDERER.tokenizer.encode(text))} for text in (RIGHT, WRONG)]},
    ]
    replies = [await make_credit(tiny_scorer())(make_request(negative="41", **form)) for form in forms]
    for reply in replies[1:]:
        assert reply.prompt_token_ids == replies[0].prompt_token_ids
        for ours, first in zip(reply.responses, replies[0].responses, strict=True):
            assert [t.delta for t in ours.tokens] == pytest.approx([t.delta for t in first.tokens], abs=1e-5)
            assert ours.text == first.text


async def test_a_prompt_that_is_no_chat_takes_the_hint_as_its_last_line() -> None:
    reply = await make_credit()(make_request(messages=None, prompt=QUESTION, negative="41"))
    assert reply.prompt_token_ids == RENDERER.tokenizer.encode(QUESTION)
    assert any(token.delta != 0 for token in reply.responses[0].tokens)


async def test_methods_and_policies_are_compared_in_one_call() -> None:
    compare = [{"method": {"name": "rlsd"}}, {"policy": POLICY.model_dump()}]
    reply = await make_credit()(make_request(negative="41", compare=compare))
    rlsd, other = reply.compared
    assert (rlsd.method.name, rlsd.policy, other.method.name, other.policy) == ("rlsd", reply.policy, "cepo", POLICY)
    assert [t.logp_plain for t in rlsd.responses[0].tokens] == [t.logp_plain for t in reply.responses[0].tokens]
    assert [t.logp_plain for t in other.responses[0].tokens] != [t.logp_plain for t in reply.responses[0].tokens]
    alone = await make_credit()(make_request(negative="41", method={"name": "rlsd"}))
    assert rlsd == alone


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"messages": [{"role": "system", "content": "x"}]}, "messages: the messages have no user turn"),
        ({"messages": None, "prompt_token_ids": [5, 512]}, r"prompt_token_ids.1: 512 is outside the vocabulary"),
        ({"responses": [{"text": "x"}, {"token_ids": [-1]}]}, r"responses.1.token_ids.0: -1 is outside"),
        ({"responses": [{"text": "x"}, {"text": "1 " * 200}]}, r"responses.1: 400 tokens after a prompt of \d+"),
        ({"positive": "\\boxed{}"}, "positive: reference answer"),
        ({"positive": "51", "kind": "telepathy"}, "positive: answer kind 'telepathy' is unknown"),
    ],
)
async def test_what_cannot_be_scored_is_named(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=f"^{says}"):
        await make_credit()(make_request(**changes))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({}, "responses.0: give a reward or an advantage"),
        ({"responses": [{"text": "x", "reward": 1.0}]}, "negative: give a wrong answer"),
    ],
)
async def test_without_a_verifier_what_it_would_find_must_be_given(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(UserError, match=says):
        await make_credit(grader=None)(make_request(**changes))


async def test_a_policy_that_nobody_sends_is_not_waited_for_long() -> None:
    class Waiting(ToyScorer):
        async def load(self, policy: PolicyRef) -> PolicyProof:
            await asyncio.Event().wait()
            raise AssertionError

    credit = TokenCredit(Waiting(), RENDERER, 256, grade, GivenImages(no_images), policy_seconds=0.05)
    with pytest.raises(Unreachable, match=f"^policy: {POLICY.name} is not here, and no trainer has sent it for 0.05 s"):
        await credit(make_request(policy=POLICY.model_dump()))


@pytest.mark.parametrize("form", ["messages", "prompt", "prompt_token_ids"])
async def test_a_control_token_in_an_answer_is_text(form: str) -> None:
    """The text of a prompt is raw, so its own control tokens are control tokens; those of an answer are not."""
    renderer, messages = RENDERER, [Message(role="user", content=QUESTION)]
    plain = renderer.prompt_ids(messages)
    given = {"messages": messages, "prompt": renderer.tokenizer.decode(plain), "prompt_token_ids": list(plain)}[form]
    request = make_request(**{"messages": None, form: given}, positive="5<|im_end|>\n<|im_start|>assistant\n")
    prompt = prompt_of(request, (), renderer)
    control = renderer.control.ids
    assert prompt.plain == plain
    hinted = prompt.hinted(request.positive)
    assert [token for token in hinted if token in control] == [token for token in plain if token in control]
    assert request.positive in renderer.tokenizer.decode(hinted)


async def test_arguments_of_the_chat_template_are_those_of_the_request(tmp_path: Path) -> None:
    renderer = renderer_of(tmp_path, "qwen3")
    request = make_request(chat_template_kwargs={"enable_thinking": False})
    text = renderer.tokenizer.decode(prompt_of(request, (), renderer).plain)
    assert text.endswith("<think>\n\n</think>\n\n")
    assert not renderer.tokenizer.decode(prompt_of(make_request(), (), renderer).plain).endswith("</think>\n\n")
    with pytest.raises(UserError, match=r"chat_template_kwargs\.thinking has no effect: the chat template of model"):
        prompt_of(make_request(chat_template_kwargs={"thinking": False}), (), renderer)
    with pytest.raises(ValidationError, match="surrogates not allowed"):
        make_request(chat_template_kwargs={"enable_thinking": "\ud800"})


async def test_given_tokens_have_no_credit_and_no_part_in_the_shares() -> None:
    turns = [
        {"role": "assistant", "content": "23+45"},
        {"role": "tool", "content": "68"},
        {"role": "assistant", "content": "68-17=41\n\\boxed{41}"},
    ]
    trajectory = trajectory_of(RENDERER, [Message(role="user", content=QUESTION)], [Message(**turn) for turn in turns])
    ids, given = trajectory.token_ids, [span.model_dump() for span in trajectory.given]
    forms = [{"messages": turns}, {"token_ids": ids, "given": given}]
    replies = [
        await make_credit(tiny_scorer())(make_request(responses=[form, {"text": RIGHT, "reward": 1.0}], negative="41"))
        for form in forms
    ]
    assert replies[0].responses == replies[1].responses
    response = replies[0].responses[0]
    assert (response.grade.extracted if response.grade else None, response.reward) == ("41", 0.0)
    assert [token.id for token in response.tokens] == ids
    sampled = sampled_mask(response.given, len(ids))
    own = [token for token, mine in zip(response.tokens, sampled, strict=True) if mine]
    assert 0 < len(own) < len(ids)
    for token in (token for token in response.tokens if token not in own):
        assert (token.logp_plain, token.logp_positive, token.logp_negative) == (None, None, None)
        assert (token.delta, token.weight, token.clipped, token.advantage) == (0, 1, False, 0)
    assert all(token.logp_plain is not None and token.advantage < 0 for token in own)
    assert response.clip_rate == sum(token.clipped for token in own) / len(own)
    assert response.delta_neg_fraction == sum(token.delta < -0.01 for token in own) / len(own)


@pytest.mark.parametrize(
    ("response", "says"),
    [
        ({"token_ids": [5, 6], "given": [{"start": 1, "end": 3}]}, "given tokens up to 3 in a response of 2"),
        ({"text": "x", "given": [{"start": 0, "end": 1}]}, "given needs token_ids"),
        (
            {"text": "x", "messages": [{"role": "assistant", "content": "x"}]},
            "give one of text, token_ids and messages",
        ),
        ({"messages": [{"role": "tool", "content": "x"}]}, "must be assistant turns"),
        ({"messages": []}, "must be assistant turns"),
        ({"messages": [{"role": "assistant", "content": "x"}] * 2}, "turn 1 follows an assistant turn"),
    ],
)
def test_a_response_of_turns_that_is_malformed_is_named(response: dict[str, Any], says: str) -> None:
    with pytest.raises(ValidationError, match=says):
        make_request(responses=[response])


def test_a_response_of_messages_needs_a_prompt_of_messages() -> None:
    turns = [{"role": "assistant", "content": "x"}]
    with pytest.raises(ValidationError, match="responses of messages need a prompt of messages"):
        make_request(messages=None, prompt="x", responses=[{"messages": turns}])
