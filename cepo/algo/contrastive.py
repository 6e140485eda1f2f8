"""CLIPO: a contrastive loss over the pooled hidden states of correct rollouts, and the reward that it yields.

Defaults are those of the released code (github.com/Qwen-Applications/CLIPO), except for the floor in its logarithms.

Shapes: B sequences, H hidden size, D projection size. In a [B, B] matrix, rows are anchors.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

RELEASED_FLOOR = 1e-8
"""The constant that the released code adds inside each logarithm, after subtracting the largest logit of the row."""

Similarity = Literal["cosine", "negative_cosine", "l2"]
Level = Literal["group", "cross", "batch"]
"""Where positives and negatives come from: the prompt's group for both; the group and the batch; the batch for both."""
Contrast = Literal["infonce", "supcon_out", "supcon_in", "soft_nn"]
Anchors = Literal["correct", "all"]


class ProjectionHead(nn.Module):
    """Unit vectors of pooled hidden states: W h, or W2 relu(W1 h), divided by its norm."""

    def __init__(
        self, hidden_size: int, projection_size: int, *, kind: Literal["linear", "mlp"] = "linear", bias: bool = False
    ) -> None:
        super().__init__()
        last = nn.Linear(hidden_size, projection_size, bias=bias)
        layers = [last] if kind == "linear" else [nn.Linear(hidden_size, hidden_size, bias=bias), nn.ReLU(), last]
        self.layers = nn.Sequential(*layers)

    def forward(self, hidden_BH: Tensor) -> Tensor:
        """embedding_BD, of norm 1."""
        return normalize(self.layers(hidden_BH), dim=-1)


@dataclass(frozen=True)
class ContrastiveLoss:
    """The loss of the head, and its terms for each sequence."""

    loss: Tensor
    """Mean over the anchors. Without anchors it is 0 with a graph, so that backward always works."""
    loss_B: Tensor
    """The loss of each anchor; 0 for other sequences."""
    anchor_B: Tensor
    """Whether the sequence had something to be compared with."""


def contrastive_loss(
    embedding_BD: Tensor,
    correct_B: Tensor,
    group_B: Tensor,
    *,
    contrast: Contrast = "infonce",
    level: Level = "group",
    similarity: Similarity = "cosine",
    temperature: float = 0.05,
    anchors: Anchors = "correct",
    skip_trivial: bool = True,
    floor: float = 0.0,
    positive_B: Tensor | None = None,
) -> ContrastiveLoss:
    """Pulls an anchor to the sequences of its own label (positives) and away from all others.

    With logits s / temperature, P the positives and Z the sum of exp(logit) over all others:
    infonce log Z - logit of one positive; supcon_out log Z - mean logit over P; soft_nn log Z - log of the sum of
    exp(logit) over P; supcon_in the same + log |P|.

    Args:
        embedding_BD: unit vectors.
        correct_B: 1 for a correct answer.
        group_B: integer id of each sequence's prompt.
        anchors: "correct" allows only correct sequences as anchors (masked_label 0 in the released code).
        skip_trivial: whether an anchor also needs a negative.
        floor: added inside each logarithm, relative to the largest logit of the row. 0 is exact, and a sequence
            without a positive is no anchor. `RELEASED_FLOOR` reproduces the released code, including its loss for
            such sequences.
        positive_B: for infonce, the positive of each sequence from `draw_positives`.

    Raises:
        ValueError: positives are missing for infonce, or the contrast, level or similarity is unknown.
    """
    positive_BB, other_BB = _pairs(correct_B, group_B, level)
    has_positive_B = positive_BB.any(dim=1)
    anchor_B = correct_B.bool() if anchors == "correct" else torch.ones_like(correct_B, dtype=torch.bool)
    if skip_trivial:
        anchor_B = anchor_B & has_positive_B & (other_BB & ~positive_BB).any(dim=1)
    elif floor == 0.0:
        anchor_B = anchor_B & has_positive_B
    row_A = anchor_B.nonzero().squeeze(1)
    logit_AB = _similarity(embedding_BD, similarity)[row_A] / temperature
    if len(row_A):
        logit_AB = logit_AB - logit_AB.detach().amax(dim=1, keepdim=True)
    chosen_A = None if positive_B is None else positive_B[row_A]
    terms_A = _terms(contrast, logit_AB, positive_BB[row_A], other_BB[row_A], chosen_A, floor)
    loss_B = torch.zeros_like(anchor_B, dtype=terms_A.dtype).index_put((row_A,), terms_A)
    return ContrastiveLoss(loss_B.sum() / max(1, len(row_A)), loss_B, anchor_B)


