"""Every method by name: the one switch."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Annotated, Literal

from pydantic import Field

from cepo.algo.base import Algorithm
from cepo.algo.cepo import Cepo
from cepo.algo.rlsd import Rlsd


class Grpo(Algorithm):
    """GRPO: every token of a response gets the same credit."""

    name: Literal["grpo"] = "grpo"


ALGORITHMS: Mapping[str, type[Algorithm]] = MappingProxyType({"grpo": Grpo, "rlsd": Rlsd, "cepo": Cepo})

AnyAlgorithm = Annotated[Grpo | Rlsd | Cepo, Field(discriminator="name")]
