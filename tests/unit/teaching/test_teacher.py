"""The teacher's handler on a toy scorer, and its engine on the tiny model against plain forwards."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from cepo.errors import PolicyError, UserError
from cepo.messages.groups import (
    BASE_POLICY,
    Ask,
    ContextName,
    EvidencedGroup,
    EvidenceReason,
    Feedback,
    Message,
    Placement,
    PolicyRef,
    ScoredGroup,
)
from cepo.messages.hints import with_hint
from cepo.net.settings import Settings
from cepo.service import adapters
from cepo.service.adapters import AdapterCache
from cepo.teaching.engine import TransformersScorer
from cepo.teaching.handler import Pair, make_handler
from cepo.testing import ToyScorer
from tests.helpers.factories import POLICY, make_proof, make_scored, make_task, make_verdict, random_ids
from tests.helpers.scorers import MODEL, RENDERER, make_scorer, random_adapter

torch.set_num_threads(1)
LENGTHS = [(5, 9), (30, 1), (12, 0), (1, 17), (22, 40), (5, 3)]
TOLERANCE = 1e-5
ANSWER, REJECTED, PLAIN = Ask(context=ContextName.ANSWER), Ask(context=ContextName.REJECTED), ContextName.PLAIN
pytestmark = pytest.mark.asyncio(loop_scope="module")


async def toy_logps(
    context: Sequence[int], response: Sequence[int], temperature: float, policy: PolicyRef
) -> tuple[float, ...]:
    """Returns the toy scorer's log-probs of one response under one context."""
    scored = await ToyScorer().score([Pair(tuple(context), tuple(response))], temperature, policy)
    return scored.values[0]


def hinted(group: ScoredGroup, answer: str) -> tuple[int, ...]:
    return RENDERER.prompt_ids(with_hint(group.task.messages, group.task.hint, answer))


async def toy_scored(group: ScoredGroup, max_model_len: int = 200) -> EvidencedGroup:
    return await make_handler(ToyScorer(), RENDERER, max_model_len)(group)


async def test_every_ask_is_measured_under_its_own_context() -> None:
    sampling = make_task().sampling.model_copy(update={"temperature": 0.7})
    asks = (ANSWER, REJECTED, Ask(context=PLAIN))
    group = make_scored([1.0, 0.0], make_task(asks=asks, sampling=sampling, teacher=POLICY))
    found = await toy_scored(group)
    contexts = [hinted(group, "7"), hinted(group, "5"), group.rollout.prompt_token_ids]
    for evidence, ask, context in zip(found.evidence, asks, contexts, strict=True):
        assert evidence.ask == ask
        for row, completion in zip(evidence.rows, group.rollout.completions, strict=True):
            assert row.logps == await toy_logps(context, completion.token_ids, 0.7, POLICY)
            assert (row.applicable, row.context, row.reason) == (True, ask.context, EvidenceReason.ASKED)
    assert [[row.answer for row in e.rows] for e in found.evidence] == [["7"] * 2, ["5"] * 2, [""] * 2]
    assert [row.source for row in found.evidence[1].rows] == [1, 1]
    assert found.proofs == (make_proof(POLICY),)


async def test_a_context_without_a_rejected_answer_falls_back_and_says_why() -> None:
    asks = (ANSWER, Ask(context=ContextName.REJECTED, otherwise=PLAIN), REJECTED)
    group = make_scored([1.0, 1.0], make_task(asks=asks))
    found = await toy_scored(group)
    plain = [
        await toy_logps(group.rollout.prompt_token_ids, c.token_ids, 1.0, BASE_POLICY)
        for c in group.rollout.completions
    ]
    assert [row.logps for row in found.evidence[1].rows] == plain
    assert {(row.context, row.reason) for row in found.evidence[1].rows} == {(PLAIN, EvidenceReason.NO_REJECTED)}
    assert [(row.applicable, len(row.logps)) for row in found.evidence[2].rows] == [(False, 0)] * 2


async def test_a_row_that_does_not_apply_keeps_its_own_reason() -> None:
    ask = Ask(context=ContextName.REJECTED, exclude_self=True)
    rows = (await toy_scored(make_scored([1.0, 0.0], make_task(asks=(ask,))))).evidence[0].rows
    assert [(row.applicable, row.reason) for row in rows] == [
        (True, EvidenceReason.ASKED),
        (False, EvidenceReason.ONLY_SELF),
    ]


