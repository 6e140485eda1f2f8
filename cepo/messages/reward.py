"""The reward of a response: the section [reward] of a run file, which every task carries to the verifier."""

from __future__ import annotations

from typing import Self

from pydantic import ConfigDict, Field, field_validator, model_validator

from cepo.messages.vocabulary import Contract, changed
from cepo.names import require_functions


class Reward(Contract):
    """The reward of a response: weighted accuracy and format, minus the penalties, plus the environment's reward and
    the values of the functions.

    Lengths count the tokens that the policy sampled; tool results and user turns between its turns do not count.
    A term with weight 0 is disabled. The default is the reward of the paper, R in {0, 1}.
    """

    model_config = ConfigDict(strict=True, allow_inf_nan=False, use_attribute_docstrings=True)

    accuracy: float = Field(default=1.0, ge=0)
    """Weight of a correct answer. The runs of the paper's code have 0.9, and 0.1 for the format."""
    wrong: float = Field(default=0.0, le=0)
    """Reward of a response without a correct answer. DAPO has -1 (arXiv:2503.14476)."""
    format: float = Field(default=0.0, ge=0)
    """Weight of marking the answer, whether it is correct or not."""
    overlong_buffer: int = Field(default=0, ge=0)
    """Number of tokens before `max_tokens` over which the overlong penalty grows to its full size. DAPO has 4096 of
    20480."""
    overlong_factor: float = Field(default=1.0, ge=0)
    """Overlong penalty of a response that fills `max_tokens` with sampled tokens."""
    length: float = Field(default=0.0, ge=0)
    """Weight of the length term, which favours responses that are shorter than the others of the group (Kimi k1.5)."""
    repetition: float = Field(default=0.0, ge=0)
    """Penalty of a response that consists only of repeated n-grams."""
    repetition_ngram: int = Field(default=20, ge=1)
    """Length of the n-grams whose repetition is counted, in tokens."""
    judge: str = Field(default="", pattern=r"^(environment)?$")
    """What decides whether a response is correct. "": the verifier, which compares its answer with the reference.
    "environment": the accuracy is the environment's reward, cut to [0, 1], also on held-out problems."""
    environment: float = 0.0
    """Weight of the environment's reward, as it is, beside the accuracy."""
    functions: tuple[str, ...] = Field(default=(), strict=False)
    """User functions as `module:function`. Each returns a number that is added to the reward."""
    scorer: str = Field(default="", pattern=r"^$|^https?://[^\s,]+$")
    """URL that scores reasoning steps, for methods that use step scores. The scores are not added to the reward."""

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
        require_functions(functions, "reward.functions", "my_rewards:brief")
        return functions
