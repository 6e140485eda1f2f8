"""Groups of several turns through the teacher and the learner, against a forward pass per sequence.

Shapes: B sequences, T response tokens (padded).
"""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from cepo.algo.batch import TrainBatch
from cepo.messages.arrays import Float32Array, Int32Array
from cepo.messages.groups import EvidencedGroup, ScoredGroup
from cepo.messages.spans import Trajectory, sampled_mask
from cepo.teaching.handler import make_handler
from services.trainer.learning.batch import pack
from services.trainer.learning.learner import Learner
from tests.helpers.factories import make_completion, make_config, make_scored, make_task, random_ids
from tests.helpers.scorers import MODEL, RENDERER, make_scorer
from tests.unit.trainer.test_learner import UNCLIPPED, make_learner, model_of, plain_logps

torch.set_num_threads(1)


def make_turns(seed: int) -> ScoredGroup:
    """A group of three responses of one, two and three turns; the first turn is the same in all."""
    rng = random.Random(seed)
    first = random_ids(rng, 5)
    completions = []
    for turns in (1, 2, 3):
        trajectory = Trajectory()
        for turn in range(turns):
            if turn:
                trajectory.give(random_ids(rng, rng.randint(1, 6)))
            ids = first if turn == 0 else random_ids(rng, rng.randint(1, 7))
            trajectory.sample(ids, [-0.5] * len(ids))
        completions.append(
            make_completion().model_copy(
                update={
                    "token_ids": Int32Array.of(trajectory.token_ids),
                    "logps": Float32Array.of(trajectory.logps),
                    "given": trajectory.given,
                }
            )
        )
    scored = make_scored([1.0, 0.0, 0.0], make_task(index=seed, samples=3))
    rollout = scored.rollout.model_copy(
        update={
            "completions": tuple(completions),
            "prompt_token_ids": Int32Array.of(RENDERER.prompt_ids(scored.task.messages)),
        }
    )
    return scored.model_copy(update={"rollout": rollout})


def masked_logps(model: Any, group: ScoredGroup, row: int, context: tuple[int, ...]) -> Tensor:
    """The log-probs of a response from a forward pass of its own, 0 at given tokens."""
    completion = group.rollout.completions[row]
    ids = tuple(completion.token_ids)
    return plain_logps(model, context, ids, 1.0) * torch.tensor(sampled_mask(completion.given, len(ids)))


async def test_the_teacher_measures_sampled_tokens_after_all_that_was_given(tmp_path: Path) -> None:
    group = make_turns(0)
    evidenced = await make_handler(make_scorer(tmp_path), RENDERER, 256)(group)
    model = AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32)
    hint = group.task.hint.format(answer="7")
    for evidence, answer in zip(evidenced.evidence, (hint, hint.replace("7", "5")), strict=True):
        question = f"{group.task.messages[0].content}\n{answer}"
        context = RENDERER.prompt_ids([group.task.messages[0].model_copy(update={"content": question})])
        for row in range(3):
            with torch.no_grad():
                wanted_T = masked_logps(model, group, row, context)
            torch.testing.assert_close(torch.tensor(evidence.rows[row].logps[:]), wanted_T, rtol=0, atol=1e-4)


def packed(seed: int = 0) -> TrainBatch:
    """Two groups of several turns, without evidence."""
    return pack([EvidencedGroup(scored=make_turns(at)) for at in (seed, seed + 1)])


def test_a_batch_masks_given_tokens_and_keeps_their_ids() -> None:
    batch, completions = packed(), [c for seed in (0, 1) for c in make_turns(seed).rollout.completions]
    assert batch.response_ids == [tuple(c.token_ids) for c in completions]
    assert batch.mask_BT.sum(dim=1).tolist() == [c.length for c in completions]
    assert batch.given == [c.given for c in completions]
    assert not batch.rollout_logp_BT[batch.mask_BT == 0].any()
    assert batch.rows([2]).given == [completions[2].given]


def test_the_learners_gradient_is_that_of_a_forward_pass_per_sequence() -> None:
    batch = packed()
    adv_BT = torch.randn(batch.mask_BT.shape, generator=torch.Generator().manual_seed(3)) * batch.mask_BT
    learner: Learner = make_learner(UNCLIPPED)
    algorithm = make_config(UNCLIPPED).algorithm
    report = learner.update(batch, adv_BT, algorithm, 0)
    actual = [parameter.grad for parameter in learner.parameters]
    plain = make_learner(UNCLIPPED)
    total = batch.mask_BT.sum()
    for row, (prompt, ids) in enumerate(zip(batch.prompt_ids, batch.response_ids, strict=True)):
        logp_T = plain_logps(model_of(plain), prompt, ids, 1.0)
        ratio_T = (logp_T - logp_T.detach()).exp()
        (-(adv_BT[row, : len(ids)] * ratio_T).sum() / total).backward()
    for one, parameter in zip(actual, plain.parameters, strict=True):
        torch.testing.assert_close(one, parameter.grad, rtol=0, atol=1e-5)
    assert report["tokens/trained"] == float(total)


@pytest.mark.parametrize("algorithm", ["'cepo'", "'gspo'", "'ppo', kl_coef=0.0"])
def test_the_update_does_not_depend_on_numbers_at_given_tokens(algorithm: str) -> None:
    batch, files = packed(), []
    for junk in (0.0, -9.0):
        noisy = replace(
            batch, rollout_logp_BT=torch.where(batch.mask_BT.bool(), batch.rollout_logp_BT, torch.tensor(junk))
        )
        learner = make_learner(f"algorithm={{name={algorithm}}}")
        learner.learn(noisy, 0)
        files.append(learner.adapter_files())
    assert files[0] == files[1]