async def test_no_context_of_a_response_is_scored_twice() -> None:
    scorer = ToyScorer()
    fallback = Ask(context=ContextName.REJECTED, otherwise=ContextName.ANSWER)
    group = make_scored([1.0, 1.0], make_task(asks=(ANSWER, fallback)))
    await make_handler(scorer, RENDERER, 200)(group)
    assert len(scorer.pairs) == len(set(scorer.pairs)) == 2


async def test_a_hint_is_as_long_as_its_context_is_longer() -> None:
    asks = (ANSWER, Ask(context=PLAIN))
    group = make_scored([1.0, 0.0], make_task(asks=asks))
    answer, plain = (await toy_scored(group)).evidence
    assert {row.hint_tokens for row in answer.rows} == {len(hinted(group, "7")) - len(group.rollout.prompt_token_ids)}
    assert {row.hint_tokens for row in plain.rows} == {0}


async def test_a_peer_after_the_generation_prompt_is_its_own_tokens() -> None:
    scorer, ask = ToyScorer(), Ask(context=ContextName.REJECTED, feedback=Feedback.PEER_SUFFIX, tokens=2)
    group = make_scored([1.0, 0.0], make_task(asks=(ask,), placement=Placement.ASSISTANT))
    found = await make_handler(scorer, RENDERER, 200)(group)
    prompt, peer = RENDERER.prompt_ids(group.task.messages), group.rollout.completions[1].token_ids
    assert {pair.context_ids for pair in scorer.pairs} == {(*prompt, *peer[-2:])}
    assert [(row.answer, row.source) for row in found.evidence[0].rows] == [("", 1)] * 2


async def test_a_teacher_stays_resident_while_newer_policies_are_announced(
    tmp_path: Path, published: dict[PolicyRef, dict[str, bytes]]
) -> None:
    fetched: list[PolicyRef] = []

    async def fetch(policy: PolicyRef) -> dict[str, bytes]:
        fetched.append(policy)
        return published[policy]

    settings = Settings(model=MODEL, dtype="float32", max_loras=2)
    scorer = TransformersScorer(settings, RENDERER, AdapterCache(tmp_path, fetch, keep=1))
    teacher, two, three = published
    for policy in (teacher, two, teacher, three, teacher):
        await scorer.load(policy)
    assert fetched == [teacher, two, three]  # evicting the oldest instead would have fetched it twice


async def test_a_policy_that_is_waited_for_holds_up_no_other(
    tmp_path: Path, published: dict[PolicyRef, dict[str, bytes]]
) -> None:
    asked, answered = asyncio.Event(), asyncio.Event()
    absent, here, left = published

    async def fetch(policy: PolicyRef) -> dict[str, bytes]:
        if policy == absent:
            asked.set()
            await answered.wait()
        return published[policy]

    scorer = TransformersScorer(Settings(model=MODEL, dtype="float32"), RENDERER, AdapterCache(tmp_path, fetch, keep=4))
    waits, leaves = asyncio.create_task(scorer.load(absent)), asyncio.create_task(scorer.load(left))
    async with asyncio.timeout(30):
        await asked.wait()
        leaves.cancel()
        assert [(await scorer.load(policy)).policy for policy in (BASE_POLICY, here, left)] == [BASE_POLICY, here, left]
        assert not waits.done()
        answered.set()
        assert (await waits).policy == absent


async def test_a_context_above_the_models_length_is_a_users_mistake() -> None:
    group = make_scored([1.0, 0.0])
    needed = len(hinted(group, "7")) + 4
    await toy_scored(group, needed)
    with pytest.raises(UserError, match=f"exceed the context length {needed - 1} of the teacher"):
        await toy_scored(group, needed - 1)


@pytest.fixture(scope="module")
def base() -> Any:
    return AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32).eval()


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> dict[PolicyRef, dict[str, bytes]]:
    return dict(random_adapter(tmp_path_factory.mktemp("peft"), seed) for seed in (1, 2, 3))


def make_pairs(seed: int = 0) -> list[Pair]:
    rng = random.Random(seed)
    return [Pair(random_ids(rng, context), random_ids(rng, response)) for context, response in LENGTHS]


@torch.no_grad()
def plain_logps(model: Any, pair: Pair, temperature: float = 1.0) -> list[float]:
    """Returns log-probs from one unpadded forward over the whole vocabulary."""
    logits_TV = model(input_ids=torch.tensor([[*pair.context_ids, *pair.response_ids]])).logits[0].float()
    logp_TV = torch.log_softmax(logits_TV / temperature, dim=-1)
    start = len(pair.context_ids)
    return [float(logp_TV[start + t - 1, token]) for t, token in enumerate(pair.response_ids)]


