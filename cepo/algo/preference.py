"""Direct preference optimisation on pairs of a chosen and a rejected response, and its critical-token form.

Shapes: P pairs, B sequences, T response tokens (padded), N tokens (flat), V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid


def sequence_log_ratio(
    logp_BT: Tensor, logp_ref_BT: Tensor, mask_BT: Tensor, weight_BT: Tensor | None = None
) -> Tensor:
    """The sum over a response's tokens of w (log policy - log reference); w is 1 unless given. ratio_B, in nats."""
    ratio_BT = logp_BT - logp_ref_BT.detach()
    if weight_BT is not None:
        ratio_BT = ratio_BT * weight_BT.detach()
    return torch.where(mask_BT.bool(), ratio_BT, 0.0).sum(dim=-1)


def dpo_loss(
    chosen_ratio_P: Tensor, rejected_ratio_P: Tensor, *, beta: float = 0.1, label_smoothing: float = 0.0
) -> Tensor:
    """-(1 - s) log sigmoid(z) - s log sigmoid(-z), z = beta (chosen - rejected log-ratio) (arXiv:2305.18290).

    Args:
        chosen_ratio_P: `sequence_log_ratio` of the chosen responses.
        rejected_ratio_P: of the rejected ones.
        beta: strength of the pull to the reference.
        label_smoothing: s, the share of pairs taken to be labelled the wrong way round.

    Returns:
        loss_P.
    """
    margin_P = beta * (chosen_ratio_P - rejected_ratio_P)
    return -(1.0 - label_smoothing) * logsigmoid(margin_P) - label_smoothing * logsigmoid(-margin_P)


@torch.no_grad()
def contrastive_estimate(
    logp_right_NV: Tensor, logp_wrong_NV: Tensor, token_ids_N: Tensor, *, strength: float = 1.0
) -> Tensor:
    """How a model of right solutions, against one of wrong solutions, likes each token (arXiv:2411.19943).

    softmax((1 + strength) log right - strength log wrong) at the token, prob_N. In critical-token DPO a chosen token
    weighs prob and a rejected one 1 - prob; the end of sequence weighs 1 on both sides.
    """
    contrast_NV = (1.0 + strength) * logp_right_NV.float() - strength * logp_wrong_NV.float()
    return contrast_NV.softmax(dim=-1).gather(-1, token_ids_N[:, None]).squeeze(-1)
