"""Token credit for responses to images equals the model's own log-probs, over REST, client and command line."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

import httpx
import pytest
import torch

from cepo.cli import main
from cepo.client import AsyncClient
from cepo.credit import CreditReply, CreditRequest
from cepo.messages.hints import HINT, with_hint
from cepo.model.forward import response_logps
from cepo.prompts.images import MAX_IMAGES, data_uri
from cepo.service.image_cache import no_images
from services.teacher.credit import TokenCredit
from services.teacher.images import GivenImages
from tests.helpers.credit import make_credit, make_vision_credit, web, web_application
from tests.helpers.vision import BLANK, MODEL, RENDERER, TURN, Picture, held_out, ids_of, model

torch.set_num_threads(1)
((FIGURE, IMAGE),) = held_out(1)
ANSWER, WRONG = str(FIGURE.problem.answer), str(FIGURE.problem.answer - 10)
TEXTS = [f"\\boxed{{{ANSWER}}}<|im_end|>", f"\\boxed{{{WRONG}}}<|im_end|>"]
GIVEN = GivenImages(no_images)


@pytest.fixture(scope="module")
def credit(tmp_path_factory: pytest.TempPathFactory) -> TokenCredit:
    return make_vision_credit(tmp_path_factory.mktemp("adapters"), GIVEN)


def body(*pictures: Picture, **changes: Any) -> dict[str, Any]:
    found = {
        "messages": [message.model_dump() for message in TURN],
        "images": [data_uri(picture.data) for picture in pictures],
        "responses": [{"text": text} for text in TEXTS],
        "positive": ANSWER,
    }
    return {key: value for key, value in (found | changes).items() if value is not None}


async def post(credit: TokenCredit, sent: dict[str, Any]) -> httpx.Response:
    async with web(credit) as client:
        return await client.post("/v1/credit", json=sent)


async def credited(credit: TokenCredit, sent: dict[str, Any]) -> CreditReply:
    answer = await post(credit, sent)
    assert answer.status_code == 200, answer.text
    return CreditReply.model_validate_json(answer.content)


async def test_every_context_holds_the_image(credit: TokenCredit) -> None:
    reply, blind = await credited(credit, body(IMAGE)), await credited(credit, body(BLANK))
    assert reply.prompt_token_ids == list(RENDERER.prompt_ids(TURN, [IMAGE.ref]))
    turns = {
        "logp_plain": TURN,
        "logp_positive": with_hint(TURN, HINT, ANSWER),
        "logp_negative": with_hint(TURN, HINT, WRONG),
    }
    for text, response, unseen in zip(TEXTS, reply.responses, blind.responses, strict=True):
        for field, turn in turns.items():
            prompt = RENDERER.prompt_ids(turn, [IMAGE.ref])
            with torch.no_grad():
                wanted = response_logps(model(), [prompt], [ids_of(text)], 1.0, [[IMAGE.features]])[0]
            found = [getattr(token, field) for token in response.tokens]
            assert found == pytest.approx(wanted.tolist(), abs=1e-4)
            assert found != pytest.approx([getattr(token, field) for token in unseen.tokens], abs=1e-2)
    assert [response.advantage > 0 for response in reply.responses] == [True, False]


async def test_every_form_of_prompt_shows_it(credit: TokenCredit) -> None:
    wanted = await credited(credit, body(IMAGE))
    expanded, compact = RENDERER.prompt_ids(TURN, [IMAGE.ref]), RENDERER.compact_ids(TURN, 1)
    unmarked = [{"role": "user", "content": TURN[0].content.removeprefix("<image>")}]
    for form in (
        {"messages": unmarked},
        {"messages": None, "prompt": RENDERER.tokenizer.decode(compact)},
        {"messages": None, "prompt_token_ids": compact},
        {"messages": None, "prompt_token_ids": expanded},
    ):
        reply = await credited(credit, body(IMAGE, **form))
        assert reply.prompt_token_ids == wanted.prompt_token_ids
        for ours, theirs in zip(reply.responses, wanted.responses, strict=True):
            assert [t.delta for t in ours.tokens] == pytest.approx([t.delta for t in theirs.tokens], abs=1e-5)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (
            {"images": ["https://example.org/x.png"]},
            "images.0: holds 'https://example.org/x.png', which is no data URI",
        ),
        ({"images": ["/etc/passwd"]}, "images.0: holds '/etc/passwd', which is no data URI"),
        ({"images": ["data:image/png;base64,?"]}, "images.0: holds a data URI that is not base64"),
        ({"images": ["data:text/html;base64,PGI+"]}, "images.0: holds bytes that are not PNG"),
        ({"images": [data_uri(IMAGE.data), "data:image/png;base64,iVBORw0KGgo="]}, "images.1: holds a damaged image"),
        ({"images": [data_uri(IMAGE.data)] * 2}, "messages: holds 2 images for 1 <image> mark"),
        ({"images": []}, "messages: holds 0 images for 1 <image> mark"),
        ({"images": [data_uri(BLANK.data)] * (MAX_IMAGES + 1)}, "images: List should have at most 16 items"),
        ({"messages": None, "prompt": "Find x."}, "images: the prompt has 0 places for 1 images"),
    ],
    ids=lambda value: value[:40] if isinstance(value, str) else "",
)
async def test_a_mistake_names_its_image(credit: TokenCredit, changes: dict[str, Any], says: str) -> None:
    reply = await post(credit, body(IMAGE, **changes))
    assert (reply.status_code, reply.json()["detail"][: len(says)]) == (422, says)


async def test_a_model_that_takes_none_says_so() -> None:
    reply = await post(make_credit(), body(IMAGE))
    assert (reply.status_code, reply.json()) == (
        422,
        {"detail": "images: this teacher's model takes none; leave them out"},
    )


async def test_what_a_request_brought_is_forgotten_with_it(credit: TokenCredit) -> None:
    transport = httpx.ASGITransport(web_application(credit))
    async with AsyncClient("http://teacher", transport=transport) as client:
        assert len((await client.credit(CreditRequest.model_validate(body(IMAGE)))).responses) == 2
    with pytest.raises(ValueError, match="is not available"):
        await GIVEN.read(IMAGE.ref)


def test_the_command_line_takes_files_and_draws_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "figure.png").write_bytes(IMAGE.data)
    request, page = tmp_path / "request.json", tmp_path / "map.html"
    request.write_text(json.dumps(body(images=["figure.png"])))
    assert main(["credit", str(request), "--model", MODEL, "--html", str(page)]) == 0
    reply = CreditReply.model_validate_json(capsys.readouterr().out)
    assert reply.prompt_token_ids == list(RENDERER.prompt_ids(TURN, [IMAGE.ref]))
    assert base64.b64encode(IMAGE.data).decode() in page.read_text()
    request.write_text(json.dumps(body(images=["absent.png"])))
    assert main(["credit", str(request), "--model", MODEL]) == 2
    assert capsys.readouterr().err.startswith("cepo: images.0: holds the path ")
