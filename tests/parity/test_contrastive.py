"""CLIPO: published numbers, the four losses as plain loops, and batches without a comparison."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from cepo.algo.contrastive import (
    RELEASED_FLOOR,
    ProjectionHead,
    contrastive_bonus,
    contrastive_loss,
    draw_positives,
)
from tests.parity.support import golden, tensor

CLIPO = golden("clipo")
INPUTS = CLIPO["inputs"]
EMBEDDING_BD = tensor(INPUTS["embeddings"])
CORRECT_B = tensor(INPUTS["labels"])
GROUP_B = torch.tensor(["abcd".index(uid) for uid in INPUTS["uid"]])
SIMILARITIES: dict[str, Any] = {"cosine_distance": "cosine", "-cosine_distance": "negative_cosine", "l2_distance": "l2"}
CONTRASTS = ("infonce", "supcon_out", "supcon_in", "soft_nn")
LEVELS = ("group", "cross", "batch")


def case_id(case: dict[str, Any]) -> str:
    return "-".join(str(case[key]) for key in ("level", "loss_type", "distance", "masked_label", "skip_trivial"))


@pytest.mark.parametrize("case", CLIPO["cases"], ids=case_id)
def test_loss_bonus_and_gradient_reproduce_the_published_code(case: dict[str, Any]) -> None:
    embedding_BD = EMBEDDING_BD.clone().requires_grad_()
    drawn = case.get("sampled_positive_index")
    result = contrastive_loss(
        embedding_BD,
        CORRECT_B,
        GROUP_B,
        contrast=case["loss_type"].replace("_loss", ""),
        level=case["level"].replace("_level", ""),
        similarity=SIMILARITIES[case["distance"]],
        temperature=INPUTS["temperature"],
        anchors="correct" if case["masked_label"] == 0 else "all",
        skip_trivial=case["skip_trivial"],
        floor=RELEASED_FLOOR,
        positive_B=None if drawn is None else torch.tensor(drawn),
    )
    torch.testing.assert_close(result.loss_B.detach(), tensor(case["individual_loss"]), rtol=1e-5, atol=1e-5)
    assert result.loss.item() == pytest.approx(case["loss"], rel=1e-5)
    bonus_B = contrastive_bonus(result.loss_B, CORRECT_B, weight=0.2, constant=INPUTS["constant_reward"])
    torch.testing.assert_close(bonus_B, tensor(case["contrastive_rewards_lambda0.2"]), rtol=1e-5, atol=1e-5)
    result.loss.backward()
    if "grad_embeddings" in case:
        torch.testing.assert_close(embedding_BD.grad, tensor(case["grad_embeddings"]), rtol=1e-4, atol=1e-5)


def test_all_published_cases_are_there() -> None:
    assert len(CLIPO["cases"]) == 36
    assert sum("grad_embeddings" in case for case in CLIPO["cases"]) == 4


@pytest.mark.parametrize(("kind", "name"), [("linear", "embeddings"), ("mlp", "embeddings_mlp")])
def test_the_head_projects_as_the_published_one(kind: Any, name: str) -> None:
    weights = [INPUTS["head_weight"]] if kind == "linear" else INPUTS["mlp_weights"]
    head = ProjectionHead(6, 4, kind=kind)
    for parameter, weight in zip(head.parameters(), weights, strict=True):
        parameter.data.copy_(tensor(weight))
    torch.testing.assert_close(head(tensor(INPUTS["hidden_states"])).detach(), tensor(INPUTS[name]))


def test_a_head_has_a_bias_when_asked() -> None:
    assert [tuple(p.shape) for p in ProjectionHead(6, 4, kind="mlp", bias=True).parameters()] == [
        (6, 6),
        (6,),
        (4, 6),
        (4,),
    ]


def random_case(seed: int) -> tuple[Tensor, Tensor, Tensor]:
    """Returns 13 sequences in ragged groups. One group is a singleton, and some have equal labels."""
    random = torch.Generator().manual_seed(seed)
    embedding_BD = torch.nn.functional.normalize(torch.randn(13, 5, generator=random), dim=-1)
    group_B = torch.tensor([4, 4, 4, 4, 4, 2, 2, 2, 9, 9, 9, 7, 5])[torch.randperm(13, generator=random)]
    return embedding_BD, (torch.rand(13, generator=random) < 0.6).float(), group_B


def loop_loss(
    embedding: list[list[float]], correct: list[float], group: list[int], anchor: int, contrast: str, level: str, p: int
) -> float | None:
    """Returns a correct anchor's exact loss under the cosine at temperature 0.2, or None if the anchor is trivial."""
    logits = [sum(a * b for a, b in zip(embedding[anchor], row, strict=True)) / 0.2 for row in embedding]
    others = [j for j in range(len(group)) if j != anchor]
    near = [j for j in others if group[j] == group[anchor]]
    pool = near if level == "group" else others
    positives = [j for j in (others if level == "batch" else near) if correct[j] == correct[anchor]]
    if not correct[anchor] or not positives or len(positives) == len(pool):
        return None
    z = math.fsum(math.exp(logits[j]) for j in pool)
    shares = [math.exp(logits[j]) / z for j in positives]
    match contrast:
        case "infonce":
            return -math.log(math.exp(logits[p]) / z)
        case "supcon_out":
            return -math.fsum(math.log(share) for share in shares) / len(shares)
        case "soft_nn":
            return -math.log(math.fsum(shares))
    return -math.log(math.fsum(shares) / len(shares))


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("contrast", CONTRASTS)
@pytest.mark.parametrize("seed", range(4))
def test_the_exact_loss_is_its_equation(seed: int, contrast: Any, level: Any) -> None:
    embedding_BD, correct_B, group_B = random_case(seed)
    positive_B = draw_positives(correct_B, group_B, level=level, generator=torch.Generator().manual_seed(seed))
    result = contrastive_loss(
        embedding_BD, correct_B, group_B, contrast=contrast, level=level, temperature=0.2, positive_B=positive_B
    )
    rows = embedding_BD.tolist(), correct_B.tolist(), group_B.tolist()
    expected = [loop_loss(*rows, anchor, contrast, level, int(positive_B[anchor])) for anchor in range(13)]
    assert result.anchor_B.tolist() == [loss is not None for loss in expected]
    torch.testing.assert_close(result.loss_B, torch.tensor([loss or 0.0 for loss in expected]), rtol=1e-4, atol=1e-5)
    anchors = [loss for loss in expected if loss is not None]
    assert float(result.loss) == pytest.approx(math.fsum(anchors) / max(1, len(anchors)), rel=1e-4)


