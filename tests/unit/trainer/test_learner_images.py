"""Training a vision-language model: gradients equal those of transformers with the image; the vision part is frozen."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch

from cepo.algo.batch import TrainBatch
from cepo.algo.methods.ppo import ADAPTER
from cepo.errors import UserError
from cepo.messages.groups import ImageRef
from cepo.prompts.pixels import Patches
from services.trainer.learning.learner import Learner
from services.trainer.learning.splits import microbatches
from tests.helpers.factories import RUNS, make_config
from tests.helpers.vision import BLANK, MODEL, RENDERER, TURN, held_out, ids_of

torch.set_num_threads(1)
IMAGES = [image for _, image in held_out(2)]
PATCHES = {image.ref: image.patches for image in (*IMAGES, BLANK)}
TEXTS = ("13+15=28", "5+5", "\\boxed{7}", "1")
RUN = (f"model.path={MODEL}", "optim.max_grad_norm=1e9", "model.dtype='float32'")


def make_learner(*overrides: str) -> Learner:
    """A learner whose adapter is not zero, so that every matrix has a gradient."""

    def patches(image: ImageRef) -> Patches:
        return PATCHES[image]

    learner = Learner(make_config(*RUN, *overrides), patches)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in learner.parameters:
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.05)
    return learner


def make_batch(images: Sequence[tuple[ImageRef, ...]]) -> TrainBatch:
    """Two groups of two; a sequence without an image has the prompt without the image's tokens."""
    responses = [tuple(ids_of(text)) for text in TEXTS]
    width = max(map(len, responses))
    mask_BT = torch.tensor([[1.0] * len(ids) + [0.0] * (width - len(ids)) for ids in responses])
    return TrainBatch(
        prompt_ids=[RENDERER.prompt_ids(TURN, row) for row in images],
        response_ids=responses,
        mask_BT=mask_BT,
        reward_B=torch.tensor([1.0, 0, 0, 1]),
        accuracy_B=torch.tensor([1.0, 0, 0, 1]),
        group_B=torch.tensor([0, 0, 1, 1]),
        rollout_logp_BT=torch.zeros_like(mask_BT),
        max_tokens=16,
        truncated_B=torch.zeros(4, dtype=torch.bool),
        demonstration_B=torch.zeros(4, dtype=torch.bool),
        images=images,
    )


def gradients(batch: TrainBatch, *overrides: str) -> torch.Tensor:
    learner, config = make_learner(*overrides), make_config(*RUN, 'algorithm.name="grpo"')
    adv_BT = batch.mask_BT * torch.tensor([1.0, -1, -1, 1])[:, None]
    learner.update(batch, adv_BT, config.algorithm, 1)
    return torch.cat([parameter.grad.flatten() for parameter in learner.parameters if parameter.grad is not None])


def test_micro_batches_of_images_and_text_add_up() -> None:
    batch = make_batch([(IMAGES[0].ref,), (IMAGES[0].ref,), (), (IMAGES[1].ref,)])
    whole = gradients(batch)
    apart = gradients(batch, "optim.tokens_per_microbatch=1")
    assert float(whole.norm()) > 1e-3
    assert float((whole - apart).norm() / whole.norm()) < 1e-4


def test_an_image_meets_the_vision_part_once_for_all_passes_of_all_steps() -> None:
    asked = []

    def patches(image: ImageRef) -> Patches:
        asked.append(image)
        return PATCHES[image]

    overrides = ("optim.tokens_per_microbatch=1", "optim.minibatches=2", 'algorithm.name="grpo"')
    learner, config = Learner(make_config(*RUN, *overrides), patches), make_config(*RUN, *overrides)
    batch = make_batch([(IMAGES[0].ref,)] * 2 + [(IMAGES[1].ref,)] * 2)
    for step in range(2):
        learner.update(batch, batch.mask_BT, config.algorithm, step)
    assert (len(asked), set(asked)) == (2, {image.ref for image in IMAGES})


def test_a_critic_reads_the_images() -> None:
    learner = make_learner('algorithm.name="ppo"')
    head = torch.nn.Linear(learner.context.hidden_size, 1)
    with learner.context.using_adapter(ADAPTER):
        seen, unseen = (learner.context.apply_head(head, make_batch([(i.ref,)] * 4)) for i in (IMAGES[0], BLANK))
    assert float((seen - unseen).detach().abs().max()) > 1e-3


def test_rows_of_other_images_share_no_pass() -> None:
    same, other = (make_batch([(image.ref,) for image in row]) for row in ([IMAGES[0]] * 4, [*IMAGES, *IMAGES]))
    tokens = len(same.prompt_ids[0]) + sum(map(len, same.response_ids)) + 1
    assert len(list(microbatches(same, range(4), tokens))) == 1
    assert sorted(map(sorted, microbatches(other, range(4), tokens))) == [[0, 2], [1, 3]]


def test_another_image_is_another_gradient() -> None:
    seen, unseen = (gradients(make_batch([(image.ref,)] * 4)) for image in (IMAGES[0], BLANK))
    assert float((seen - unseen).norm() / seen.norm()) > 0.1


def test_the_vision_part_has_no_adapter_and_no_gradient() -> None:
    learner = make_learner()
    assert learner.bound_modules == 28
    frozen = [p for name, p in learner.peft.named_parameters() if "visual" in name]
    assert frozen
    assert not any(parameter.requires_grad for parameter in frozen)
    with pytest.raises(UserError, match=r"lora\.targets: qkv is in the model's vision part, which is not trained"):
        make_learner('lora.targets=["q_proj", "qkv"]')


def test_the_papers_runs_are_their_table() -> None:
    from cepo.run.file import load

    small, large = (load(RUNS / f"geo3k_cepo_{size}.toml") for size in ("2b", "4b"))
    assert small.optim.lr == 5e-6
    assert (small.sampling.prompts, small.sampling.samples, small.loop.steps) == (32, 8, 50)
    assert (small.lora.rank, small.lora.alpha, small.algorithm.name) == (16, 32, "cepo")
    assert large.model.path == "Qwen/Qwen3-VL-4B-Instruct"
    assert large.model_copy(update={"name": small.name, "model": small.model}) == small
    published, larger = (load(RUNS / f"{name}.toml") for name in ("cepo-repo", "geo3k_cepo_4b_repo"))
    assert larger.model == large.model.model_copy(update={"max_length": 2816})
    assert larger.model_copy(update={"name": published.name, "model": published.model}) == published
    assert (published.data.train, published.model.path) == (small.data.train, small.model.path)
