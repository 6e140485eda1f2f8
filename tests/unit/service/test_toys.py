"""The toy engines of `cepo.testing` implement the protocols, and their methods agree with each other."""

from __future__ import annotations

import doctest
from array import array

import pytest

from cepo.messages.groups import BASE_POLICY, ImageRef, Sampling
from cepo.service.adapters import Engine
from cepo.service.generator import Generator, RolloutPrompt
from cepo.teaching.handler import Pair, Scorer
from cepo.testing import GenerateCall, ToyEngine, ToyGenerator, ToyScorer, toys
from tests.helpers.factories import POLICY

PROMPT = RolloutPrompt(ids=(1, 2), compact_ids=(1, 2), images=())
PAIR = Pair((5, 6), (3, 1, 2))
IMAGE = ImageRef(sha256="ab" * 32, media_type="image/png", width=5, height=3)


def test_the_examples_run() -> None:
    examples = doctest.testmod(toys)
    assert examples.attempted > 10
    assert not examples.failed


def test_they_satisfy_the_protocols_of_the_engines_and_close() -> None:
    toy, toy_generator, toy_scorer = ToyEngine(), ToyGenerator(lambda text: map(ord, text), ["7"]), ToyScorer()
    engine: Engine = toy  # the type checker compares the toys with the protocols
    generator: Generator = toy_generator
    scorer: Scorer = toy_scorer
    for each in (engine, generator, scorer):
        each.close()
    assert toy.closed
    assert toy_generator.closed
    assert toy_scorer.closed


async def test_an_engine_says_what_it_loaded_and_that_it_was_closed() -> None:
    engine = ToyEngine("ab" * 32)
    proof = await engine.load(POLICY)
    assert (proof.policy, proof.tokenizer_sha256, engine.loaded, engine.closed) == (POLICY, "ab" * 32, [POLICY], False)
    engine.close()
    assert engine.closed


async def test_a_generator_records_its_calls_and_ends_or_cuts_its_responses() -> None:
    generator, sampling = ToyGenerator(lambda text: map(ord, text), ["ab", "abc"], stop_ids=[0]), Sampling(max_tokens=3)
    first, second, third = await generator.generate(PROMPT, 3, sampling, 9, POLICY)
    assert generator.calls == [GenerateCall(PROMPT, 3, sampling, 9, POLICY)]
    assert (first.token_ids, first.logps, first.finished) == ((97, 98, 0), (-0.25, -0.5, -0.75), True)
    assert (second.token_ids, second.finished) == ((97, 98, 99), False)
    assert third == first


async def test_a_scorers_methods_agree() -> None:
    scorer = ToyScorer(vocabulary=11)
    (logps,) = (await scorer.score([PAIR], 0.7, POLICY)).values
    (full,) = (await scorer.likeliest([PAIR], 0, 0.7, POLICY)).values
    (top,) = (await scorer.likeliest([PAIR], 2, 0.7, POLICY)).values
    (same,) = (await scorer.gather([PAIR], [top.ids], 0.7, POLICY)).values
    ids, values = array("i", full.ids), array("f", full.logps)
    for t, token in enumerate(PAIR.response_ids):
        row = values[11 * t : 11 * (t + 1)].tolist()
        assert row == sorted(row, reverse=True)
        assert row[ids[11 * t : 11 * (t + 1)].index(token)] == logps[t]
    assert top == same
    assert array("i", top.ids).tolist() == [ids[11 * t + k] for t in range(3) for k in range(2)]
    assert scorer.pairs == [PAIR]


async def test_a_scorers_numbers_depend_on_context_image_policy_and_share_and_survive_the_wire() -> None:
    scorer = ToyScorer(hidden_size=5)
    pairs = [
        PAIR,
        Pair((6, 5), PAIR.response_ids),
        Pair(*_ids(PAIR), images=(IMAGE,)),
        Pair(*_ids(PAIR), base_share=0.5),
    ]
    rows = [*(await scorer.score(pairs, 1.0, POLICY)).values, *(await scorer.score([PAIR], 1.0, BASE_POLICY)).values]
    assert len(set(rows)) == 5
    assert [tuple(array("f", row)) for row in rows] == rows
    assert rows[:4] == (await ToyScorer().score(pairs, 1.0, POLICY)).values
    pooled = (await scorer.pool([*pairs[:3], Pair((5, 6), ())], POLICY)).values
    assert len(set(pooled)) == 4
    assert pooled[3] == (0.0,) * 5


async def test_a_share_of_the_base_of_one_is_the_base() -> None:
    pair = Pair(*_ids(PAIR), base_share=1.0)
    whole, base = await ToyScorer().score([pair], 1.0, POLICY), await ToyScorer().score([PAIR], 1.0, BASE_POLICY)
    assert whole.values[0] == pytest.approx(base.values[0])


def _ids(pair: Pair) -> tuple[tuple[int, ...], tuple[int, ...]]:
    return pair.context_ids, pair.response_ids
