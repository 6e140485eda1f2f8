"""POST /v1/credit and GET / over HTTP: formats, errors and the OpenAPI schema."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given, settings, strategies as st

from cepo.algo.variants import ALGORITHMS
from cepo.credit import CreditReply
from cepo.net.bodies import MAX_BODY_BYTES
from services.teacher.grading import Grader
from services.teacher.page import live_page
from tests.helpers.credit import RIGHT, WRONG, grade, make_body, make_credit, tiny_scorer, toy_grade, web

AUTHORIZED = {"Authorization": "Bearer secret"}


async def post(body: Any, grader: Grader = grade, **headers: str) -> httpx.Response:
    async with web(make_credit(grader=grader)) as client:
        return await client.post("/v1/credit", json=body, headers=headers)


async def test_one_request_or_a_list_is_answered_in_kind() -> None:
    one = (await post(make_body())).json()
    assert (await post([make_body(), make_body(positive="50")])).json()[0] == one
    assert set(one["responses"][0]["tokens"][0]) == {
        "id",
        "text",
        "start",
        "end",
        "logp_plain",
        "logp_positive",
        "logp_negative",
        "delta",
        "weight",
        "weight_clipped",
        "clipped",
        "advantage",
    }


async def test_a_text_and_the_name_of_a_method_stand_for_their_objects() -> None:
    whole = make_body(responses=[{"text": RIGHT}, {"text": WRONG}], method={"name": "rlsd"})
    whole["compare"] = [{"method": {"name": "cepo"}}]
    short = {**whole, "responses": [RIGHT, WRONG], "method": "rlsd", "compare": [{"method": "cepo"}]}
    reply = await post(short)
    assert reply.status_code == 200
    assert reply.json() == (await post(whole)).json()


async def test_many_come_as_json_lines_and_a_refusal_stops_nothing() -> None:
    bodies = [make_body(), make_body(positive="\\boxed{}"), make_body(method={"name": "rlsd"})]
    reply = await post(bodies, Accept="application/x-ndjson")
    assert reply.headers["content-type"].startswith("application/x-ndjson")
    first, second, third = (json.loads(line) for line in reply.text.splitlines())
    assert first == (await post(make_body())).json()
    assert list(second) == ["detail"]
    assert second["detail"].startswith("positive: ")
    assert third["method"]["name"] == "rlsd"


async def test_a_page_is_asked_for_like_any_other_form() -> None:
    hostile = "</script><script>alert(1)</script>"
    reply = await post(make_body(responses=[{"text": hostile}, {"text": RIGHT}]), Accept="text/html,*/*;q=0.8")
    assert reply.headers["content-type"].startswith("text/html")
    assert hostile not in reply.text
    embedded = reply.text.split('<script id="data" type="application/json">')[1].split("</script>")[0]
    data = json.loads(embedded)
    assert data["request"]["responses"][0]["text"] == data["reply"]["responses"][0]["text"] == hostile
    assert "http" not in reply.text.replace(embedded, "").replace("http-equiv", "")
    assert (await post([make_body()], Accept="text/html")).status_code == 422


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"responses": []}, "responses: List should have at least 1 item"),
        ({"responses": [{"text": "x"}] * 65}, "responses: List should have at most 64 items"),
        ({"responses": [{"text": "x"}, {}]}, "responses.1: give one of text, token_ids and messages"),
        ({"responses": [{"text": "x", "token_ids": [1]}]}, "responses.0: give one of text, token_ids and messages"),
        ({"responses": [{"text": 3}]}, "responses.0.text: write a text in quotes"),
        ({"responses": [3]}, 'responses.0: give a text in quotes, or an object such as {"text": '),
        ({"responses": "x"}, "responses: write a list"),
        ({"responses": [{"txt": "x"}]}, "responses.0.txt: unknown key; did you mean `text`?"),
        ({"method": 3}, 'method: give a name such as "cepo", or an object such as {"name": '),
        ({"method": "cepoo"}, "method.name: "),
        ({"positve": "51"}, "positve: unknown key; did you mean `positive`?"),
        ({"responses": [{"token_ids": [1.5]}]}, "responses.0.token_ids.0: "),
        ({"responses": [{"text": "x", "reward": "high"}]}, "responses.0.reward: "),
        ({"responses": [{"text": "9" * 200_001}]}, "responses.0.text: String should have at most 200000"),
        ({"positive": None}, "positive: is missing"),
        ({"positive": ""}, "positive: "),
        ({"messages": None}, "give one of messages, prompt and prompt_token_ids"),
        ({"prompt": "x"}, "give one of messages, prompt and prompt_token_ids"),
        ({"template": "no place for it"}, "template: must contain {answer}"),
        ({"method": {"name": "dpo"}}, "method.name: "),
        ({"method": {"lam": 1.5}}, "method.lam: "),
        ({"method": {"eps_w": 0}}, "method.eps_w: "),
        ({"method": {"epsw": 0.5}}, "method.epsw: unknown key; did you mean `eps_w`?"),
        ({"policy": {"version": 3}}, "policy: version 0 is the base model"),
        ({"policy": {"version": 2**70, "sha256": "0" * 64}}, "policy.version: "),
        ({"temperature": 0}, "temperature: "),
        ({"temperature": 1e-300}, "temperature: "),
        ({"responses": [{"text": "x", "advantage": 1e300}]}, "responses.0.advantage: "),
        ({"unknown": 1}, "unknown: unknown key; known: chat_template_kwargs, compare"),
        ({"responses": [{"token_ids": [3, 9999]}]}, "responses.0.token_ids.1: 9999 is outside"),
    ],
    ids=lambda value: "" if isinstance(value, dict) else value[:40],
)
async def test_a_mistake_names_its_field(changes: dict[str, Any], says: str) -> None:
    reply = await post(make_body(**changes))
    assert reply.status_code == 422
    assert list(reply.json()) == ["detail"]
    assert says in reply.json()["detail"]
    assert "\n" not in reply.json()["detail"]
    if "give one" not in says:
        assert reply.json()["detail"].startswith(says.split(": ")[0])


async def test_a_list_says_which_of_its_requests_is_wrong() -> None:
    reply = await post([make_body(), make_body(positive="")])
    assert reply.json()["detail"].startswith("1.positive: ")
    reply = await post([make_body(), make_body(responses=[{"token_ids": [3, 9999]}])])
    assert (reply.status_code, reply.json()["detail"][:35]) == (422, "1.responses.0.token_ids.1: 9999 is ")


@pytest.mark.parametrize("field", ["messages", "positive", "responses.0.text", "template"])
async def test_half_a_character_is_no_text(field: str) -> None:
    body = json.dumps(make_body(template="{answer}")).replace("23 + 45 - 17 = ?", "\\ud800" * (field == "messages"), 1)
    if field == "positive":
        body = body.replace('"51"', '"\\ud800"')
    elif field == "template":
        body = body.replace('"{answer}"', '"{answer}\\udfff"')
    elif field != "messages":
        body = body.replace('"23+45', '"\\ud800')
    async with web(make_credit()) as client:
        reply = await client.post("/v1/credit", content=body, headers={"content-type": "application/json"})
    assert reply.status_code == 422
    where = "messages.0.content" if field == "messages" else field
    assert reply.json()["detail"].startswith(f"{where}: ")


async def test_what_is_no_json_or_too_long_is_refused() -> None:
    async with web(make_credit()) as client:
        headers = {"content-type": "application/json"}
        reply = await client.post("/v1/credit", content='{"messages": nonsense', headers=headers)
        detail = "body: invalid JSON at character 13: Expecting value"
        assert (reply.status_code, reply.json()["detail"]) == (422, detail)
        for sent in ({"content-type": "application/x-www-form-urlencoded"}, {}):  # the default of curl, and none
            reply = await client.post("/v1/credit", content=json.dumps(make_body()), headers=sent)
            assert reply.status_code == 422
            assert reply.json()["detail"].startswith("Content-Type: ")
            assert reply.json()["detail"].endswith("; send JSON, as application/json")
        assert (await client.post("/v1/credit", content=" " * (MAX_BODY_BYTES + 1), headers=headers)).status_code == 413


async def test_the_page_is_open_and_its_data_need_the_token() -> None:
    async with web(make_credit(), token="secret") as client:
        page = await client.get("/")
        assert (page.status_code, page.text) == (200, live_page())
        assert (await client.post("/v1/credit", json=make_body())).status_code == 401
        assert (await client.post("/v1/credit", json=make_body(), headers=AUTHORIZED)).status_code == 200


async def test_the_sample_of_the_page_is_what_the_teacher_answers() -> None:
    data = json.loads(live_page().split('<script id="data" type="application/json">')[1].split("</script>")[0])
    async with web(make_credit(tiny_scorer())) as client:
        reply = CreditReply.model_validate_json((await client.post("/v1/credit", json=data["request"])).content)
    shown = CreditReply.model_validate(data["reply"])
    assert (shown.tokenizer_sha256, shown.prompt_token_ids) == (reply.tokenizer_sha256, reply.prompt_token_ids)
    for ours, theirs in zip(shown.responses, reply.responses, strict=True):
        assert (ours.text, ours.negative, ours.grade) == (theirs.text, theirs.negative, theirs.grade)
        assert [t.delta for t in ours.tokens] == pytest.approx([t.delta for t in theirs.tokens], abs=1e-3)


async def test_the_schema_tells_of_every_answer() -> None:
    async with web(make_credit()) as client:
        schema = (await client.get("/openapi.json")).json()
    answers = schema["paths"]["/v1/credit"]["post"]["responses"]
    assert set(answers) == {"200", "400", "403", "408", "409", "413", "415", "422", "429", "503"}
    assert set(answers["200"]["content"]) == {"application/json", "application/x-ndjson", "text/html"}
    names = schema["components"]["schemas"]["Method"]["properties"]["name"]["enum"]
    assert set(names) <= set(ALGORITHMS)


NUMBERS = st.one_of(st.none(), st.floats(-3, 3), st.integers(-2, 2), st.just(1e308), st.text(max_size=3))
RESPONSES = st.fixed_dictionaries(
    {},
    optional={
        "text": st.one_of(st.text(max_size=20), st.sampled_from([RIGHT, WRONG]), st.none()),
        "token_ids": st.lists(st.integers(-1, 600), max_size=6),
        "reward": NUMBERS,
        "advantage": NUMBERS,
    },
)
BODIES = st.fixed_dictionaries(
    {"responses": st.lists(RESPONSES, max_size=4), "positive": st.one_of(st.just("51"), st.text(max_size=6))},
    optional={
        "messages": st.just([{"role": "user", "content": "1 + 1 = ?"}]),
        "prompt": st.text(max_size=10),
        "prompt_token_ids": st.lists(st.integers(0, 520), max_size=4),
        "negative": st.text(max_size=6),
        "kind": st.sampled_from(["", "number", "set", "choice", "telepathy"]),
        "method": st.fixed_dictionaries({"name": st.sampled_from(["cepo", "rlsd", "grpo"])}, optional={"lam": NUMBERS}),
        "temperature": NUMBERS,
        "compare": st.lists(st.fixed_dictionaries({"method": st.just({"name": "rlsd"})}), max_size=2),
    },
)


@given(BODIES)
@settings(max_examples=250, deadline=None)
async def test_whatever_is_sent_the_answer_is_a_reply_or_a_refusal(body: dict[str, Any]) -> None:
    reply = await post(body, toy_grade)
    assert reply.status_code in (200, 422), reply.text
    if reply.status_code == 200:
        found = CreditReply.model_validate_json(reply.content)
        assert len(found.responses) == len(body["responses"])
        for response in found.responses:
            assert "".join(token.text for token in response.tokens) == response.text
    else:
        assert reply.json()["detail"]


async def test_the_documented_example_is_the_sample() -> None:
    documented = json.loads((Path(__file__).parents[3] / "docs" / "sum.json").read_text())
    data = json.loads(live_page().split('<script id="data" type="application/json">')[1].split("</script>")[0])
    assert documented == data["request"]
    credited = data["reply"]["responses"][0]["tokens"][17]
    assert (credited["text"], round(credited["delta"], 2), round(credited["advantage"], 3)) == ("8", 11.15, 1.875)
