"""The weights that the teacher scores with, as a run file names them (arXiv:2605.19436, Table 4)."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator


class TeacherSource(BaseModel):
    """The weights that measure the evidence: the sampling policy's, the base model's, or a mixture of both."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )

    source: Literal["actor", "reference", "sync", "ema", "trust_region"] = "actor"
    """actor: the policy that sampled (CEPO's paper); reference: the base model; sync: a copy of the policy, renewed
    every `sync_every` steps; ema: a moving average of the policy; trust_region: a mixture of the policy's and the base
    model's logits."""
    sync_every: int | None = Field(default=None, ge=1)
    """For sync: the number k of steps between copies. The teacher is the base model until step k has ended, then the
    policy after steps k, 2k, ... RLSD's paper has 10, its released script 20."""
    ema_rate: float | None = Field(default=None, gt=0, le=1)
    """For ema: the share of the new weights in each average, taken once a step. A decay of 0.95 is a rate of 0.05,
    which SDPO uses. The adapter's factors A and B are averaged separately, which is not the average of their
    product."""
    actor_share: float | None = Field(default=None, gt=0, lt=1)
    """For trust_region: the share of the policy's logits in the teacher's logits; the base model's logits, which cost a
    forward pass of their own, have the rest (SDPO, arXiv:2601.20802)."""

    @model_validator(mode="after")
    def _meaningful(self) -> Self:
        for key, source in (("sync_every", "sync"), ("ema_rate", "ema"), ("actor_share", "trust_region")):
            given = getattr(self, key) is not None
            if given and self.source != source:
                raise ValueError(f'teacher.{key} is for source = "{source}", not "{self.source}"; leave it out')
            if not given and self.source == source:
                raise ValueError(f'teacher.{key} is missing: source = "{source}" needs it')
        return self

    @property
    def base_share(self) -> float:
        """The share of the base model's logits in the teacher's."""
        return 0.0 if self.actor_share is None else 1.0 - self.actor_share
