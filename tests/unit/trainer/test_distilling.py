"""Distillation updates of the tiny model, against full softmaxes and for every split into micro-batches."""

from __future__ import annotations

from array import array
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM

import cepo.tiny
from cepo.algo.batch import TrainBatch
from cepo.algo.methods.hdpo import Hdpo
from cepo.errors import UserError
from cepo.messages.groups import BASE_POLICY, Ask, Evidence, EvidencedGroup, FollowUp, Message, Origin, PolicyRef
from cepo.net.settings import Settings
from cepo.prompts.renderer import Renderer
from cepo.service.adapters import AdapterCache
from cepo.teaching.engine import TransformersScorer
from cepo.teaching.handler import Pair
from services.trainer.learning.batch import pack
from services.trainer.learning.learner import Learner
from tests.helpers.factories import make_config, make_ragged, make_row, make_top

torch.set_num_threads(1)
OPSD = 'algorithm={name="opsd", positive="answer", top=4, remainder="tail", weight=50.0}'
HDPO = 'algorithm={name="hdpo", positive="answer", top=4, weight=50.0}'
UNCLIPPED = "optim.max_grad_norm=1e9"
LENGTHS = [(3, 9, 0, 5), (12, 1, 7, 2)]


def measured(group: EvidencedGroup, ask: Ask, seed: int) -> EvidencedGroup:
    """The group with random distributions for an ask."""
    random, rows = torch.Generator().manual_seed(seed), []
    for completion in group.scored.rollout.completions:
        logits_TV = torch.randn(len(completion.token_ids), 512, generator=random) * 3
        top = logits_TV.log_softmax(-1).topk(ask.top)
        fields = make_top(top.indices.tolist(), top.values.tolist())
        rows.append(make_row(completion, ask).model_copy(update=fields))
    return group.model_copy(update={"evidence": (Evidence(ask=ask, rows=tuple(rows)),)})


def opsd_batch() -> TrainBatch:
    ask = make_config(OPSD).algorithm.asks[0]
    return pack([measured(group, ask, i) for i, group in enumerate(make_ragged(LENGTHS, asks=()))])


def hdpo_batch() -> TrainBatch:
    """Two prompts, and demonstrations for one of them, of which every other is correct."""
    first, second, shown = make_ragged([*LENGTHS, (6, 8, 2, 3)], asks=())
    hinted = (Message(role="user", content="3 + 4 = ? It is 7."),)
    task = shown.task.model_copy(update={"origin": Origin(kind=FollowUp.DEMONSTRATION, index=0), "messages": hinted})
    rollout = shown.scored.rollout.model_copy(update={"task": task})
    shown = shown.model_copy(update={"scored": shown.scored.model_copy(update={"rollout": rollout})})
    return pack([first, second, measured(shown, Hdpo(top=4).ask, 7)])


def updated(batch: TrainBatch, *overrides: str) -> tuple[list[Tensor], dict[str, float]]:
    config = make_config(UNCLIPPED, *overrides)
    learner = Learner(config)
    report = learner.update(batch, config.algorithm.advantages(batch, 0).adv_BT, config.algorithm, 0)
    return [parameter.grad for parameter in learner.parameters if parameter.grad is not None], report


@pytest.mark.parametrize(("algorithm", "batch"), [(OPSD, opsd_batch()), (HDPO, hdpo_batch())], ids=["opsd", "hdpo"])
def test_gradient_and_metrics_do_not_depend_on_the_micro_batches(algorithm: str, batch: TrainBatch) -> None:
    whole, report = updated(batch, algorithm, "optim.tokens_per_microbatch=100000")
    assert max(float(gradient.abs().max()) for gradient in whole) > 1e-3
    for tokens in (1, 40):
        split, other = updated(batch, algorithm, f"optim.tokens_per_microbatch={tokens}")
        for gradient, expected in zip(split, whole, strict=True):
            torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-5)
        for key, value in report.items():
            assert "second" in key or other[key] == pytest.approx(value, rel=1e-4, abs=1e-5), key


