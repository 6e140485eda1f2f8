"""What a response earns, as a run file asks for it and as a task carries it; the formulas are the verifier's."""

from __future__ import annotations

import re
from typing import Self

from pydantic import ConfigDict, Field, field_validator, model_validator

from cepo.messages.vocabulary import Contract, changed

_FUNCTION = re.compile(r"[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*:[A-Za-z_]\w*", re.ASCII)


class Reward(Contract):
    """Weighted accuracy and format, less the penalties, plus what the user's functions return.

    A part that is 0 is off; the default is the paper's rule, R in {0, 1}.
    """

    model_config = ConfigDict(strict=True, allow_inf_nan=False, use_attribute_docstrings=True)

    accuracy: float = Field(default=1.0, ge=0)
    """Weight of a right answer; 0.9 in the runs of the paper's code, with 0.1 for the format."""
    format: float = Field(default=0.0, ge=0)
    """Weight of marking an answer, right or wrong."""
    overlong_buffer: int = Field(default=0, ge=0)
    """Tokens before `max_tokens` in which the overlong penalty grows to its full size (DAPO: 4096 of 20480)."""
    overlong_factor: float = Field(default=1.0, ge=0)
    """Overlong penalty of a response that fills `max_tokens`."""
    length: float = Field(default=0.0, ge=0)
    """Weight of being shorter than the others of the group (Kimi k1.5)."""
    repetition: float = Field(default=0.0, ge=0)
    """Penalty of a response that is nothing but repetition."""
    repetition_ngram: int = Field(default=20, ge=1)
    """Tokens in a row that count as repeated when they come again."""
    functions: tuple[str, ...] = Field(default=(), strict=False)
    """User functions, `module:function`; each returns what it adds."""
    scorer: str = Field(default="", pattern=r"^$|^https?://[^\s,]+$")
    """URL that gives every reasoning step a number, for methods that want them; not in the reward."""

    @model_validator(mode="after")
    def _no_idle_option(self) -> Self:
        for key, of in (("overlong_factor", "overlong_buffer"), ("repetition_ngram", "repetition")):
            if getattr(self, of) == 0 and changed(self, key):
                raise ValueError(
                    f"reward.{key}={getattr(self, key)} has no effect while reward.{of} is 0; set that too"
                )
        return self

    @field_validator("functions")
    @classmethod
    def _named(cls, functions: tuple[str, ...]) -> tuple[str, ...]:
        for name in functions:
            if not _FUNCTION.fullmatch(name):
                raise ValueError(f"reward.functions={name!r}: write module:function, as in my_rewards:brief")
        if len(set(functions)) < len(functions):
            raise ValueError(f"reward.functions={list(functions)} names a function twice; leave one out")
        return functions
