"""The settings that a service reads from its environment variables."""

from __future__ import annotations

import pytest

from cepo.net.settings import PREFIX, Settings

SECRET = "hunter2"
"""The value of every secret in these tests."""


def settings_of(variables: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Settings:
    """Parses the CEPO_ variables as a service does.

    Raises:
        AssertionError: a variable is no setting.
    """
    ours = {key: value for key, value in variables.items() if key.startswith(PREFIX)}
    assert {key.removeprefix(PREFIX).lower() for key in ours} <= set(Settings.model_fields)
    with monkeypatch.context() as patch:
        for key, value in ours.items():
            patch.setenv(key, value)
        return Settings.from_environment()
