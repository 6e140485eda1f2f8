"""The heat map page in a real browser, served by a real teacher with the tiny model."""

from __future__ import annotations

import asyncio
import base64
import json
import struct
from pathlib import Path

import pytest

from cepo.credit import CreditRequest
from cepo.messages.hints import INSTRUCTION
from cepo.service.image_cache import no_images
from cepo.tiny.figures import QUESTION
from services.teacher.credit import TokenCredit
from services.teacher.images import GivenImages
from services.teacher.page import standalone_page
from tests.browser.chromium import Browser, needs_chromium
from tests.helpers.credit import make_vision_credit, web_application
from tests.helpers.serving import served
from tests.helpers.vision import RENDERER, TURN, held_out

pytestmark = needs_chromium

HOSTILE = "</script><img src=x onerror=\"document.title='owned'\"><b>\\boxed{1}"
TOKEN = '#panels article:nth-child(2) .token[data-at="{}"]'


def alphas(page: Browser, panel: int = 2) -> list[float]:
    """The opacity of each token's colour in a panel."""
    return page.run(
        f"[...document.querySelectorAll('#panels article:nth-child({panel}) .token')]"
        ".map(t => Number((getComputedStyle(t).backgroundColor.match(/[\\d.]+(?=\\)$)/) ?? [1])[0]))"
    )


def text(page: Browser, selector: str) -> str:
    return page.run(f"document.querySelector({json.dumps(selector)}).innerText")


def slide(page: Browser, name: str, value: float) -> None:
    page.run(f"(s => {{ s.value = {value}; s.dispatchEvent(new Event('input')); }})(document.getElementById('{name}'))")


def test_the_sample_shows_both_methods_with_their_clip_rates(page: Browser) -> None:
    assert page.run("[...document.querySelectorAll('#panels select')].map(s => s.selectedOptions[0].text)") == [
        "RLSD",
        "CEPO",
    ]
    assert [text(page, f"#panels article:nth-child({n}) dd") for n in (1, 2)] == ["0.0 %", "7.4 %"]
    assert max(alphas(page)) > 0.5
    assert min(alphas(page)) < 0.05
    assert page.run("document.querySelectorAll('#responses [role=radio]').length") == 4


def test_the_browser_computes_what_the_teacher_computed(page: Browser) -> None:
    differences = page.run("""
        state.reply.responses.flatMap(response => response.tokens.map(token => {
            const ours = creditOf('cepo', token, response.advantage);
            return Math.max(Math.abs(ours.delta - token.delta), Math.abs(ours.clippedWeight - token.weight_clipped),
                Math.abs(ours.advantage - token.advantage), ours.clipped === token.clipped ? 0 : 1);
        }))""")
    assert len(differences) == 108
    assert max(differences) < 1e-4


def test_pointing_at_a_token_shows_its_numbers_and_its_mate(page: Browser) -> None:
    decisive = max(range(27), key=alphas(page).__getitem__)
    page.hover(TOKEN.format(decisive))
    shown = text(page, "#tip")
    for word in (
        "log P plain",
        "log P given r⁺",
        "log P given r⁻",
        "δ",
        "weight",
        "advantage",
        "RLSD",
        "CEPO",
        "+11.15",
    ):
        assert word in shown
    assert page.run("document.querySelectorAll('.mate').length") == 2
    page.press("Escape")
    assert page.run("document.getElementById('tip').hidden") is True


def test_the_keyboard_reaches_every_token_and_speaks_it(page: Browser) -> None:
    page.run(f"document.querySelector('{TOKEN.format(0)}').focus()")
    page.press("ArrowRight", "ArrowRight")
    assert page.run("document.activeElement.dataset.at") == "2"
    assert page.run("document.getElementById('tip').hidden") is False
    page.press("ArrowDown", "End")
    assert page.run("document.activeElement.dataset.at") == "26"
    assert page.run("document.activeElement.tabIndex") == 0
    assert "<|im_end|>" in page.run("document.activeElement.ariaLabel")
    page.press("Home", "ArrowUp")
    assert page.run("document.activeElement.dataset.at") == "0"
    labels = page.run("[...document.querySelectorAll('#panels article:nth-child(2) .token')].map(t => t.ariaLabel)")
    assert any("pushed up 25 percent" in label and "clipped" in label for label in labels)


