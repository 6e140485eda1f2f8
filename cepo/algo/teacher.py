"""Whose weights measure the evidence, as a run file says it (arXiv:2605.19436, Table 4)."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, model_validator


class TeacherSource(BaseModel):
    """The policy that sampled, the base model, a copy taken every so many steps, or a moving average."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    source: Literal["actor", "reference", "sync", "ema"] = "actor"
    sync_every: int | None = Field(default=None, ge=1)
    """sync: the policy after steps k, 2k, ...; the base model before."""
    ema_rate: float | None = Field(default=None, gt=0, le=1)
    """ema: share of the new weights, once a step; a decay of 0.95 is a rate of 0.05.

    The adapter's factors A and B are averaged apart, which is not the average of their product.
    """

    @model_validator(mode="after")
    def _meaningful(self) -> Self:
        for key, source in (("sync_every", "sync"), ("ema_rate", "ema")):
            given = getattr(self, key) is not None
            if given and self.source != source:
                raise ValueError(f'teacher.{key} is for source = "{source}", not "{self.source}"; leave it out')
            if not given and self.source == source:
                raise ValueError(f'teacher.{key} is missing: source = "{source}" needs it')
        return self
