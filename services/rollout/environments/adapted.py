"""Environments of the `verifiers` package (https://pypi.org/project/verifiers/), by name.

An environment of that package drives a rollout and asks a client for the model's turns. Here the rollout stage drives
it: the state is made of the row, each turn of the policy is a step of the state's trajectory, the environment's next
prompt holds its answer, and its rubric scores the state at the end.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from functools import cache, partial
from typing import Any

PREFIX = "verifiers:"
_TOOL_CALL = re.compile(r"<tool_call>(.*?)</tool_call>", re.DOTALL)


class VerifiersEnvironment:
    """One trajectory in a multi-turn environment of `verifiers`, such as `verifiers:wordle`."""

    def __init__(self, name: str) -> None:
        self._environment = loaded(name)

    async def reset(self, row: dict[str, Any]) -> None:
        """Makes the state of a row: its columns `question` or `prompt`, `answer`, `info` and `task`."""
        environment = self._environment
        prompt = row.get("prompt") or [{"role": "user", "content": row["question"]}]
        state = await environment.init_state({"example_id": 0, **row, "prompt": prompt}, _no_client(), "policy")
        self._state = await environment.setup_state(state) or state
        self._prompt = await environment.get_prompt_messages(self._state)

    async def step(self, message: dict[str, Any]) -> tuple[list[dict[str, Any]] | bool, float]:
        """Adds a turn; returns the environment's messages, or the rubric's reward at the end."""
        environment, state = self._environment, self._state
        turn = _turn(message["content"])
        await environment.add_trajectory_step(state, _step(self._prompt, turn, state))
        if not await environment.is_completed(state):
            prompt = await environment.get_prompt_messages(state)
            if state.get("final_env_response") is None:
                answer, self._prompt = prompt[len(self._prompt) + 1 :], prompt
                return [_plain(each) for each in answer], 0.0
        await environment.render_completion(state)
        await environment.rubric.score_rollout(state)
        return True, float(state["reward"])


def adapted(name: str) -> Callable[[], VerifiersEnvironment]:
    """Makes a trajectory in the environment of that name, which is loaded now.

    Raises:
        Exception: the package or the environment is not installed, or it has no turns.
    """
    loaded(name)
    return partial(VerifiersEnvironment, name)


@cache
def loaded(name: str) -> Any:
    """An environment of `verifiers` by its name, once in a process."""
    import verifiers

    environment = verifiers.load_environment(name)
    if not hasattr(environment, "env_response") and not hasattr(environment, "get_prompt_messages"):
        raise TypeError(f"{type(environment).__name__} is no MultiTurnEnv")
    return environment


def _turn(content: str) -> Any:
    """A turn as the package's message, with the tool calls that the policy wrote in the form of Qwen3."""
    from verifiers.types import AssistantMessage, ToolCall

    calls = []
    for at, match in enumerate(_TOOL_CALL.finditer(content)):
        try:
            call = json.loads(match[1])
            calls.append(ToolCall(id=f"call_{at}", name=call["name"], arguments=json.dumps(call.get("arguments", {}))))
        except (ValueError, LookupError, TypeError):
            continue  # the environment sees a turn without this call, as with any server
    return AssistantMessage(content=content, tool_calls=calls or None)


def _step(prompt: Any, turn: Any, state: Any) -> Any:
    from verifiers.types import TrajectoryStep

    return TrajectoryStep(
        prompt=prompt,
        completion=[turn],
        response=None,
        tokens=None,
        reward=None,
        advantage=None,
        is_truncated=False,
        trajectory_id=state["trajectory_id"],
        extras={},
    )


def _plain(message: Any) -> dict[str, Any]:
    """A message of the package as a turn of the conversation."""
    fields = message if isinstance(message, dict) else message.model_dump(exclude_none=True)
    content = fields.get("content") or ""
    if isinstance(content, list):
        content = "".join(part.get("text", "") for part in content)
    kept = {key: fields[key] for key in ("name", "tool_call_id") if fields.get(key)}
    return {"role": fields["role"], "content": content, **kept}


def _no_client() -> Any:
    """A client that is never asked: the rollout stage samples the policy's turns."""
    from verifiers.clients import Client

    methods = dict.fromkeys(getattr(Client, "__abstractmethods__", ()))
    unasked: Any = type("UnaskedClient", (Client,), methods)
    return unasked.__new__(unasked)
