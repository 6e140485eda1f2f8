"""`cepo check` on the contexts that the model reads, and on how responses are sampled."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import cepo.tiny
from cepo.cli import main
from cepo.cli.preflight.examples import ExamplePrompt
from tests.helpers.factories import RUNS

TINY = str(RUNS / "tiny_cepo.toml")


def checked(capsys: pytest.CaptureFixture[str], *settings: str, code: int = 0) -> Any:
    changed = [word for setting in settings for word in ("--set", setting)]
    assert main(["check", TINY, "--json", *changed]) == code
    return json.loads(capsys.readouterr().out)


def texts(reply: Any, state: str) -> list[str]:
    return [finding["text"] for finding in reply["findings"] if finding["state"] == state]


def test_a_hint_that_is_not_in_the_text_is_not_marked() -> None:
    prompt = ExamplePrompt("r+", "question\nIt is 7\n", "It is 7", 5)
    assert prompt.parts == ("question\n", "It is 7", "")
    assert replace(prompt, hint="It is 8").parts == ("question\nIt is 7", "", "")
    assert replace(prompt, hint="").parts == ("question\nIt is 7", "", "")


def test_a_template_that_drops_the_hint_or_the_system_message_is_refused(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    model = tmp_path / "model"
    shutil.copytree(cepo.tiny.path(), model)
    template = (model / "chat_template.jinja").read_text()
    users = template.replace("in messages", "in messages if message.role != 'system'")
    (model / "chat_template.jinja").write_text(users)
    assert checked(capsys, f"model.path={model}")["ok"] is True
    for setting in ("data.placement=system", "data.system='Be brief.'"):
        error = checked(capsys, f"model.path={model}", setting, code=2)["error"]
        assert error["check"] == "data"
        assert "row 0: the model's chat template drops the system message " in error["text"]


def test_an_argument_that_the_template_does_not_read_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    error = checked(capsys, "data.template.enable_thinking=false", code=2)["error"]
    assert error["text"].startswith("data.template.enable_thinking has no effect: the chat template of model ")
    error = checked(capsys, "data.enable_thinking=false", code=2)["error"]
    assert (
        "config key data.enable_thinking is unknown; write data.template = {enable_thinking = ...}; " in error["text"]
    )


def test_a_cut_at_another_temperature_is_noted(capsys: pytest.CaptureFixture[str]) -> None:
    reply = checked(capsys, "sampling.top_k=5")
    assert texts(reply, "note") == []
    assert "temperature 1, top_k=5; a response ends with <|im_end|>" in texts(reply, "ok")
    (note,) = texts(checked(capsys, "sampling.top_k=5", "sampling.temperature=0.7"), "note")
    assert note.startswith("sampling.top_k=5 at temperature 0.7: the engine's log-probs are of the kept tokens alone")
