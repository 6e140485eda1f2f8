"""Whose weights measure the evidence, as a run file says it (arXiv:2605.19436, Table 4)."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator


class TeacherSource(BaseModel):
    """The policy that sampled, the base model, a copy taken every so many steps, a moving average, or a policy held
    near the base model.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    source: Literal["actor", "reference", "sync", "ema", "trust_region"] = "actor"
    sync_every: int | None = Field(default=None, ge=1)
    """sync: the policy after steps k, 2k, ...; the base model before."""
    ema_rate: float | None = Field(default=None, gt=0, le=1)
    """ema: share of the new weights, once a step; a decay of 0.95 is a rate of 0.05.

    The adapter's factors A and B are averaged apart, which is not the average of their product.
    """
    actor_share: float | None = Field(default=None, gt=0, lt=1)
    """trust_region: share of the actor's logits in the teacher's; the rest are the base model's (arXiv:2601.20802).

    The base model is a forward pass of its own.
    """

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
        """Share of the base model's logits in the teacher's."""
        return 0.0 if self.actor_share is None else 1.0 - self.actor_share
