"""`cepo credit` prints the reply of `POST /v1/credit` for a file, and one line for invalid input."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM

import cepo.tiny
from cepo.cli import main
from cepo.service import adapters

BODY = {
    "messages": [{"role": "user", "content": "23 + 45 - 17 = ?"}],
    "responses": [{"text": "23+45=68\n68-17=51\n\\boxed{51}", "reward": 1.0}],
    "positive": "51",
    "negative": "41",
    "method": {"name": "cepo", "lam": 0.5, "eps_w": 0.3},
}


def credit(tmp_path: Path, capsys: Any, body: Any, *options: str) -> tuple[int, Any, str]:
    """The exit status, the printed JSON and standard error."""
    file = tmp_path / "request.json"
    file.write_text(body if isinstance(body, str) else json.dumps(body))
    code = main(["credit", str(file), *options])
    printed = capsys.readouterr()
    return code, json.loads(printed.out) if printed.out else None, printed.err


def test_a_file_is_answered_as_rest_would(tmp_path: Path, capsys: Any) -> None:
    code, reply, errors = credit(tmp_path, capsys, BODY)
    assert (code, errors) == (0, "")
    (response,) = reply["responses"]
    assert (response["advantage"], response["advantage_from"]) == (1.0, "single")
    assert reply["method"]["eps_w"] == 0.3
    assert max(response["tokens"], key=lambda token: token["weight"])["text"] == "5"
    code, replies, _ = credit(tmp_path, capsys, [BODY, BODY])
    assert (code, replies) == (0, [reply, reply])


def test_what_is_left_out_is_graded_and_chosen(tmp_path: Path, capsys: Any) -> None:
    body = {key: BODY[key] for key in ("messages", "positive")}
    responses = [{"text": "\\boxed{51.0}"}, {"text": "\\boxed{41}"}]
    _, reply, _ = credit(tmp_path, capsys, body | {"responses": responses})
    assert [r["grade"]["outcome"] for r in reply["responses"]] == ["correct", "wrong"]
    assert [r["negative"] for r in reply["responses"]] == [
        {"context": "rejected", "answer": "41", "source": 1, "reason": "asked"}
    ] * 2


def test_methods_are_compared_and_drawn(tmp_path: Path, capsys: Any) -> None:
    out = tmp_path / "map.html"
    code, reply, errors = credit(tmp_path, capsys, BODY, "--compare", "rlsd,cepo", "--html", str(out))
    assert (code, errors) == (0, f"heat map written to {out}\n")
    assert [reply["method"], *(other["method"] for other in reply["compared"])] == [
        {"name": name, "lam": 0.5, "eps_w": 0.3, "no_negative": "rlsd", "exclude_self": False}
        for name in ("rlsd", "cepo")
    ]
    assert out.read_text().startswith("<!doctype html>")


def test_an_adapter_is_scored_with_and_named(tmp_path: Path, capsys: Any) -> None:
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_pretrained(cepo.tiny.path(), dtype=torch.float32)
    get_peft_model(model, LoraConfig(r=4, target_modules=["q_proj"], init_lora_weights=False)).save_pretrained(tmp_path)
    capsys.readouterr()
    body = BODY | {"compare": [{"policy": {"version": 0}}]}
    code, reply, _ = credit(tmp_path, capsys, body, "--adapter", str(tmp_path))
    assert code == 0
    assert reply["policy"]["sha256"] == adapters.digest(adapters.read(tmp_path))
    assert reply["compared"][0]["policy"] == {"version": 0, "sha256": ""}
    ours, base = (each["responses"][0]["tokens"][0]["logp_plain"] for each in (reply, reply["compared"][0]))
    assert ours != base


@pytest.mark.parametrize(
    ("body", "options", "says"),
    [
        (BODY | {"positive": ""}, (), "positive: "),
        (BODY | {"responses": [{"text": "x", "reward": 1.0}, {"text": 1}]}, (), "responses.1.text: "),
        ([BODY, BODY | {"method": {"name": "ppo"}}], (), "1.method.name: "),
        ('{"messages": ', (), "the file: Invalid JSON"),
        (BODY | {"responses": [{"token_ids": [512], "reward": 1.0}]}, (), "responses.0.token_ids.0: 512 is outside"),
        (
            BODY | {"policy": {"version": 1, "sha256": "ab" * 32}},
            (),
            "policy: v000001-abababababab is not loaded; give its folder with --adapter",
        ),
        (BODY, ("--compare", "rlsd,ppo"), "--compare: 'ppo' is no method"),
        (BODY, ("--adapter", "absent"), "--adapter absent: no adapter_config.json"),
        (BODY, ("--model", "./absent"), "no model folder './absent'"),
        (BODY, ("--model", "./tests"), "); give a Hugging Face name or a model folder"),
        (BODY, ("--html", "/absent/x.html"), "--html /absent/x.html cannot be written"),
    ],
    ids=lambda value: value if isinstance(value, str) and value.endswith(": ") else None,
)
def test_a_mistake_is_one_line_and_exit_2(
    tmp_path: Path, capsys: Any, body: Any, options: tuple[str, ...], says: str
) -> None:
    code, reply, errors = credit(tmp_path, capsys, body, *options)
    assert (code, reply) == (2, None)
    assert says in errors
    assert errors.startswith("cepo: ")
    assert errors.count("\n") == 1


def test_an_adapter_of_something_else_is_refused(tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    (tmp_path / "adapter_model.safetensors").write_bytes(b"x")
    code, _, errors = credit(tmp_path, capsys, BODY, "--adapter", str(tmp_path))
    assert (code, "--adapter: not a LoRA adapter of this model" in errors) == (2, True)


@pytest.mark.parametrize("command", ["credit", "verify"])
def test_a_file_that_is_not_there_or_no_text_is_named_once(command: str, tmp_path: Path, capsys: Any) -> None:
    assert main([command, "absent.json"]) == 2
    assert capsys.readouterr().err == "cepo: absent.json cannot be read: No such file or directory\n"
    (tmp_path / "image").write_bytes(b"{}\xff")
    assert main([command, str(tmp_path / "image")]) == 2
    assert capsys.readouterr().err == f"cepo: {tmp_path / 'image'} cannot be read: it is not UTF-8 at byte 2\n"


def test_verify_reads_standard_input(capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = b'\xef\xbb\xbf{"response": "\\\\boxed{1}", "answer": "1"}\n'
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(rows)))
    assert main(["verify", "-"]) == 0
    assert json.loads(capsys.readouterr().out)["outcome"] == "correct"
