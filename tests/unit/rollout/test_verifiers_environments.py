"""Environments of the `verifiers` package: one that it ships, and one that a user writes with it."""

from __future__ import annotations

import sys
from types import ModuleType
from typing import Any

import pytest

from services.rollout.environments.adapted import adapted, loaded
from services.rollout.environments.serving import load
from tests.unit.rollout.test_environments import said

vf: Any = pytest.importorskip("verifiers", reason="the package is not installed")
if not hasattr(vf, "MultiTurnEnv"):
    pytest.skip("this version of verifiers has no environments that answer turns", allow_module_level=True)
ROW = {"question": "Guess my number.", "answer": "7"}


def installed(monkeypatch: pytest.MonkeyPatch, name: str, environment: Any) -> str:
    """Makes an environment loadable under a name, as its package would."""
    from datasets import Dataset

    module = ModuleType(name.replace("-", "_"))
    module.load_environment = lambda: environment(Dataset.from_list([ROW]))  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    loaded.cache_clear()
    return name


def game(dataset: Any) -> Any:
    """A guessing game of the package's class for turns, with a rubric of two functions."""

    class Game(vf.MultiTurnEnv):
        async def setup_state(self, state: Any) -> Any:
            state["number"] = int(state["answer"])
            return state

        async def env_response(self, messages: Any, state: Any, **_: Any) -> Any:
            guess = int(messages[-1].content)
            if guess == state["number"]:
                state["final_env_response"] = [{"role": "user", "content": "right"}]
                return state["final_env_response"]
            return [{"role": "user", "content": "higher" if guess < state["number"] else "lower"}]

    async def won(state: Any) -> float:
        return float(state.get("final_env_response") is not None)

    async def named(completion: Any, answer: str) -> float:
        return float(any(str(message.content) == answer for message in completion))

    return Game(max_turns=4, dataset=dataset, rubric=vf.Rubric(funcs=[won, named], weights=[1.0, 0.5]))


def tools(dataset: Any) -> Any:
    """The package's own environment of tools."""

    def double(x: int) -> int:
        """Doubles a number."""
        return 2 * x

    async def right(completion: Any) -> float:
        return float(completion[-1].content == "8")

    return vf.ToolEnv(tools=[double], max_turns=5, dataset=dataset, rubric=vf.Rubric(funcs=[right]))


async def test_a_game_is_played_to_its_end_and_scored_by_its_rubric(monkeypatch: pytest.MonkeyPatch) -> None:
    environment = adapted(installed(monkeypatch, "guess-game", game))()
    await environment.reset(ROW)
    told = [await environment.step(said(guess)) for guess in ("3", "9", "7")]
    assert told == [
        ([{"role": "user", "content": "higher"}], 0.0), ([{"role": "user", "content": "lower"}], 0.0), (True, 1.5)
    ]  # fmt: skip


async def test_a_trajectory_ends_at_the_environments_own_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    environment = adapted(installed(monkeypatch, "guess-game", game))()
    await environment.reset(ROW)
    assert [(await environment.step(said(guess)))[0] is True for guess in "1234"] == [False, False, False, True]


async def test_tool_calls_reach_the_tools_that_the_package_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    environment = adapted(installed(monkeypatch, "doubling", tools))()
    await environment.reset({"question": "Double 4.", "answer": "8"})
    call = '<tool_call>\n{"name": "double", "arguments": {"x": 4}}\n</tool_call>'
    assert await environment.step(said(call)) == ([{"role": "tool", "content": "8", "tool_call_id": "call_0"}], 0.0)
    assert await environment.step(said("8")) == (True, 1.0)


def test_the_name_in_a_run_file_loads_it(monkeypatch: pytest.MonkeyPatch) -> None:
    name = installed(monkeypatch, "guess-game", game)
    assert list(load([f"verifiers:{name}"])) == ["verifiers:guess-game"]
