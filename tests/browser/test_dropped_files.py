"""Files of other models' responses on the heat map page, and pages with many groups, in a real browser."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from cepo.cli import main
from cepo.credit import CreditReply, decisive
from tests.browser.chromium import Browser, needs_chromium

pytestmark = needs_chromium

QUESTION = "64 + 58 - 39 = ?"
RIGHT, WRONG = "64+58=122\n122-39=83\n\\boxed{83}", "64+58=131\n131-39=92\n\\boxed{92}"
ROW = {"question": QUESTION, "answer": "83"}
SHARED = [{"from": "human", "value": QUESTION}, {"from": "gpt", "value": WRONG}]
CHAT = [{"role": "user", "content": QUESTION}, {"role": "assistant", "content": WRONG}]

FILES: dict[str, str] = {
    "rows.jsonl": "".join(json.dumps(ROW | {"response": text}) + "\n" for text in (RIGHT, WRONG)),
    "rows.json": json.dumps([ROW | {"responses": [RIGHT, WRONG]}]),
    "table.csv": f'question,answer,output\n"{QUESTION}",83,"{RIGHT}"\r\n"{QUESTION}",83,"{WRONG}"\r\n',
    "requests.jsonl": json.dumps(
        {"messages": CHAT[:1], "responses": [{"text": RIGHT}, {"text": WRONG}], "positive": "83"}
    ),
    "sharegpt.json": json.dumps(
        [{"conversations": [SHARED[0], {"from": "gpt", "value": text}], "answer": "83"} for text in (RIGHT, WRONG)]
    ),
    "openai.jsonl": json.dumps(
        ROW | {"choices": [{"message": {"role": "assistant", "content": text}} for text in (RIGHT, WRONG)]}
    ),
    "verl.jsonl": json.dumps(
        {"prompt": CHAT[:1], "reward_model": {"ground_truth": "83"}, "completions": [RIGHT, WRONG]}
    ),
}


def drop(page: Browser, folder: Path, name: str, content: str) -> None:
    """Chooses a file and waits until it is scored or refused."""
    (folder / name).write_text(content, "utf-8")
    page.choose("#drop-file", folder / name)
    page.until(
        f"(s => s.includes(' problems of {name}') && !s.startsWith('Scored'))(document.getElementById('drop-status')"
        ".textContent) || document.getElementById('drop-error').textContent"
    )


def listed(page: Browser) -> list[list[str]]:
    return page.run(
        "[...document.querySelectorAll('#list-table tbody tr')].map(r => [...r.cells].map(c => c.innerText))"
    )


def text(page: Browser, selector: str) -> str:
    return page.run(f"document.querySelector({json.dumps(selector)}).textContent")


@pytest.mark.parametrize("name", FILES)
def test_a_file_of_any_form_gives_a_list_of_decisive_tokens(page: Browser, tmp_path: Path, name: str) -> None:
    drop(page, tmp_path, name, FILES[name])
    assert text(page, "#drop-error") == ""
    rows = listed(page)
    assert sorted(row[1] for row in rows) == ["correct", "wrong"]
    assert {row[1]: row[2] for row in rows} == {
        "wrong": "went wrong at 92 in line 2",
        "correct": "decided at 83 in line 2",
    }
    strengths = [float(row[3]) for row in rows]
    assert strengths == sorted(strengths, reverse=True)
    assert [row[4] for row in rows] == [QUESTION] * 2


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("log.txt", f"User: {QUESTION}\nAssistant: {WRONG}\n"),
        ("log.md", f"**User:** {QUESTION}\n\n**Assistant:** {WRONG}\n"),
        ("chat.json", json.dumps(CHAT)),
        ("chats.jsonl", json.dumps({"messages": CHAT}) + "\n"),
    ],
)
def test_a_chat_log_is_scored_with_the_answer_of_the_field(
    page: Browser, tmp_path: Path, name: str, content: str
) -> None:
    drop(page, tmp_path, name, content)
    assert 'has no right answer; add a column "answer", or give one for all rows above' in text(page, "#drop-error")
    page.type("#drop-answer", "83")
    page.run("document.getElementById('drop-file').value = ''")
    drop(page, tmp_path, name, content)
    assert text(page, "#drop-error") == ""
    assert [row[1:3] for row in listed(page)] == [["wrong", "went wrong at 92 in line 2"]]


def test_a_dropped_file_is_scored_and_a_row_opens_its_response(page: Browser) -> None:
    page.run(f"""(() => {{
        const data = new DataTransfer();
        data.items.add(new File([{json.dumps(FILES["rows.jsonl"])}], 'rows.jsonl'));
        for (const name of ['dragover', 'drop'])
            document.body.dispatchEvent(new DragEvent(name, {{ dataTransfer: data, bubbles: true, cancelable: true }}));
    }})()""")
    page.until("document.querySelectorAll('#list-table tbody tr').length === 2")
    page.until("document.getElementById('drop-status').textContent === '1 problems of rows.jsonl.'")
    page.run("(s => { s.value = 'wrong'; s.onchange(); })(document.getElementById('list-filter'))")
    assert [row[1] for row in listed(page)] == ["wrong"]
    page.click("#list-table button")
    assert page.run("state.response") == 1
    assert page.run("document.activeElement.textContent") == "9"
    assert "131-39=92" in text(page, ".tokens")


@pytest.mark.parametrize(
    ("name", "content", "says"),
    [
        ("a.jsonl", '{"answer": "1", "response": "2"}', "a.jsonl, row 1: has no question; name a column question"),
        ("a.jsonl", '{"question": "1", "answer": "2"}', "a.jsonl, row 1: has no response; name a column responses"),
        ("a.jsonl", '{"question": "1"}\n{"question": \n', "a.jsonl, line 2 is not JSON"),
        ("a.csv", "question,answer\n", "a.csv holds no rows"),
        ("a.txt", "once upon a time", "a.txt is neither JSON, JSON Lines or CSV nor a chat log"),
        ("a.json", json.dumps([CHAT[:1]]), "a.json, row 1: is a chat that does not end with a model's answer"),
        ("a.jsonl", json.dumps(ROW | {"response": "x" * 200_001}), "problem 1: responses.0.text"),
    ],
)
def test_a_file_that_cannot_be_scored_is_refused_with_its_row(
    page: Browser, tmp_path: Path, name: str, content: str, says: str
) -> None:
    drop(page, tmp_path, name, content)
    assert says in text(page, "#drop-error").replace("problem 1: response", "problem 1: response")


def test_markup_in_a_file_is_shown_as_text(page: Browser, tmp_path: Path) -> None:
    hostile = "<img src=x onerror=\"document.title='owned'\">"
    drop(
        page,
        tmp_path,
        "h.json",
        json.dumps([{"question": hostile, "answer": "2", "response": f"{hostile} \\boxed{{1}}"}]),
    )
    assert hostile in text(page, "#list-table")
    assert page.run("document.title") == "Token credit"


def test_the_file_of_many_groups_has_the_list_of_all_responses(page: Browser, tmp_path: Path, capsys: Any) -> None:
    """`cepo credit --html` of JSON Lines; the page finds the same decisive tokens as the terminal."""
    requests = [
        {"messages": CHAT[:1], "responses": [RIGHT, WRONG], "positive": "83"},
        {
            "messages": [{"role": "user", "content": "23 + 45 - 17 = ?"}],
            "positive": "51",
            "responses": ["caf\u00e9 \U0001f600 23+45=68\n68-17=41\n\\boxed{41}", "23+45=68\n68-17=51\n\\boxed{51}"],
        },
    ]
    (tmp_path / "requests.jsonl").write_text("".join(json.dumps(each) + "\n" for each in requests))
    out = tmp_path / "out.html"
    assert main(["credit", str(tmp_path / "requests.jsonl"), "--html", str(out)]) == 0
    replies = [CreditReply.model_validate_json(line) for line in capsys.readouterr().out.splitlines()]
    page.open(out.as_uri())
    told = {
        f"{at + 1}.{number + 1}": re.sub("`", "", decisive.told(reply, number))
        for at, reply in enumerate(replies)
        for number in range(2)
    }
    assert {row[0]: row[2] for row in listed(page)} == told
    assert page.run("document.getElementById('drop').hidden") is True
    page.click("#list-table tbody tr:last-child button")
    saved = tmp_path / "saved.html"
    rows = listed(page)
    saved.write_text(page.run("pageWithData()"), "utf-8")
    page.open(saved.as_uri())
    assert listed(page) == rows


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_list_fits_a_phone(page: Browser, tmp_path: Path, scheme: str) -> None:
    page.scheme(scheme)
    page.size(390, 800, phone=True)
    drop(page, tmp_path, "rows.jsonl", FILES["rows.jsonl"])
    assert page.run("document.documentElement.scrollWidth") == 390