def test_sliders_recolour_without_another_call(page: Browser) -> None:
    before, asked = alphas(page), len(page.requests())
    slide(page, "lam", 0)
    page.until("getComputedStyle(document.querySelector('.token')).backgroundColor.includes(', 0)')")
    page.until("document.getElementById('lam-value').value === '0.00'")
    page.settle()  # the colours change gradually
    assert max(alphas(page)) == 0
    slide(page, "lam", 1)
    slide(page, "eps", 0.9)
    page.settle()
    assert max(alphas(page)) > max(before)
    slide(page, "eps", 0.05)
    assert text(page, "#panels dd") != "0.0 %"
    assert len(page.requests()) == asked == 1


def test_another_response_and_another_method_are_a_click_away(page: Browser) -> None:
    page.click("#responses button:nth-child(2)")
    assert "131" in text(page, ".tokens")
    page.press("ArrowRight")
    assert page.run("document.activeElement.ariaChecked") == "true"
    assert "73" in text(page, ".tokens")
    page.run(
        "(s => { s.selectedIndex = 2; s.dispatchEvent(new Event('change')); })"
        "(document.querySelector('#panels select'))"
    )
    page.settle()
    assert max(alphas(page, panel=1)) == 0


def test_what_is_pasted_is_scored_and_a_mistake_is_shown(page: Browser) -> None:
    page.click("summary")
    assert page.run("document.getElementById('token-field').offsetParent") is None
    page.type("[name=question]", "12 + 30 - 11 = ?")
    page.type("[name=positive]", "31")
    page.type("[name=negative]", "29")
    page.type(".draft:nth-child(1) textarea", "12+30=42\n42-11=31\n\\boxed{31}")
    page.type(".draft:nth-child(2) textarea", HOSTILE)
    page.click("#score")
    page.until("document.getElementById('question').textContent.startsWith('12 + 30')")
    assert text(page, "#positive") == "31"
    assert "given" in text(page, "#negative-why")
    assert page.run("state.reply.responses[0].grade.outcome") == "correct"
    assert max(alphas(page)) > 0.3
    page.click("#responses button:nth-child(2)")
    assert HOSTILE in text(page, ".tokens")
    assert page.run("document.title") == "Token credit"
    page.type("[name=positive]", "\\boxed{}")
    page.click("#score")
    page.until("document.getElementById('error').textContent !== ''")
    assert text(page, "#error").startswith("positive: ")


def test_images_are_sent_with_the_problem_and_shown(page: Browser, tmp_path: Path) -> None:
    ((figure, image),) = held_out(1)
    file, saved = tmp_path / "figure.png", tmp_path / "page.html"
    file.write_bytes(image.data)
    shown = "document.querySelector('#images img')"
    size = f"(i => i && i.complete && [i.naturalWidth, i.naturalHeight])({shown})"
    with served(web_application(make_vision_credit(tmp_path, GivenImages(no_images)))) as url:
        page.open(url)
        assert page.run(f"{shown}") is None
        page.click("summary")
        page.type("[name=question]", f"{QUESTION}\n{INSTRUCTION}")
        page.type("[name=positive]", str(figure.problem.answer))
        for at, answer in enumerate((figure.problem.answer, figure.problem.answer - 10), 1):
            page.type(f".draft:nth-child({at}) textarea", f"\\boxed{{{answer}}}")
        page.run("[...document.querySelectorAll('.draft')].slice(2).forEach(draft => draft.remove())")
        page.choose("[name=images]", file)
        page.until("document.querySelectorAll('#chosen img').length === 1")
        page.click("#score")
        page.until(f"{size}?.[0] > 0")
        assert page.run(size) == [image.ref.width, image.ref.height]
        assert page.run("state.reply.responses.map(r => r.grade.outcome)") == ["correct", "wrong"]
        assert len(page.run("state.reply.prompt_token_ids")) > len(RENDERER.compact_ids(TURN, 1))
        saved.write_text(page.run("pageWithData()"), "utf-8")
        page.click("#no-images")
        page.click("#score")
        page.until(f"{shown} === null")
    page.open(saved.as_uri())
    page.until(f"{size}?.[0] > 0")


