"""A teacher near the base model mixes the logits of the policy and the base model (SDPO, arXiv:2601.20802)."""

from __future__ import annotations

import random
from array import array
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor
from transformers import AutoModelForCausalLM

import cepo.tiny
from cepo.messages.groups import BASE_POLICY, Ask, ContextName, PolicyRef, Want, Weights
from cepo.net.settings import Settings
from cepo.prompts.renderer import Renderer
from cepo.service import adapters
from cepo.service.adapters import AdapterCache
from cepo.teaching.engine import TransformersScorer
from cepo.teaching.handler import Pair, make_handler
from tests.helpers.factories import make_scored, make_task, random_ids

torch.set_num_threads(1)
MODEL = str(cepo.tiny.path())
RENDERER = Renderer(MODEL)
SHARES = (0.0, 0.3, 0.95)
TEMPERATURE = 0.7


class Models:
    """A policy loaded by stock PEFT, and a scorer that serves it."""

    def __init__(self, folder: Path) -> None:
        torch.manual_seed(1)
        model = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32)
        lora = LoraConfig(r=4, target_modules=["q_proj", "down_proj"], init_lora_weights=False)
        self.peft: Any = get_peft_model(model, lora).eval()
        self.peft.save_pretrained(folder / "peft")
        files = adapters.read(folder / "peft")
        self.policy = PolicyRef(version=1, sha256=adapters.digest(files))

        async def fetch(policy: PolicyRef) -> dict[str, bytes]:
            return files

        cache = AdapterCache(folder / "cache", fetch, keep=2)
        self.scorer = TransformersScorer(Settings(model=MODEL, dtype="float32"), RENDERER, cache)

    @torch.no_grad()
    def logp_TV(self, pair: Pair) -> Tensor:
        """Returns the log-probs of the mixed logits, by two full forward passes."""
        ids = torch.tensor([[*pair.context_ids, *pair.response_ids]])
        policy_TV = self.peft(input_ids=ids).logits[0]
        with self.peft.disable_adapter():
            base_TV = self.peft(input_ids=ids).logits[0]
        mixed_TV = (1 - pair.base_share) * policy_TV + pair.base_share * base_TV
        start = len(pair.context_ids) - 1
        return (mixed_TV[start : start + len(pair.response_ids)] / TEMPERATURE).log_softmax(-1)


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Models:
    return Models(tmp_path_factory.mktemp("models"))


def make_pairs(shares: tuple[float, ...] = SHARES) -> list[Pair]:
    rng = random.Random(0)
    lengths = [(5, 9), (3, 0), (12, 4)]
    return [
        Pair(random_ids(rng, context), random_ids(rng, response), (), share)
        for context, response in lengths
        for share in shares
    ]


async def test_log_probs_are_those_of_the_mixed_logits_each_pair_in_its_own_shares(models: Models) -> None:
    pairs = make_pairs()
    found = (await models.scorer.score(pairs, TEMPERATURE, models.policy)).values
    for row, pair in zip(found, pairs, strict=True):
        logp_TV = models.logp_TV(pair)
        expected = [float(logp_TV[t, token]) for t, token in enumerate(pair.response_ids)]
        assert row == pytest.approx(expected, abs=1e-5)
    assert abs(found[0][0] - found[1][0]) > 1e-3


async def test_likeliest_and_given_tokens_are_those_of_the_mixed_logits(models: Models) -> None:
    pairs = make_pairs()
    likely = (await models.scorer.likeliest(pairs, 5, TEMPERATURE, models.policy)).values
    given = (await models.scorer.gather(pairs, [one.ids for one in likely], TEMPERATURE, models.policy)).values
    for one, other, pair in zip(likely, given, pairs, strict=True):
        top = models.logp_TV(pair).topk(5)
        assert array("f", one.logps).tolist() == pytest.approx(top.values.flatten().tolist(), abs=1e-4)
        assert array("f", other.logps).tolist() == pytest.approx(top.values.flatten().tolist(), abs=1e-4)


async def test_the_policy_scores_as_before_once_the_base_was_asked(models: Models) -> None:
    alone = make_pairs((0.0,))
    before = (await models.scorer.score(alone, TEMPERATURE, models.policy)).values
    await models.scorer.score(make_pairs(), TEMPERATURE, models.policy)
    assert (await models.scorer.score(alone, TEMPERATURE, models.policy)).values == before


@pytest.mark.parametrize("want", [Want.LOGPROBS, Want.DISTRIBUTION])
async def test_only_what_the_teacher_measures_is_mixed_and_the_base_is_proven_too(models: Models, want: Want) -> None:
    teacher = Ask(context=ContextName.ANSWER, want=want, top=3 * (want is Want.DISTRIBUTION))
    plain = Ask(context=ContextName.PLAIN, weights=Weights.POLICY)
    task = make_task(asks=(teacher, plain), policy=models.policy, teacher=models.policy)
    handle = make_handler(models.scorer, RENDERER, 200)
    actor = await handle(make_scored([1.0, 0.0], task))
    near = await handle(make_scored([1.0, 0.0], task.model_copy(update={"base_share": 0.5})))
    assert actor.evidence[0].rows[0].logps != near.evidence[0].rows[0].logps
    assert (actor.evidence[0].rows[0].top_logps != near.evidence[0].rows[0].top_logps) is (want is Want.DISTRIBUTION)
    assert actor.evidence[1] == near.evidence[1]
    assert [proof.policy for proof in actor.proofs] == [models.policy]
    assert [proof.policy for proof in near.proofs] == [models.policy, BASE_POLICY]
