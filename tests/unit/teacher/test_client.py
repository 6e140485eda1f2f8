"""The Python client without a service: what it sends, and mistakes that it finds before it sends anything."""

from __future__ import annotations

import json
from typing import Any

import httpx
import pytest

from cepo.client import AsyncClient, Client
from cepo.credit import CreditRequest
from cepo.errors import UserError
from tests.helpers.credit import make_body

SHORT = make_body(responses=["23+45=68", "68-17=41"], method="rlsd")
WHOLE = make_body(responses=[{"text": "23+45=68"}, {"text": "68-17=41"}], method={"name": "rlsd"})


class Recorder:
    """A service that records the bodies it gets and answers each with a page."""

    def __init__(self) -> None:
        self.bodies: list[Any] = []
        self.transport = httpx.MockTransport(self._answer)

    def _answer(self, request: httpx.Request) -> httpx.Response:
        self.bodies.append(json.loads(request.content))
        return httpx.Response(200, text="<!doctype html>")


@pytest.mark.parametrize(
    "request_", [SHORT, WHOLE, CreditRequest.model_validate(SHORT)], ids=["short", "whole", "model"]
)
def test_a_dict_a_plain_text_and_the_name_of_a_method_are_sent_as_their_objects(request_: Any) -> None:
    service = Recorder()
    with Client("http://teacher", transport=service.transport) as client:
        client.heat_map(request_)
    assert service.bodies == [WHOLE]


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"positve": "51"}, "positve: unknown key; did you mean `positive`?"),
        ({"responses": []}, "responses: "),
        ({"responses": [3]}, "responses.0: give a text in quotes"),
    ],
)
async def test_a_mistake_in_a_dict_is_named_before_it_is_sent(change: dict[str, Any], says: str) -> None:
    service = Recorder()
    with Client("http://teacher", transport=service.transport) as client, pytest.raises(UserError) as refusal:
        client.credit(make_body() | change)
    assert str(refusal.value).startswith(says)
    async with AsyncClient("http://teacher") as asynchronous:
        with pytest.raises(UserError, match=f"^{says[:10]}"):
            await asynchronous.credit(make_body() | change)
    assert service.bodies == []
