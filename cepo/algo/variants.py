"""All methods by name, and the methods that only change defaults of the policy gradient."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Annotated, Literal, get_args

from pydantic import Field

from cepo.algo.base import Algorithm
from cepo.algo.core import Scale
from cepo.algo.kl import KlForm
from cepo.algo.losses import Aggregation
from cepo.algo.methods.cepo import Cepo
from cepo.algo.methods.clipo import Clipo
from cepo.algo.methods.ctdpo import CtDpo
from cepo.algo.methods.dapo import Dapo
from cepo.algo.methods.distillation import Opsd, Sdpo
from cepo.algo.methods.dpo import Dpo
from cepo.algo.methods.hdpo import Hdpo
from cepo.algo.methods.policy_gradient import Estimator, PolicyGradient, Surrogate
from cepo.algo.methods.ppo import Ppo
from cepo.algo.methods.prm import Prm
from cepo.algo.methods.rlcsd import Rlcsd
from cepo.algo.methods.rlsd import Rlsd
from cepo.algo.methods.spo import SpoChain
from cepo.algo.methods.spo_tree import SpoTree
from cepo.algo.methods.vineppo import VinePpo


class Grpo(PolicyGradient):
    """GRPO (arXiv:2402.03300, section 4.1.2): every token of a response has the response's advantage in its group.

        A = (R - mean(R of the group)) / (std(R of the group) + advantage_eps)

    followed by the clipped surrogate. With the default token-mean aggregation and clip_high this is the baseline of
    CEPO's paper (arXiv:2605.19436, Eq. 1)."""

    name: Literal["grpo"] = "grpo"


class DrGrpo(PolicyGradient):
    """Dr.GRPO (arXiv:2503.20783): GRPO without a standard deviation or a response length in any denominator.

        A = R - mean(R of the group)
        L = sum of all token losses / (responses x sampling.max_tokens)

    with the clipped surrogate as the loss of a token.
    """

    name: Literal["dr-grpo"] = "dr-grpo"
    advantage_scale: Scale = "none"
    """The divisor of a centred reward. none as in the paper; std and batch-std as in GRPO."""
    aggregation: Aggregation = "dr-grpo"
    """How the losses of tokens become one number. dr-grpo: the sum divided by responses x `sampling.max_tokens`, as in
    the paper and in TRL; the others as in GRPO."""


class Rloo(PolicyGradient):
    """RLOO (arXiv:2402.14740): a response's advantage is its reward minus the mean of the group's other rewards.

        A_i = R_i - mean(R_j of the group, j not i) = G / (G - 1) (R_i - mean(R of the group))

    with G the group size, followed by the clipped surrogate.
    """

    name: Literal["rloo"] = "rloo"
    estimator: Estimator = "rloo"
    """How rewards become advantages. rloo as in the paper; the others as in GRPO."""


class ReinforcePlusPlus(PolicyGradient):
    """REINFORCE++ (arXiv:2501.03262): token returns with a KL penalty in the reward, whitened over the batch.

        R_t = [t is the last token] R - kl_coef KL_t
        G_t = R_t + gamma G_{t+1}
        A_t = (G_t - mean(G)) / sqrt(var(G) + 1e-8)

    with the mean and the variance over all tokens of the batch, followed by the clipped surrogate.
    """

    name: Literal["reinforce++"] = "reinforce++"
    estimator: Estimator = "reinforce++"
    """How rewards become advantages. reinforce++ as in the paper; reinforce++-baseline subtracts the group's mean
    first."""
    kl_coef: float = Field(default=1e-3, ge=0)
    """Weight of the KL divergence from the base model. 1e-3 as in EasyR1's script."""
    kl_form: KlForm = "kl"
    """How the divergence is estimated from a sampled token. kl: the log-ratio, as in the paper; the others as in
    GRPO."""
    kl_in: Literal["loss", "reward"] = "reward"
    """Whether the divergence is added to the loss or subtracted from the reward of each token. reward as in the
    paper."""


class Gspo(PolicyGradient):
    """GSPO (arXiv:2507.18071, Eqs 5 and 7): GRPO with one importance ratio for a whole response.

        s    = exp(mean over the response's tokens of (log pi(y_t) - log pi_old(y_t)))
        loss = max(-A s, -A clip(s, 1 - clip_low, 1 + clip_high)), the mean over responses

    The ratio is 1 unless a step makes several updates (`optim.minibatches`) or runs off-policy.
    """

    name: Literal["gspo"] = "gspo"
    surrogate: Surrogate = "gspo"
    """The loss of a token. gspo as in the paper; gspo-token (section 4.3) gives each token a gradient of its own."""
    clip_low: float = Field(default=3e-4, gt=0, lt=1)
    """The ratio is clipped below 1 - clip_low. 3e-4 as in the paper."""
    clip_high: float = Field(default=4e-4, gt=0)
    """The ratio is clipped above 1 + clip_high. 4e-4 as in the paper."""
    aggregation: Aggregation = "seq-mean-token-mean"
    """How the losses of tokens become one number. seq-mean-token-mean: the mean over responses of each response's mean,
    as in the paper; the others as in GRPO."""


class Cispo(PolicyGradient):
    """CISPO (arXiv:2506.13585): the importance weight is clipped and detached, so that every token keeps its gradient.

        loss_t = -A sg(clip(r_t, ratio_min, ratio_max)) log pi(y_t)

    with A of GRPO. The loss depends on the size of the log-probs and does not measure progress.
    """

    name: Literal["cispo"] = "cispo"
    surrogate: Surrogate = "cispo"
    """The loss of a token. cispo as in the paper."""


class Sapo(PolicyGradient):
    """SAPO (arXiv:2511.20347): a soft gate on the importance ratio in place of the clip.

        loss_t = -A (4 / tau) sigmoid(tau (r_t - 1)), with tau = tau_pos if A > 0 and tau_neg if A < 0

    with A of GRPO. The gate has slope 1 at r = 1.
    """

    name: Literal["sapo"] = "sapo"
    surrogate: Surrogate = "sapo"
    """The loss of a token. sapo as in the paper."""
    aggregation: Aggregation = "seq-mean-token-mean"
    """How the losses of tokens become one number. seq-mean-token-mean: the mean over responses of each response's mean,
    as in the paper; the others as in GRPO."""


AnyAlgorithm = Annotated[
    Grpo
    | DrGrpo
    | Rloo
    | ReinforcePlusPlus
    | Dapo
    | Gspo
    | Cispo
    | Sapo
    | Rlsd
    | Cepo
    | Rlcsd
    | Opsd
    | Sdpo
    | Hdpo
    | Clipo
    | Ppo
    | VinePpo
    | SpoChain
    | SpoTree
    | Prm
    | Dpo
    | CtDpo,
    Field(discriminator="name"),
]

ALGORITHMS: Mapping[str, type[Algorithm]] = MappingProxyType(
    {method.model_fields["name"].default: method for method in get_args(get_args(AnyAlgorithm)[0])}
)
