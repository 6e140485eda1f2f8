"""Direct preference optimisation on pairs of a chosen and a rejected response, and its critical-token form.

Shapes: P pairs, B sequences, T response tokens (padded).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import logsigmoid


def sequence_log_ratio(
    logp_BT: Tensor, logp_ref_BT: Tensor, mask_BT: Tensor, weight_BT: Tensor | None = None
) -> Tensor:
    """ratio_B: the sum of w (log policy - log reference) over the tokens of each response, in nats; w defaults to 1."""
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
        rejected_ratio_P: `sequence_log_ratio` of the rejected responses.
        beta: strength of the regularisation towards the reference.
        label_smoothing: s, the assumed share of pairs with swapped labels.

    Returns:
        loss_P.
    """
    margin_P = beta * (chosen_ratio_P - rejected_ratio_P)
    return -(1.0 - label_smoothing) * logsigmoid(margin_P) - label_smoothing * logsigmoid(-margin_P)


def critical_weights(prob_BT: Tensor, chosen_B: Tensor, mask_BT: Tensor, *, only_rejected: bool = False) -> Tensor:
    """weight_BT of each token in critical-token DPO (arXiv:2411.19943), 0 on padding.

    The weight is the contrastive estimate for a chosen token, and 1 minus it for a rejected one: a token is critical if
    a model of wrong responses prefers it and a model of correct responses does not. The end of sequence has weight 1.

    Args:
        prob_BT: softmax((1 + s) log right - s log wrong) at the token.
        chosen_B: whether a response is a chosen one; the others are rejected.
        mask_BT: 1 on the tokens of complete responses, including the end of sequence.
        only_rejected: whether chosen tokens have weight 1 (`only_neg` of the released code).
    """
    chosen_BT = torch.ones_like(prob_BT) if only_rejected else prob_BT
    weight_BT = torch.where(chosen_B[:, None], chosen_BT, 1.0 - prob_BT)
    from_end_BT = mask_BT.cumsum(dim=1) == mask_BT.sum(dim=1, keepdim=True)
    return torch.where(from_end_BT, 1.0, weight_BT) * mask_BT
