"""`cepo credit` on a terminal, and its JSON Lines."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from cepo.cli import credit_view, main
from cepo.credit import CreditReply
from tests.helpers.terminals import on_a_terminal, plain

ROOT = Path(__file__).parents[3]
SUM = ROOT / "docs" / "sum.json"
LINE = {
    "messages": [{"role": "user", "content": "23 + 45 - 17 = ?"}],
    "responses": ["23+45=68\n68-17=51\n\\boxed{51}", "23+45=68\n68-17=41\n\\boxed{41}"],
    "positive": "51",
}


@pytest.fixture(scope="module")
def screen() -> str:
    """What a terminal shows for docs/sum.json."""
    code, text = on_a_terminal(lambda: main(["credit", str(SUM)]))
    assert code == 0
    return text


def test_a_terminal_shows_rlsd_above_cepo_and_where_a_response_was_decided(screen: str) -> None:
    text = plain(screen)
    assert not text.lstrip().startswith("{")
    second = text.split("response 1: ")[1].split("response 2: ")[0]
    assert second.startswith("wrong, reward 0, advantage -0.50, r+ 83, r- 92 from response 1")
    assert second.index("RLSD") < second.index("CEPO") < second.index("log p(r+)")
    assert second.rstrip().endswith("went wrong at `92` in line 2")
    assert "decided at `83` in line 2" in text.split("response 1: ")[0]
    assert len(text) < 6000


def test_decisive_tokens_are_red_and_rlsd_is_paler(screen: str) -> None:
    second = screen.split("response 1: ")[1].split("response 2: ")[0]
    rlsd, cepo = second.split("RLSD")[1].split("log p")[0].split("CEPO")
    strongest = credit_view._style(-1.0).bgcolor
    assert strongest is not None
    red = ";".join(map(str, strongest.get_truecolor()))
    assert f"48;2;{red}m9" in cepo
    assert f"48;2;{red}m" not in rlsd


def test_json_on_a_terminal_is_what_a_pipe_gets(capsys: Any) -> None:
    _, shown = on_a_terminal(lambda: main(["credit", str(SUM), "--json"]))
    assert main(["credit", str(SUM)]) == 0
    assert shown == capsys.readouterr().out
    assert json.loads(shown)["compared"] == []


def test_json_lines_are_answered_by_json_lines(tmp_path: Path, capsys: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "requests.jsonl"
    file.write_text(f"{json.dumps(LINE)}\n\n{json.dumps(LINE | {'method': 'rlsd'})}\n")
    assert main(["credit", str(file)]) == 0
    first, second = map(json.loads, capsys.readouterr().out.splitlines())
    assert (first["method"]["name"], second["method"]["name"]) == ("cepo", "rlsd")
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(json.dumps(LINE).encode())))
    assert main(["credit", "-"]) == 0
    assert json.loads(capsys.readouterr().out) == first


@pytest.mark.parametrize(
    ("second", "says"),
    [
        (LINE | {"positive": ""}, "line 2: positive: "),
        (LINE | {"responses": [{"txt": "x"}]}, "line 2: responses.0.txt: unknown key; did you mean `text`?"),
        (LINE | {"responses": [{"token_ids": [99999]}]}, "line 2: responses.0.token_ids.0: 99999 is outside"),
    ],
)
def test_a_mistake_names_its_line(tmp_path: Path, capsys: Any, second: dict[str, Any], says: str) -> None:
    file = tmp_path / "requests.jsonl"
    file.write_text(f"{json.dumps(LINE)}\n{json.dumps(second)}\n")
    assert main(["credit", str(file)]) == 2
    assert says in capsys.readouterr().err


def test_the_rollouts_of_a_run_are_requests_for_its_model_and_method(tmp_path: Path, capsys: Any) -> None:
    (tmp_path / "rollouts").mkdir()
    (tmp_path / "config.toml").write_text('[model]\npath = "./absent"\n[algorithm]\nname = "rlsd"\neps_w = 0.3\n')
    samples = [
        {"text": "51", "token_ids": [20, 16], "reward": 1.0, "outcome": "correct"},
        {"text": "41", "token_ids": [19, 16], "reward": None, "outcome": "timeout"},
    ]
    group = {"group": "r/0/0", "prompt": LINE["messages"], "images": [], "answer": "51", "samples": samples}
    file = tmp_path / "rollouts" / "step-000000.jsonl"
    file.write_text(f"{json.dumps(group)}\n{json.dumps(group)}\n")
    assert main(["credit", str(file)]) == 2
    assert "no model folder './absent'" in capsys.readouterr().err
    import cepo.tiny

    assert main(["credit", str(file), "--model", str(cepo.tiny.path())]) == 0
    replies = [CreditReply.model_validate_json(line) for line in capsys.readouterr().out.splitlines()]
    assert [[t.id for t in response.tokens] for response in replies[0].responses] == [[20, 16], [19, 16]]
    assert (replies[1].method.name, replies[1].method.eps_w, replies[1].responses[0].reward) == ("rlsd", 0.3, 1.0)


def test_a_response_cannot_command_the_terminal(tmp_path: Path) -> None:
    file = tmp_path / "request.json"
    file.write_text(json.dumps(LINE | {"responses": [{"text": "\x1b]0;title\x07 \x9b2J \\boxed{51}", "reward": 1.0}]}))
    _, text = on_a_terminal(lambda: main(["credit", str(file), "--compare", "grpo"]))
    assert "\x1b]" not in text
    assert "\x9b" not in text
    assert "\x07" not in text
    assert "\ufffd" in text