def test_the_exact_loss_has_no_floor_for_far_positives() -> None:
    embedding_BD = torch.nn.functional.normalize(torch.tensor([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0]]), dim=-1)
    given = embedding_BD, torch.tensor([1.0, 1.0, 0.0]), torch.zeros(3, dtype=torch.long)
    exact, floored = (contrastive_loss(*given, contrast="soft_nn", floor=floor) for floor in (0.0, RELEASED_FLOOR))
    assert float(exact.loss_B[0]) == pytest.approx(20.0, rel=1e-5)  # the negative's similarity is 1 / 0.05 = 20 higher
    assert float(floored.loss_B[0]) < 1.0


@pytest.mark.parametrize("level", LEVELS)
@pytest.mark.parametrize("seed", range(4))
def test_positives_are_drawn_uniformly_from_the_anchor_s_own(seed: int, level: Any) -> None:
    _, correct_B, group_B = random_case(seed)
    random = torch.Generator().manual_seed(seed)
    drawn = torch.stack([draw_positives(correct_B, group_B, level=level, generator=random) for _ in range(400)])
    for anchor in range(13):
        allowed = {
            j
            for j in range(13)
            if j != anchor and correct_B[j] == correct_B[anchor] and (level == "batch" or group_B[j] == group_B[anchor])
        }
        counts = torch.bincount(drawn[:, anchor] + 1, minlength=14).tolist()
        assert {j - 1 for j, count in enumerate(counts) if count} == (allowed or {-1})
        assert max(counts) < 2 * 400 / max(1, len(allowed)) + 1


