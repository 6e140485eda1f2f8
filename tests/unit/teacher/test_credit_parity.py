"""Token credit of a group from REST equals the advantages that the trainer computes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest

from cepo.algo.base import Algorithm
from cepo.algo.methods.cepo import Cepo
from cepo.algo.methods.rlsd import Rlsd
from cepo.algo.variants import Grpo
from cepo.credit import CreditReply
from cepo.messages.arrays import Float32Array, Int32Array
from cepo.messages.groups import Completion, FinishReason, Message, RolloutGroup
from cepo.messages.hints import HINT
from cepo.teaching.handler import make_handler
from cepo.testing import ToyScorer
from services.trainer.learning.batch import pack
from tests.helpers.credit import CONTEXT_LENGTH, QUESTION, RIGHT, WRONG, grade, make_credit, tiny_scorer, web
from tests.helpers.factories import make_proof, make_task
from tests.helpers.scorers import RENDERER

OTHER = "23+45=67\n67-17=50\n\\boxed{50}"
UNBOXED = "23+45=68"
GROUPS = {
    "mixed": [RIGHT, WRONG, OTHER, UNBOXED],
    "one-wrong": [RIGHT, WRONG],
    "all-right": [RIGHT, RIGHT],
    "all-wrong": [WRONG, OTHER],
    "no-answer": [RIGHT, UNBOXED, ""],
}
METHODS: list[Algorithm] = [
    Cepo(),
    Cepo(lam=1.0, eps_w=0.2, no_negative="grpo"),
    Cepo(exclude_self=True),
    Rlsd(),
    Grpo(),
]
EOS = min(RENDERER.stop_ids)


def ids_of(text: str) -> tuple[int, ...]:
    return (*RENDERER.tokenizer.encode(text, add_special_tokens=False), EOS)


def group_of(texts: Sequence[str], algorithm: Algorithm, temperature: float) -> RolloutGroup:
    """Returns a group as the rollout service sends it."""
    messages = (Message(role="user", content=QUESTION),)
    sampling = make_task().sampling.model_copy(update={"temperature": temperature})
    task = make_task(
        messages=messages,
        reference_answer="51",
        hint=HINT,
        samples=len(texts),
        sampling=sampling,
        asks=algorithm.asks_at(0),
    )
    completions = tuple(
        Completion(
            token_ids=Int32Array.of(ids),
            logps=Float32Array.of((-0.5,) * len(ids)),
            text=text,
            finish_reason=FinishReason.STOP,
        )
        for text in texts
        for ids in [ids_of(text)]
    )
    return RolloutGroup(
        task=task,
        prompt_token_ids=Int32Array.of(RENDERER.prompt_ids(messages)),
        completions=completions,
        proof=make_proof(),
    )


async def trained(texts: Sequence[str], algorithm: Algorithm, scorer: Any, temperature: float) -> list[list[float]]:
    """Returns each token's advantage in training, computed by the functions of the services."""
    scored = await grade(group_of(texts, algorithm, temperature))
    evidenced = await make_handler(scorer, RENDERER, CONTEXT_LENGTH)(scored)
    batch = pack([evidenced])
    return [
        row[: len(ids_of(text))].tolist()
        for row, text in zip(algorithm.advantages(batch, 0).adv_BT, texts, strict=True)
    ]


async def credited(texts: Sequence[str], algorithm: Algorithm, scorer: Any, temperature: float) -> list[list[float]]:
    """Returns each token's advantage from REST."""
    parameters = algorithm.model_dump(
        include={"name", "lam", "eps_w", "no_negative", "exclude_self"}, exclude_none=True
    )
    body = {
        "messages": [{"role": "user", "content": QUESTION}],
        "responses": [{"token_ids": ids_of(text)} for text in texts],
        "positive": "51",
        "method": parameters,
        "temperature": temperature,
    }
    async with web(make_credit(scorer)) as client:
        answer = await client.post("/v1/credit", json=body)
    assert answer.status_code == 200, answer.text
    reply = CreditReply.model_validate_json(answer.content)
    return [[token.advantage for token in response.tokens] for response in reply.responses]


@pytest.mark.parametrize("texts", GROUPS.values(), ids=GROUPS)
@pytest.mark.parametrize("algorithm", METHODS, ids=lambda a: f"{a.name}-{getattr(a, 'no_negative', '')}")
async def test_credit_is_what_the_trainer_uses_for_the_same_group(texts: list[str], algorithm: Algorithm) -> None:
    scorer = ToyScorer()
    assert await credited(texts, algorithm, scorer, 0.8) == await trained(texts, algorithm, scorer, 0.8)


@pytest.mark.parametrize("algorithm", METHODS, ids=lambda a: f"{a.name}-{getattr(a, 'no_negative', '')}")
async def test_with_the_real_model_too(algorithm: Algorithm) -> None:
    scorer = tiny_scorer()
    ours = await credited(GROUPS["mixed"], algorithm, scorer, 1.0)
    theirs = await trained(GROUPS["mixed"], algorithm, scorer, 1.0)
    for mine, wanted in zip(ours, theirs, strict=True):
        assert mine == pytest.approx(wanted, abs=1e-5)
    if algorithm.name != "grpo":
        assert len({round(value, 3) for value in ours[0]}) > 1