def draw_positives(
    correct_B: Tensor, group_B: Tensor, *, level: Level = "group", generator: torch.Generator | None = None
) -> Tensor:
    """The index of a uniformly drawn positive for each sequence; -1 if it has none."""
    positive_BB, _ = _pairs(correct_B, group_B, level)
    key_BB = torch.rand(positive_BB.shape, generator=generator).to(positive_BB.device)
    drawn_B = torch.where(positive_BB, key_BB, -1.0).argmax(dim=1) if len(correct_B) else group_B
    return torch.where(positive_BB.any(dim=1), drawn_B, -1)


def contrastive_bonus(
    loss_B: Tensor, correct_B: Tensor, *, weight: float = 0.2, constant: float = 0.0, minimum: float = -0.5
) -> Tensor:
    """max(constant - weight loss c, minimum), to be added to the reward; never above 0 unless the constant is."""
    return (constant - weight * loss_B.detach() * correct_B).clamp(min=minimum)


def _pairs(correct_B: Tensor, group_B: Tensor, level: Level) -> tuple[Tensor, Tensor]:
    """Masks [B, B] of the positives of each anchor, and of all sequences that it is compared with, never itself."""
    if level not in ("group", "cross", "batch"):
        raise ValueError(f"unknown level {level!r}")
    other_BB = ~torch.eye(len(group_B), dtype=torch.bool, device=group_B.device)
    near_BB = (group_B[:, None] == group_B) & other_BB
    positive_BB = (correct_B[:, None] == correct_B) & (other_BB if level == "batch" else near_BB)
    return positive_BB, near_BB if level == "group" else other_BB


def _similarity(embedding_BD: Tensor, similarity: Similarity) -> Tensor:
    cosine_BB = embedding_BD.float() @ embedding_BD.float().T
    match similarity:
        case "cosine":
            return cosine_BB
        case "negative_cosine":
            return -cosine_BB
        case "l2":
            return 1.0 - (2.0 - 2.0 * cosine_BB).clamp(min=1e-8).sqrt()
    raise ValueError(f"unknown similarity {similarity!r}")


def _terms(
    contrast: Contrast, logit_AB: Tensor, positive_AB: Tensor, other_AB: Tensor, chosen_A: Tensor | None, floor: float
) -> Tensor:
    log_all_A, count_A = _log_sum(logit_AB, other_AB, floor), positive_AB.sum(dim=1)
    match contrast:
        case "infonce":
            if chosen_A is None:
                raise ValueError("infonce needs the drawn positives: positive_B of draw_positives")
            logit_A = logit_AB.gather(1, chosen_A.clamp(min=0)[:, None]).squeeze(1)
            return log_all_A - torch.where(count_A > 0, logit_A, 0.0)
        case "supcon_out":
            return ((log_all_A[:, None] - logit_AB) * positive_AB).sum(dim=1) / count_A.clamp(min=1)
        case "supcon_in":
            return log_all_A - _log_sum(logit_AB, positive_AB, floor) + (count_A + floor).log()
        case "soft_nn":
            return log_all_A - _log_sum(logit_AB, positive_AB, floor)
    raise ValueError(f"unknown contrast {contrast!r}")


def _log_sum(logit_AB: Tensor, mask_AB: Tensor, floor: float) -> Tensor:
    if floor == 0.0:
        return logit_AB.masked_fill(~mask_AB, -torch.inf).logsumexp(dim=1)
    return ((logit_AB.exp() * mask_AB).sum(dim=1) + floor).log()
