"""A scorer on a learner's base: neither changes what the other computes, and they never run at the same time."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from typing import Any

import pytest
import torch

from cepo.errors import PolicyError
from cepo.messages.groups import BASE_POLICY, PolicyRef
from cepo.net.settings import Settings
from cepo.prompts.renderer import Renderer
from cepo.service import adapters
from cepo.service.adapters import AdapterCache
from cepo.teaching.engine import TransformersScorer
from cepo.teaching.handler import Pair
from cepo.testing import MemoryBus
from services.trainer.learning.batch import pack
from services.trainer.learning.learner import Learner
from services.trainer.publisher import Publisher
from tests.helpers.factories import POLICY, make_config, make_ragged

torch.set_num_threads(1)
PPO = 'algorithm={name="ppo", critic_lr=1e-2}'
MODES = {
    "plain": (),
    "recomputing": ("optim.gradient_checkpointing=true",),
    "with a critic": (PPO,),
}
RENDERER = Renderer(make_config().model.path)
PAIRS = [Pair(RENDERER.canary_ids(16)[:8], RENDERER.canary_ids(16)[8:]), Pair((5, 6, 7), (8, 9, 10, 11))]


class Process:
    """A learner, and a scorer on its base."""

    def __init__(self, folder: Path, *overrides: str) -> None:
        self.config = make_config("lora.rank=2", *overrides)
        self.learner = Learner(self.config)
        self.publisher = Publisher(
            folder / "adapters", self.learner, MemoryBus(), RENDERER.canary_ids(16), RENDERER.sha256, "float32"
        )
        self.scorer = self.scoring_on(folder / "own", self.learner.base)

    def scoring_on(self, folder: Path, base: Any) -> TransformersScorer:
        settings = Settings(model=self.config.model.path, dtype="float32", max_loras=2)
        return TransformersScorer(settings, RENDERER, AdapterCache(folder, self.publisher.files, keep=4), base=base)

    def update(self, step: int) -> None:
        """Trains one step in the order of the loop."""
        algorithm = self.config.algorithm
        batch = pack(make_ragged([(4, 6), (3, 5)], seed=step, asks=algorithm.asks))
        with self.learner.base.lock:
            prepared = self.learner.auxiliary.prepare(batch, step)
            self.learner.update(prepared, algorithm.advantages(prepared, step).adv_BT, algorithm, step)
            self.learner.auxiliary.update(prepared, step)

    def state(self) -> dict[str, Any]:
        """All state of the learner that its next step depends on."""
        peft: Any = self.learner.peft
        return {
            "active": peft.active_adapters,
            "enabled": [m.disable_adapters for m in peft.modules() if hasattr(m, "disable_adapters")],
            "trained": {name for name, p in peft.named_parameters() if p.requires_grad},
            "training": {name for name, module in peft.named_modules() if module.training},
            "gradients": {name: p.grad for name, p in peft.named_parameters() if p.grad is not None},
            "files": self.learner.adapter_files(),
            "rng": torch.get_rng_state().tolist(),
        }


@pytest.mark.parametrize("mode", MODES)
async def test_a_learner_is_as_it_was_whatever_was_scored_on_its_base(tmp_path: Path, mode: str) -> None:
    process = Process(tmp_path, *MODES[mode])
    policies = []
    for step in range(3):  # one more than the scorer keeps
        process.update(step)
        policies.append(await process.publisher.publish(step + 1))
    before = process.state()
    assert before["gradients"]
    for policy in (*policies, BASE_POLICY, policies[0]):
        assert process.publisher.check(await process.scorer.load(policy)) is None
        await process.scorer.score(PAIRS, 1.0, policy)
    with pytest.raises(PolicyError, match="not published by this run"):
        await process.scorer.load(POLICY)
    assert process.state() == before


async def test_a_shared_base_scores_as_one_of_its_own_while_the_learner_trains(tmp_path: Path) -> None:
    process = Process(tmp_path)
    alone = process.scoring_on(tmp_path / "alone", None)
    process.update(0)
    policy = await process.publisher.publish(1)
    expected = {each: (await alone.score(PAIRS, 1.0, each)).values for each in (BASE_POLICY, policy)}
    assert expected[policy] != expected[BASE_POLICY]

    async def learn() -> None:
        for step in range(1, 6):
            await asyncio.to_thread(process.update, step)

    learning = asyncio.create_task(learn())
    scored = 0
    while not learning.done():
        for each in (policy, BASE_POLICY):
            assert (await process.scorer.score(PAIRS, 1.0, each)).values == expected[each]
            scored += 1
    await learning
    assert scored > 0
    process.scorer.close()

    undisturbed = Process(tmp_path / "undisturbed")
    for step in range(6):
        undisturbed.update(step)
    assert process.learner.adapter_files() == undisturbed.learner.adapter_files()


async def test_a_pass_waits_for_the_learners_turn_to_end(tmp_path: Path) -> None:
    process, order = Process(tmp_path), []
    begun, end = threading.Event(), threading.Event()

    def turn() -> None:
        with process.learner.base.lock:
            begun.set()
            end.wait(100)
            order.append("learnt")

    learning = asyncio.create_task(asyncio.to_thread(turn))
    await asyncio.to_thread(begun.wait, 100)
    scoring = asyncio.create_task(process.scorer.score(PAIRS, 1.0, BASE_POLICY))
    scoring.add_done_callback(lambda _: order.append("scored"))
    done, _ = await asyncio.wait([scoring], timeout=0.3)
    assert not done
    end.set()
    await asyncio.gather(learning, scoring)
    assert order == ["learnt", "scored"]


async def test_the_adapter_a_learner_shares_its_base_from_is_what_its_version_names(tmp_path: Path) -> None:
    process = Process(tmp_path)
    process.update(0)
    policy: PolicyRef = await process.publisher.publish(1)
    process.update(1)  # the current weights now differ from the published version
    proof = await process.scorer.load(policy)
    expected = process.publisher.expected(policy).canary_logps
    scored = tuple(proof.canary_logps)[: len(expected)]  # the teacher has room for a longer canary
    assert scored == pytest.approx(expected, abs=1e-5)
    assert scored != pytest.approx(process.learner.canary(RENDERER.canary_ids(16)), abs=1e-5)
    assert adapters.digest(await process.publisher.files(policy)) == policy.sha256