def test_metrics_of_demonstrations_are_means_over_their_own_tokens() -> None:
    _, report = updated(hdpo_batch(), HDPO)
    assert report["distill/teacher_mass"] + report["distill/tail_mass"] == pytest.approx(1.0, abs=1e-5)
    assert report["tokens/trained"] == 39 + 8 + 3  # the wrong demonstrations skip the model


def test_the_loss_is_that_of_whole_softmaxes() -> None:
    batch, config = opsd_batch(), make_config(OPSD)
    learner, evidence = Learner(config), batch.evidence[config.algorithm.asks[0]]
    total, tokens = 0.0, 0
    for row, (prompt, response) in enumerate(zip(batch.prompt_ids, batch.response_ids, strict=True)):
        with torch.no_grad():
            logits_SV = learner.peft(input_ids=torch.tensor([[*prompt, *response]])).logits[0]
        for t in range(len(response)):
            student_V = logits_SV[len(prompt) + t - 1].double().softmax(-1)
            ids_k = evidence.top_ids_BTk[row, t]
            s, q = student_V[ids_k], evidence.top_logp_BTk[row, t].double().exp()
            s, q = (torch.cat([p, 1 - p.sum(0, keepdim=True)]) for p in (s, q))
            m = (s + q) / 2
            total += float((q * (q / m).log()).sum() + (s * (s / m).log()).sum()) / 2
            tokens += 1
    _, report = updated(batch, OPSD)
    assert report["distill/divergence"] == pytest.approx(total / tokens, rel=1e-4)
    assert report["loss/policy"] == pytest.approx(50 * total / tokens, rel=1e-4)
    assert report["tokens/trained"] == tokens


def test_every_mini_batch_has_its_share_of_the_groups_and_of_the_demonstrations() -> None:
    batch = replace(hdpo_batch(), group_B=torch.tensor([0] * 4 + [1] * 4 + [2] * 2 + [3] * 2))
    still = (HDPO, "optim.lr=1e-12")
    last, _ = updated(batch, *still, "optim.minibatches=2")
    alone, _ = updated(batch.rows([4, 5, 6, 7, 10, 11]), *still)
    for gradient, expected in zip(last, alone, strict=True):
        torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-5)


async def test_the_tokens_the_teacher_service_finds_likeliest_for_the_policy_are_the_students_own(
    tmp_path: Path,
) -> None:
    async def fetch(policy: PolicyRef) -> dict[str, bytes]:
        raise AssertionError(policy)

    batch, config = opsd_batch(), make_config(OPSD)
    learner, renderer = Learner(config), Renderer(config.model.path)
    settings = Settings(model=config.model.path, dtype="float32")
    scorer = TransformersScorer(settings, renderer, AdapterCache(tmp_path, fetch, keep=2))
    pairs = [Pair(*pair) for pair in zip(batch.prompt_ids, batch.response_ids, strict=True)]
    tops = (await scorer.likeliest(pairs, 5, 1.0, BASE_POLICY)).values
    for one, pair in zip(tops, pairs, strict=True):
        with torch.no_grad():
            logits_SV = learner.peft(input_ids=torch.tensor([[*pair.context_ids, *pair.response_ids]])).logits[0]
        own_T5 = logits_SV[len(pair.context_ids) - 1 : -1].topk(5).indices
        assert array("i", one.ids).tolist() == own_T5.flatten().tolist()
    scorer.close()


def test_a_trainer_refuses_whole_distributions_of_a_large_vocabulary(tmp_path: Path) -> None:
    config = AutoConfig.from_pretrained(cepo.tiny.path(), vocab_size=4097)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"with a vocabulary of 4097 tokens \(at most 4096 and 268 MB can travel"):
        Learner(make_config('algorithm={name="opsd", positive="answer", support="full"}', f"model.path={tmp_path}"))
