"""Every method by name: the one switch."""

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
from cepo.algo.methods.rlsd import Rlsd
from cepo.algo.methods.spo import SpoChain
from cepo.algo.methods.spo_tree import SpoTree
from cepo.algo.methods.vineppo import VinePpo


class Grpo(PolicyGradient):
    """GRPO (arXiv:2402.03300): every token of a response gets the same credit, relative to its group."""

    name: Literal["grpo"] = "grpo"


class DrGrpo(PolicyGradient):
    """Dr.GRPO (arXiv:2503.20783): no deviation and no length in any denominator."""

    name: Literal["dr-grpo"] = "dr-grpo"
    advantage_scale: Scale = "none"
    aggregation: Aggregation = "dr-grpo"


class Rloo(PolicyGradient):
    """RLOO (arXiv:2402.14740): each reward against the mean of the others."""

    name: Literal["rloo"] = "rloo"
    estimator: Estimator = "rloo"


class ReinforcePlusPlus(PolicyGradient):
    """REINFORCE++ (arXiv:2501.03262): returns whitened over the batch, with a divergence in the reward."""

    name: Literal["reinforce++"] = "reinforce++"
    estimator: Estimator = "reinforce++"
    kl_coef: float = Field(default=1e-3, ge=0)
    kl_form: KlForm = "kl"
    kl_in: Literal["loss", "reward"] = "reward"


class Gspo(PolicyGradient):
    """GSPO (arXiv:2507.18071): one importance ratio a sequence."""

    name: Literal["gspo"] = "gspo"
    surrogate: Surrogate = "gspo"
    clip_low: float = Field(default=3e-4, gt=0, lt=1)
    clip_high: float = Field(default=4e-4, gt=0)
    aggregation: Aggregation = "seq-mean-token-mean"


class Cispo(PolicyGradient):
    """CISPO (arXiv:2506.13585): the importance weight is clipped, no token loses its gradient."""

    name: Literal["cispo"] = "cispo"
    surrogate: Surrogate = "cispo"


class Sapo(PolicyGradient):
    """SAPO (arXiv:2511.20347): a soft gate instead of a clip."""

    name: Literal["sapo"] = "sapo"
    surrogate: Surrogate = "sapo"
    aggregation: Aggregation = "seq-mean-token-mean"


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