def test_a_saved_page_shows_the_same_without_a_service(page: Browser, credit: TokenCredit, tmp_path: Path) -> None:
    request = CreditRequest.model_validate(
        {
            "messages": [{"role": "user", "content": HOSTILE}],
            "responses": [{"text": f"{HOSTILE} caf\u00e9 \U0001f600", "reward": 0.0}],
            "positive": "2",
            "negative": "1",
            "compare": [{"method": {"name": "grpo"}}],
        }
    )
    by_server = tmp_path / "server.html"
    by_server.write_text(standalone_page(request, asyncio.run(credit(request))), "utf-8")
    page.open(by_server.as_uri())
    colours = alphas(page, panel=1)
    by_page = tmp_path / "page.html"
    by_page.write_text(page.run("pageWithData()"), "utf-8")
    page.open(by_page.as_uri())
    assert alphas(page, panel=1) == colours
    assert max(colours) > 0
    assert f"{HOSTILE} caf\u00e9 \U0001f600" in text(page, ".tokens").replace("▪", "")
    assert text(page, "#panels select option:checked") == "CEPO"
    assert page.run("document.getElementById('own').hidden") is True
    assert page.run("document.title") == "Token credit"
    assert [url for url in page.requests() if not url.startswith("file:")] == []


def test_the_picture_holds_both_panels(page: Browser, tmp_path: Path) -> None:
    image = base64.b64decode(page.run("picture()").partition(",")[2])
    width, height = struct.unpack(">II", image[16:24])
    assert image[:4] == b"\x89PNG"
    assert width == 2 * (24 + 2 * 364)
    assert 300 < height < 600


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_shows_it_in_one_column_in_light_and_dark(page: Browser, scheme: str, tmp_path: Path) -> None:
    page.scheme(scheme)
    page.size(360, 740, phone=True)
    assert page.run("document.documentElement.scrollWidth") == 360
    first, second = (
        page.run(f"document.querySelector('article:nth-child({n})').getBoundingClientRect().left") for n in (1, 2)
    )
    assert first == second
    page.click(TOKEN.format(3))
    tip = page.run("(r => [r.left, r.right, r.bottom])(document.getElementById('tip').getBoundingClientRect())")
    assert tip[0] >= 0
    assert tip[1] <= 360
    assert tip[2] <= 740
    ink, card = (
        page.run(f"getComputedStyle(document.documentElement).getPropertyValue('--{name}')") for name in ("ink", "card")
    )
    assert (ink < card) is (scheme == "light")
    assert page.run(
        "[...document.querySelectorAll('button, select, input')]"
        ".every(e => e.labels?.length || e.ariaLabel || e.textContent)"
    )


def test_the_palette_and_the_theme_change_the_colours(page: Browser) -> None:
    decisive = TOKEN.format(max(range(27), key=alphas(page).__getitem__))
    colour = f"getComputedStyle(document.querySelector('{decisive}')).backgroundColor"
    green = page.run(colour)
    page.click("#palette")
    page.settle()
    assert page.run(colour) != green
    assert page.run("document.getElementById('palette').ariaPressed") == "true"
    page.click("#theme")
    page.click("#theme")
    assert text(page, "#theme") == "Theme: dark"
    assert page.run("getComputedStyle(document.body).backgroundColor") == "rgb(16, 18, 22)"