def assert_close(found: Sequence[Sequence[float]], expected: Sequence[Sequence[float]]) -> None:
    assert [len(row) for row in found] == [len(row) for row in expected]
    for row, wanted in zip(found, expected, strict=True):
        assert row == pytest.approx(wanted, abs=TOLERANCE)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
async def test_log_probs_equal_a_plain_forward(tmp_path: Path, base: Any, temperature: float) -> None:
    pairs = make_pairs()
    found = (await make_scorer(tmp_path, {}).score(pairs, temperature, BASE_POLICY)).values
    assert_close(found, [plain_logps(base, pair, temperature) for pair in pairs])


async def test_log_probs_depend_on_neither_company_nor_order(tmp_path: Path) -> None:
    scorer, pairs = make_scorer(tmp_path, {}), make_pairs()
    together = (await scorer.score(pairs, 1.0, BASE_POLICY)).values
    assert_close([(await scorer.score([pair], 1.0, BASE_POLICY)).values[0] for pair in pairs], together)
    assert_close((await scorer.score(pairs[::-1], 1.0, BASE_POLICY)).values, together[::-1])
    assert (await scorer.score([Pair((5, 6), ())], 1.0, BASE_POLICY)).values == [()]
    assert (await scorer.score([], 1.0, BASE_POLICY)).values == []


async def test_each_policy_gives_the_numbers_of_stock_peft_however_they_alternate(
    tmp_path: Path, published: dict[PolicyRef, dict[str, bytes]], base: Any
) -> None:
    scorer, pairs = make_scorer(tmp_path, published), make_pairs()
    expected = {BASE_POLICY: [plain_logps(base, pair) for pair in pairs]}
    for policy, files in published.items():
        adapters.write(tmp_path / "stock" / policy.name, files)
        model = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32)
        stock = PeftModel.from_pretrained(model, tmp_path / "stock" / policy.name).eval()
        expected[policy] = [plain_logps(stock, pair) for pair in pairs]
    one, two, three = published
    assert abs(expected[one][0][0] - expected[BASE_POLICY][0][0]) > 100 * TOLERANCE
    for policy in (one, BASE_POLICY, two, one, BASE_POLICY, three, one, two, BASE_POLICY):  # three evicts one
        assert_close((await scorer.score(pairs, 1.0, policy)).values, expected[policy])
    results = await asyncio.gather(*(scorer.score(pairs, 1.0, policy) for policy in expected))
    for found, wanted in zip(results, expected.values(), strict=True):
        assert_close(found.values, wanted)


async def test_the_proof_counts_the_modules_and_tells_the_weights_apart(
    tmp_path: Path, published: dict[PolicyRef, dict[str, bytes]]
) -> None:
    scorer = make_scorer(tmp_path, published)
    proofs = {policy: await scorer.load(policy) for policy in (BASE_POLICY, *published)}
    assert [proof.bound_modules for proof in proofs.values()] == [0, 8, 8, 8]
    assert len({round(sum(proof.canary_logps), 3) for proof in proofs.values()}) == 4
    fresh = make_scorer(tmp_path / "fresh", published)
    assert [await fresh.load(policy) for policy in reversed(proofs)] == [*reversed(proofs.values())]


async def test_a_damaged_adapter_is_refused_and_the_others_go_on(
    tmp_path: Path, published: dict[PolicyRef, dict[str, bytes]]
) -> None:
    one, two, _ = published
    damaged = {**published, one: {**published[one], adapters.FILES[1]: b"\0" + published[one][adapters.FILES[1]][1:]}}
    scorer, pairs = make_scorer(tmp_path, damaged), make_pairs()
    before = (await scorer.score(pairs, 1.0, BASE_POLICY)).values
    with pytest.raises(PolicyError, match="does not match its sha256"):
        await scorer.score(pairs, 1.0, one)
    assert (await scorer.score(pairs, 1.0, BASE_POLICY)).values == before
    assert (await scorer.score(pairs, 1.0, two)).values != before


async def test_swapping_the_answers_swaps_the_evidence(tmp_path: Path) -> None:
    score = make_handler(make_scorer(tmp_path, {}), RENDERER, 200)
    question = (Message(role="user", content="12 + 30 - 11 = ?"),)
    found = []
    for right, other in (("31", "29"), ("29", "31")):
        task = make_task(messages=question, reference_answer=right, asks=(ANSWER, REJECTED))
        group = make_scored(task=task, verdicts=[make_verdict(1.0, right), make_verdict(0.0, other)])
        found.append([[row.logps for row in evidence.rows] for evidence in (await score(group)).evidence])
    assert found[0] == found[1][::-1]
    assert found[0][0] != found[0][1]
