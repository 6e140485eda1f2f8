"""`data.template` reaches the processes of every service, and a container that reads the run file."""

from __future__ import annotations

import pytest

from cepo.errors import UserError
from cepo.net.settings import Settings
from cepo.run.deployment import SPECS
from tests.helpers.factories import make_config

ARGUMENTS = {"enable_thinking": False, "style": "\u20ac", "depth": {"a": [1, 2.5]}}


def test_the_environment_of_a_service_holds_the_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    config = make_config('data.template={enable_thinking=false, style="\u20ac", depth={a=[1, 2.5]}}')
    for name in ("rollout", "teacher"):
        settings = SPECS[name].settings(config, Settings())
        for key, value in settings.to_environment().items():
            monkeypatch.setenv(key, value)
        assert Settings.from_environment(name).template == settings.template == ARGUMENTS


def test_without_arguments_there_are_none() -> None:
    assert SPECS["rollout"].settings(make_config(), Settings()).template == {}


def test_arguments_that_are_no_object_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CEPO_CHAT_TEMPLATE_ARGUMENTS", "[1]")
    with pytest.raises(UserError, match=r"CEPO_CHAT_TEMPLATE_ARGUMENTS='\[1\]': .*must be a JSON object"):
        Settings.from_environment()