DEGENERATE = {
    "all rollouts of a group correct": [1.0, 1.0, 1.0],
    "all wrong": [0.0, 0.0, 0.0],
    "only one correct rollout in a mixed group": [1.0, 0.0, 0.0],
    "one rollout": [1.0],
    "empty": [],
}


@pytest.mark.parametrize("floor", [0.0, RELEASED_FLOOR])
@pytest.mark.parametrize("contrast", CONTRASTS)
@pytest.mark.parametrize("name", DEGENERATE)
def test_no_anchors_give_bonus_0_and_a_loss_that_backward_accepts(name: str, contrast: Any, floor: float) -> None:
    correct_B = torch.tensor(DEGENERATE[name])
    group_B = torch.zeros(len(correct_B), dtype=torch.long)
    head = ProjectionHead(6, 4, kind="mlp")
    embedding_BD = head(torch.randn(len(correct_B), 6, generator=torch.Generator().manual_seed(0)))
    positive_B = draw_positives(correct_B, group_B)
    result = contrastive_loss(embedding_BD, correct_B, group_B, contrast=contrast, floor=floor, positive_B=positive_B)
    result.loss.backward()
    assert result.loss == 0
    assert not result.anchor_B.any()
    assert not contrastive_bonus(result.loss_B, correct_B).any()
    assert all(parameter.grad is not None and not parameter.grad.any() for parameter in head.parameters())


@pytest.mark.parametrize("contrast", CONTRASTS)
def test_without_skipping_trivial_anchors_the_exact_loss_still_needs_a_positive(contrast: Any) -> None:
    embedding_BD, correct_B, group_B = random_case(1)
    positive_B = draw_positives(correct_B, group_B)
    result = contrastive_loss(
        embedding_BD, correct_B, group_B, contrast=contrast, skip_trivial=False, anchors="all", positive_B=positive_B
    )
    assert torch.equal(result.anchor_B, positive_B >= 0)
    assert result.loss_B.isfinite().all()


@pytest.mark.parametrize("contrast", CONTRASTS)
@pytest.mark.parametrize("seed", range(4))
def test_the_bonus_is_never_above_0_for_constant_0_and_never_below_its_minimum(seed: int, contrast: Any) -> None:
    embedding_BD, correct_B, group_B = random_case(seed)
    given = embedding_BD.requires_grad_(), correct_B, group_B
    loss_B = contrastive_loss(*given, contrast=contrast, positive_B=draw_positives(correct_B, group_B)).loss_B
    bonus_B = contrastive_bonus(loss_B, correct_B)
    assert not bonus_B.requires_grad
    assert (bonus_B <= 0).all()
    assert (bonus_B >= -0.5).all()
    assert not bonus_B[correct_B == 0].any()
    expected = [max(0.1 - 0.3 * loss * c, -0.2) for loss, c in zip(loss_B.tolist(), correct_B.tolist(), strict=True)]
    bonus_B = contrastive_bonus(loss_B, correct_B, weight=0.3, constant=0.1, minimum=-0.2)
    torch.testing.assert_close(bonus_B, torch.tensor(expected))


def test_infonce_without_its_positives_is_refused() -> None:
    with pytest.raises(ValueError, match="infonce needs the drawn positives"):
        contrastive_loss(EMBEDDING_BD, CORRECT_B, GROUP_B, contrast="infonce")


@pytest.mark.parametrize("key", ["contrast", "level", "similarity"])
def test_an_unknown_name_is_refused(key: str) -> None:
    options: dict[str, Any] = {"contrast": "soft_nn", key: "other"}
    with pytest.raises(ValueError, match=f"unknown {key} 'other'"):
        contrastive_loss(EMBEDDING_BD, CORRECT_B, GROUP_B, **options)
