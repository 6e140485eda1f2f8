"""Distributions and pooled states: the handler's calls to an engine, and the engine against full softmaxes."""

from __future__ import annotations

from array import array
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from cepo.messages.groups import BASE_POLICY, Ask, ContextName, EvidencedGroup, PolicyRef, Want, Weights
from cepo.messages.hints import with_hint
from cepo.teaching.handler import Likeliest, Pair, make_handler
from cepo.testing import ToyScorer
from tests.helpers.factories import POLICY, make_scored, make_task
from tests.helpers.scorers import MODEL, RENDERER, make_scorer

torch.set_num_threads(1)
VOCABULARY = 512
TOY = ToyScorer()
PAIRS = [
    Pair((5, 6, 7), (40, 41, 42, 43)),
    Pair((9,), ()),
    Pair((300, 2, 8, 11, 4), (77,)),
    Pair((9, 10), (12, 13, 14)),
]
TEACHER = PolicyRef(version=9, sha256="ee" * 32)
pytestmark = pytest.mark.asyncio(loop_scope="module")


def unpacked(found: Likeliest, positions: int) -> tuple[list[list[int]], list[list[float]]]:
    """Returns the ids and the log-probs of each position."""
    ids, logps = array("i", found.ids).tolist(), array("f", found.logps).tolist()
    k = len(ids) // max(1, positions)
    assert len(ids) == len(logps) == k * positions
    return [ids[t * k : (t + 1) * k] for t in range(positions)], [logps[t * k : (t + 1) * k] for t in range(positions)]


async def measured(ask: Ask, **task: Any) -> tuple[EvidencedGroup, Pair, Pair]:
    """Returns the handler's group for one ask, and the first response under the plain and under the answer context."""
    group = make_scored([1.0, 0.0], make_task(asks=(ask,), policy=POLICY, teacher=TEACHER, **task))
    response = tuple(group.rollout.completions[0].token_ids)
    hinted = RENDERER.prompt_ids(with_hint(group.task.messages, group.task.hint, "7"))
    evidenced = await make_handler(TOY, RENDERER, 200)(group)
    return evidenced, Pair(tuple(group.rollout.prompt_token_ids), response), Pair(hinted, response)


async def test_the_teachers_likeliest_tokens_are_those_of_its_own_context() -> None:
    ask = Ask(context=ContextName.ANSWER, want=Want.DISTRIBUTION, top=2)
    found, _, hinted = await measured(ask, sampling=make_task().sampling.model_copy(update={"temperature": 0.5}))
    row = found.evidence[0].rows[0]
    (wanted,) = (await TOY.likeliest([hinted], 2, 0.5, TEACHER)).values
    assert Likeliest(row.top_ids.data, row.top_logps.data) == wanted
    assert len(unpacked(wanted, 3)[0][0]) == 2
    assert [tuple(row.logps)] == (await TOY.score([hinted], 0.5, TEACHER)).values
    assert [proof.policy for proof in found.proofs] == [TEACHER]


async def test_the_students_likeliest_tokens_are_those_of_the_plain_context_gathered_at_the_teacher() -> None:
    ask = Ask(context=ContextName.ANSWER, want=Want.DISTRIBUTION, top=1, support=Weights.POLICY)
    found, plain, hinted = await measured(ask)
    row = found.evidence[0].rows[0]
    (support,) = (await TOY.likeliest([plain], 1, 1.0, POLICY)).values  # under the policy that sampled
    assert row.top_ids.data == support.ids
    (wanted,) = (await TOY.gather([hinted], [support.ids], 1.0, TEACHER)).values
    assert Likeliest(row.top_ids.data, row.top_logps.data) == wanted
    assert [proof.policy for proof in found.proofs] == [TEACHER, POLICY]


async def test_a_response_without_a_context_has_no_distribution_and_no_state() -> None:
    for want in (Want.DISTRIBUTION, Want.HIDDEN):
        found, _, _ = await measured(Ask(context=ContextName.REJECTED, exclude_self=True, want=want, top=1))
        first, second = found.evidence[0].rows
        assert bool(first.top_ids) is (want is Want.DISTRIBUTION)
        assert bool(first.pooled) is (want is Want.HIDDEN)
        empty = (len(second.top_ids), len(second.top_logps), len(second.pooled))
        assert (second.applicable, *empty) == (False, 0, 0, 0)


async def test_pooled_states_are_those_of_the_asked_context() -> None:
    found, plain, _ = await measured(Ask(context=ContextName.PLAIN, want=Want.HIDDEN))
    second = Pair(plain.context_ids, tuple(found.scored.rollout.completions[1].token_ids))
    assert [row.pooled for row in found.evidence[0].rows] == (await TOY.pool([plain, second], TEACHER)).values


@pytest.fixture(scope="module")
def base() -> Any:
    return AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32).eval()


