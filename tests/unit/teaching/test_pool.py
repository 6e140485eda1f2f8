"""The mean last hidden state of each response: measured with the right policy, and exact on the tiny model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from cepo.messages.groups import BASE_POLICY, Ask, ContextName, PolicyRef, Want, Weights
from cepo.service import adapters
from cepo.teaching.handler import Pair, make_handler
from cepo.testing import ToyScorer
from services.trainer.learning.batch import pack
from tests.helpers.factories import POLICY, make_proof, make_scored, make_task
from tests.helpers.scorers import MODEL, RENDERER, make_scorer, random_adapter

torch.set_num_threads(1)
HIDDEN = Ask(context=ContextName.PLAIN, want=Want.HIDDEN, weights=Weights.POLICY)
PAIRS = [Pair((5, 9, 11), (30, 31, 32, 33)), Pair((7,), (40,)), Pair((8, 3), ()), Pair((5, 9, 11), (30, 8))]
pytestmark = pytest.mark.asyncio(loop_scope="module")


async def test_every_response_is_pooled_under_the_policy_that_sampled_it() -> None:
    group = make_scored([1.0, 0.0, 1.0], make_task(samples=3, asks=(HIDDEN,), policy=POLICY))
    found = await make_handler(ToyScorer(), RENDERER, 200)(group)
    prompt_ids = tuple(group.rollout.prompt_token_ids)
    pairs = [Pair(prompt_ids, tuple(completion.token_ids)) for completion in group.rollout.completions]
    wanted = (await ToyScorer().pool(pairs, POLICY)).values
    assert len(set(wanted)) == 2  # the first and the third response are equal
    assert [row.pooled for row in found.evidence[0].rows] == wanted
    assert found.proofs == (make_proof(POLICY),)
    batch = pack([found])
    assert batch.evidence[HIDDEN].pooled_BD is not None
    assert batch.evidence[HIDDEN].pooled_BD.tolist() == [list(row) for row in wanted]
    assert batch.evidence[HIDDEN].applicable_B.all()


async def test_a_group_that_was_not_measured_is_not_applicable() -> None:
    group = make_scored([1.0, 0.0], make_task(asks=(HIDDEN,)))
    found = await make_handler(ToyScorer(), RENDERER, 200)(group)
    skipped = found.model_copy(
        update={"evidence": (), "scored": make_scored([1.0, 1.0], make_task(index=1, asks=(HIDDEN,)))}
    )
    measured = pack([found, skipped]).evidence[HIDDEN]
    assert measured.applicable_B.tolist() == [True, True, False, False]
    assert measured.pooled_BD is not None
    assert not measured.pooled_BD[2:].any()


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> tuple[PolicyRef, dict[str, bytes]]:
    return random_adapter(tmp_path_factory.mktemp("peft"), 1)


@torch.no_grad()
def plain_mean(model: Any, pair: Pair) -> list[float]:
    """Returns the mean of the states that predict the response tokens, by one unpadded forward; 0 without tokens."""
    ids = torch.tensor([[*pair.context_ids, *pair.response_ids]])
    hidden_SD = model(input_ids=ids, output_hidden_states=True).hidden_states[-1][0]
    start = len(pair.context_ids)
    states = [hidden_SD[start + t - 1].tolist() for t in range(len(pair.response_ids))]
    return [sum(column) / len(states) for column in zip(*states, strict=True)] or [0.0] * hidden_SD.shape[1]


async def test_pooled_states_are_the_exact_mean_over_the_response_under_every_policy(
    tmp_path: Path, published: tuple[PolicyRef, dict[str, bytes]]
) -> None:
    policy, files = published
    base = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32).eval()
    wanted = {BASE_POLICY: [plain_mean(base, pair) for pair in PAIRS]}
    adapters.write(tmp_path / "stock", files)
    stock = PeftModel.from_pretrained(base, tmp_path / "stock").eval()
    wanted[policy] = [plain_mean(stock, pair) for pair in PAIRS]
    assert max(abs(a - b) for a, b in zip(wanted[policy][0], wanted[BASE_POLICY][0], strict=True)) > 0.01
    scorer = make_scorer(tmp_path / "cache", dict([published]))
    for asked in (policy, BASE_POLICY, policy):
        for found, expected in zip((await scorer.pool(PAIRS, asked)).values, wanted[asked], strict=True):
            assert found == pytest.approx(expected, abs=1e-4)
    assert len((await scorer.pool(PAIRS, policy)).values[2]) == 128
    assert not any((await scorer.pool(PAIRS, policy)).values[2])


async def test_an_empty_response_alone_and_no_response_at_all(
    tmp_path: Path, published: tuple[PolicyRef, dict[str, bytes]]
) -> None:
    scorer = make_scorer(tmp_path, dict([published]))
    assert (await scorer.pool([Pair((8, 3), ())], BASE_POLICY)).values == [(0.0,) * 128]
    assert (await scorer.pool([], BASE_POLICY)).values == []


async def test_pooled_states_depend_on_neither_company_nor_order(
    tmp_path: Path, published: tuple[PolicyRef, dict[str, bytes]]
) -> None:
    scorer = make_scorer(tmp_path, dict([published]))
    together = (await scorer.pool(PAIRS, BASE_POLICY)).values
    backwards = (await scorer.pool(PAIRS[::-1], BASE_POLICY)).values
    for i, pair in enumerate(PAIRS):
        assert (await scorer.pool([pair], BASE_POLICY)).values[0] == pytest.approx(together[i], abs=1e-4)
        assert backwards[-1 - i] == pytest.approx(together[i], abs=1e-4)
