"""Golden values of the published distillation losses, reproduced by the methods of a run."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from cepo.algo.methods.distillation import Distillation, Opsd, Sdpo
from cepo.messages.groups import Ask
from tests.parity.distributions import Lesson, taught
from tests.parity.support import Distributed, golden, make_batch, tensor

DISTILLATION = golden("distillation")
INPUTS = DISTILLATION["inputs"]


def published(ask: Ask, shown_B: Tensor, temperature: float = 1.0) -> Lesson:
    """Returns the tensors of the published code as a batch. The temperature divides the logits of both models."""
    mask_BT, target_BT = tensor(INPUTS["response_mask"]), torch.tensor(INPUTS["sampled_ids"])
    student_BTV, teacher_BTV = (tensor(INPUTS[f"{who}_logits"]) / temperature for who in ("student", "teacher"))
    batch = make_batch(mask_BT, torch.ones(3), torch.arange(3))
    old_BT = tensor(INPUTS["old_log_probs"])
    return taught(Lesson(batch, student_BTV.requires_grad_(), teacher_BTV, target_BT, old_BT), ask, shown_B)


def check_published(algorithm: Distillation, lesson: Lesson, case: dict[str, Any], temperature: float = 1.0) -> None:
    batch = lesson.batch
    student = Distributed(lesson.student_BTV, lesson.target_BT, batch.mask_BT)
    loss = algorithm.loss(student, lesson.logp_old_BT, batch, torch.zeros_like(batch.mask_BT), batch).loss
    assert float(loss.detach()) == pytest.approx(case["loss"], rel=1e-5)
    if "grad_student_logits" in case:
        grad_BTV = torch.autograd.grad(loss, lesson.student_BTV)[0] / temperature
        torch.testing.assert_close(grad_BTV, tensor(case["grad_student_logits"]), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("case", DISTILLATION["sdpo"])
def test_sdpo_reproduces_the_published_code(case: dict[str, Any]) -> None:
    options: dict[str, Any] = {"beta": case["alpha"], "ratio_cap": case["is_clip"], "aggregation": case["agg"]}
    if case["mode"] == "topk":
        options |= {"top": case["topk"], "remainder": "tail" if case["add_tail"] else "renormalize"}
    else:
        options["support"] = case["mode"]
    algorithm = Sdpo(**options)
    shown_B = tensor(INPUTS["distill_mask"]).bool() if case["use_distill_mask"] else torch.ones(3, dtype=torch.bool)
    check_published(algorithm, published(algorithm.ask, shown_B), case)


@pytest.mark.parametrize("case", DISTILLATION["opsd"])
def test_opsd_reproduces_the_published_code(case: dict[str, Any]) -> None:
    options = {"top": case["top_k_teacher"]} if case["top_k_teacher"] else {"support": "full"}
    algorithm, temperature = Opsd(beta=case["beta"], **options), case["temperature"]
    lesson = published(algorithm.ask, torch.ones(3, dtype=torch.bool), temperature)
    check_published(algorithm, lesson, case, temperature)


def test_sampled_token_opsd_reproduces_the_published_code() -> None:
    case, algorithm = DISTILLATION["opsd_sampled_token"], Opsd(support="sampled", beta=1.0)
    lesson = published(algorithm.ask, torch.ones(3, dtype=torch.bool), case["temperature"])
    check_published(algorithm, lesson, case, case["temperature"])
