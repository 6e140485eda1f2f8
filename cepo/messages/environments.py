"""A task's environment, and what it made of a response."""

from __future__ import annotations

from pydantic import Field

from cepo.messages.vocabulary import Contract


class Environment(Contract):
    """What answers the turns of the policy, so that a response has several."""

    name: str = Field(min_length=1)
    """`module:Class`, or a URL that answers `POST /step`."""
    row: str
    """The problem's row in its data set, a JSON object."""
    max_turns: int = Field(ge=1)
    """Largest number of turns that the policy takes."""


class Played(Contract):
    """What an environment made of a response."""

    turns: int = Field(ge=0)
    """Number of turns that the policy took."""
    reward: float = Field(default=0.0, allow_inf_nan=False)
    """Sum of the environment's rewards."""
    failure: str = ""
    """Why the environment ended the response, in one line; empty: it did not fail."""
    timed_out: bool = False
    """Whether it failed because it did not answer in time."""