@torch.no_grad()
def plain(model: Any, pair: Pair, temperature: float) -> tuple[Tensor, Tensor]:
    """Returns each response token's log-probs over the vocabulary [T, V] and its hidden state [T, D]."""
    ids = torch.tensor([[*pair.context_ids, *pair.response_ids]])
    found = model(input_ids=ids, output_hidden_states=True)
    at = slice(len(pair.context_ids) - 1, len(pair.context_ids) - 1 + len(pair.response_ids))
    return (found.logits[0, at] / temperature).log_softmax(-1), found.hidden_states[-1][0, at]


@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("k", [1, 5, 0, 10_000])
async def test_the_likeliest_tokens_are_those_of_a_full_softmax(
    tmp_path: Path, base: Any, k: int, temperature: float
) -> None:
    found = (await make_scorer(tmp_path).likeliest(PAIRS, k, temperature, BASE_POLICY)).values
    for one, pair in zip(found, PAIRS, strict=True):
        ids, logps = unpacked(one, len(pair.response_ids))
        full_TV = plain(base, pair, temperature)[0]
        for t, (row, values) in enumerate(zip(ids, logps, strict=True)):
            assert len(row) == len(set(row)) == min(k or VOCABULARY, VOCABULARY)
            assert values == sorted(values, reverse=True)
            assert values == pytest.approx(full_TV[t, row].tolist(), abs=1e-4)
            assert values[0] == pytest.approx(float(full_TV[t].max()), abs=1e-4)
            assert values[-1] >= float(full_TV[t].sort(descending=True).values[len(row) - 1]) - 1e-4


async def test_a_whole_distribution_has_all_the_mass(tmp_path: Path) -> None:
    found = (await make_scorer(tmp_path).likeliest(PAIRS, 0, 1.0, BASE_POLICY)).values
    for one, pair in zip(found, PAIRS, strict=True):
        for values in unpacked(one, len(pair.response_ids))[1]:
            assert float(torch.tensor(values).exp().sum()) == pytest.approx(1.0, abs=1e-5)


async def test_given_tokens_have_the_log_probs_of_a_full_softmax(tmp_path: Path, base: Any) -> None:
    ids = [[[(7 * t + j * 31) % VOCABULARY for j in range(3)] for t in range(len(p.response_ids))] for p in PAIRS]
    sent = [array("i", [x for row in rows for x in row]).tobytes() for rows in ids]
    found = (await make_scorer(tmp_path).gather(PAIRS, sent, 0.7, BASE_POLICY)).values
    for one, rows, pair in zip(found, ids, PAIRS, strict=True):
        got_ids, got_logps = unpacked(one, len(pair.response_ids))
        full_TV = plain(base, pair, 0.7)[0]
        assert got_ids == rows
        for t, row in enumerate(rows):
            assert got_logps[t] == pytest.approx(full_TV[t, row].tolist(), abs=1e-4)


async def test_gathering_at_the_likeliest_tokens_gives_their_log_probs_back(tmp_path: Path) -> None:
    scorer = make_scorer(tmp_path)
    likely = (await scorer.likeliest(PAIRS, 4, 1.0, BASE_POLICY)).values
    found = (await scorer.gather(PAIRS, [one.ids for one in likely], 1.0, BASE_POLICY)).values
    for one, other, pair in zip(found, likely, PAIRS, strict=True):
        assert one.ids == other.ids
        for row, values in zip(*(unpacked(x, len(pair.response_ids))[1] for x in (one, other)), strict=True):
            assert row == pytest.approx(values, abs=1e-5)


async def test_pooled_states_are_means_over_the_response_alone(tmp_path: Path, base: Any) -> None:
    found = (await make_scorer(tmp_path).pool(PAIRS, BASE_POLICY)).values
    for one, pair in zip(found, PAIRS, strict=True):
        states_TD = plain(base, pair, 1.0)[1]
        expected_D = states_TD.mean(0) if pair.response_ids else torch.zeros(len(one))
        assert one == pytest.approx(expected_D.tolist(), abs=1e-4)


async def test_nothing_and_an_empty_response_alone_are_measured_as_such(tmp_path: Path) -> None:
    scorer, empty = make_scorer(tmp_path), [Pair((5, 6), ())]
    assert (await scorer.likeliest(empty, 3, 1.0, BASE_POLICY)).values == [Likeliest(b"", b"")]
    assert (await scorer.gather(empty, [b""], 1.0, BASE_POLICY)).values == [Likeliest(b"", b"")]
    assert (
        (await scorer.likeliest([], 3, 1.0, BASE_POLICY)).values
        == (await scorer.gather([], [], 1.0, BASE_POLICY)).values
        == []
    )
    assert not any((await scorer.pool(empty, BASE_POLICY)).values[0])
