"""What an environment is told and what it answers, and the failures that cost its trajectory."""

from __future__ import annotations

from typing import Annotated, Any, Protocol

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from cepo.errors import first_mistake

MAX_REPLY_BYTES = 2**20
"""Of one answer. A longer one is a failure."""
DEADLINE_SECONDS = 30.0
"""For one answer, of `reset` as of `step`."""


class EnvironmentFailure(Exception):
    """An environment failed: its trajectory ends without a reward. The text is the reason, in one line."""

    def __init__(self, reason: str, *, timed_out: bool = False) -> None:
        super().__init__(reason)
        self.timed_out = timed_out


class GivenTurn(BaseModel):
    """A turn that an environment adds to the conversation."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    role: Annotated[str, Field(pattern=r"^[a-z_]+$")] = "tool"
    content: str
    name: str = ""
    """The tool's name, for chat templates that show it."""
    tool_call_id: str = ""


class EnvironmentStep(BaseModel):
    """The answer to one turn of the policy: more turns, or the end of the trajectory."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    messages: list[GivenTurn] = []
    done: bool = False
    reward: Annotated[float, Field(allow_inf_nan=False)] = 0.0
    """Added to the reward of the trajectory."""


class Playing(Protocol):
    """An environment in the middle of one trajectory."""

    async def step(self, message: dict[str, Any]) -> EnvironmentStep:
        """Answers a turn of the policy.

        Raises:
            EnvironmentFailure: the environment raised an error, hung, crashed or answered nonsense.
        """
        ...


def step_of(answer: bytes) -> EnvironmentStep:
    """The answer of an environment to a turn, from JSON.

    Raises:
        EnvironmentFailure: it is not UTF-8, not JSON or not such an answer.
    """
    step = read_step(answer)
    if not step.done and not step.messages:
        raise EnvironmentFailure("it answered no messages and is not done, so the policy has nothing to answer")
    if step.done and step.messages:
        raise EnvironmentFailure("it answered messages and is done, so nobody would read them; return one of the two")
    if bad := [turn.role for turn in step.messages if turn.role == "assistant"]:
        raise EnvironmentFailure(f"it answered a message of the role {bad[0]!r}, which is the policy's")
    return step


def read_step(answer: bytes) -> EnvironmentStep:
    """An answer as it is: `reset` answers neither messages nor an end.

    Raises:
        EnvironmentFailure: it is not UTF-8, not JSON or not such an answer.
    """
    try:
        answer.decode()
        return EnvironmentStep.model_validate_json(answer)
    except UnicodeDecodeError as error:
        raise EnvironmentFailure(
            f"its answer is not UTF-8: byte {error.start} is 0x{answer[error.start]:02x}"
        ) from error
    except ValidationError as error:
        raise EnvironmentFailure(f"its answer is malformed: {first_mistake(error.errors(), unnamed='it')}") from error
