"""The variables of a process, as it reads them."""

from __future__ import annotations

import pytest

from cepo.net.settings import PREFIX, Settings

SECRET = "hunter2"
"""Stands in for every secret."""


def surroundings(variables: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Settings:
    """What a service makes of its variables; one that it does not know is an error."""
    ours = {key: value for key, value in variables.items() if key.startswith(PREFIX)}
    assert {key.removeprefix(PREFIX).lower() for key in ours} <= set(Settings.model_fields)
    with monkeypatch.context() as patch:
        for key, value in ours.items():
            patch.setenv(key, value)
        return Settings.from_environment()
