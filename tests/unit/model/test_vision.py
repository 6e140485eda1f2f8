"""Images in the forward pass: equality with transformers' own model row by row, and the tiny model's accuracy."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

import pytest
import torch
from PIL import ExifTags, Image
from torch import Tensor

from cepo.errors import UserError
from cepo.messages.groups import ImageRef, Message, Placement
from cepo.messages.hints import HINT, with_hint
from cepo.model.forward import response_logps
from cepo.model.tree import token_tree
from cepo.model.vision import FeatureCache, keyed
from cepo.prompts.images import checked
from cepo.prompts.pixels import Patches, Pixels, picture
from cepo.tiny import vision
from cepo.tiny.demos import solution
from tests.helpers.vision import BLANK, MODEL, RENDERER, TURN, Picture, drawn, held_out, ids_of, model

torch.set_num_threads(1)
PLACEHOLDER = RENDERER.pixels.placeholder
WIDE, TALL = drawn(130, 50, (9, 99, 200)), drawn(40, 150, (200, 3, 3))
LARGE = drawn(700, 500)
FIRST, SECOND = (image for _, image in held_out(2))
ROWS: list[tuple[str, list[Picture], str]] = [
    ("<image>Find x.", [FIRST], "13+15=28\n\\boxed{28}"),
    ("Look at <image> and then at <image>. Find x.", [SECOND, WIDE], "5+5=10"),
    ("12 + 13 - 5 = ?", [], "1"),
    ("Find x. <image>", [TALL], "\\boxed{3}"),
    ("<image>Find x.", [FIRST], ""),
]
"""Rows with several images of different sizes, in the middle and at the end, a text row, and an empty response."""


def prompt_of(text: str, images: Sequence[Picture]) -> tuple[int, ...]:
    return RENDERER.prompt_ids([Message(role="user", content=text)], [image.ref for image in images])


def ours(rows: Sequence[tuple[Sequence[int], Sequence[int], Sequence[Picture]]]) -> Tensor:
    prompts, responses, images = zip(*rows, strict=True)
    with torch.no_grad():
        return response_logps(model(), prompts, responses, 1.0, [[each.features for each in row] for row in images])


@torch.no_grad()
def stock(prompt: Sequence[int], response: Sequence[int], images: Sequence[Picture]) -> list[float]:
    """Log-probs of one row with its images by transformers' own forward pass."""
    ids_BS = torch.tensor([[*prompt, *response]])
    inputs = {}
    if images:
        inputs = {
            "pixel_values": torch.cat([image.patches.values_PF for image in images]),
            "image_grid_thw": torch.tensor([image.patches.grid for image in images]),
            "mm_token_type_ids": (ids_BS == PLACEHOLDER).int(),
        }
    logp_SV = model()(input_ids=ids_BS, use_cache=False, **inputs).logits[0].float().log_softmax(-1)
    model().model.rope_deltas = None
    return [float(logp_SV[len(prompt) - 1 + t, token]) for t, token in enumerate(response)]


def test_a_mixed_batch_has_the_log_probs_of_stock_forwards() -> None:
    rows = [(prompt_of(text, images), ids_of(response), images) for text, images, response in ROWS]
    for row, logp_T in zip(rows, ours(rows), strict=True):
        assert logp_T[: len(row[1])].tolist() == pytest.approx(stock(*row), abs=1e-5)
        assert logp_T[len(row[1]) :].abs().sum() == 0


def test_a_group_shares_its_question_and_image_and_no_other_image() -> None:
    """One figure under two hints with two responses each, and the same text with another figure."""
    turns = [with_hint(TURN, HINT, answer) for answer in ("31", "52")]
    texts = [ids_of(text) for text in ("13+15=28", "5+5=10")]
    rows = [(RENDERER.prompt_ids(turn, [FIRST.ref]), text, [FIRST]) for turn in turns for text in texts]
    rows.append((rows[0][0], texts[0], [SECOND]))
    for row, logp_T in zip(rows, ours(rows), strict=True):
        assert logp_T[: len(row[1])].tolist() == pytest.approx(stock(*row), abs=1e-5)
    lines = [[*prompt, *response] for prompt, response, _ in rows]
    keys = keyed(model(), lines, [len(prompt) for prompt, _, _ in rows], [[i.features for i in row[2]] for row in rows])
    laid_out = len(token_tree(keys).ids_N)
    assert laid_out < 3 * len(rows[0][0])
    assert sum(key == PLACEHOLDER for line in keys for key in line) == 0
    assert int((token_tree(keys).ids_N < 0).sum()) == 2 * 24


def test_a_sampled_placeholder_is_a_token_and_no_image() -> None:
    prompt, response = prompt_of(*ROWS[0][:2]), ids_of("1+1=2")
    whole = ours([(prompt, [*response, PLACEHOLDER, *response], [FIRST])])[0]
    assert whole[: len(response)].tolist() == pytest.approx(stock(prompt, response, [FIRST]), abs=1e-5)
    assert bool(torch.isfinite(whole).all())


def test_a_prompt_without_the_places_of_its_image_is_no_input() -> None:
    prompt = list(prompt_of(*ROWS[0][:2]))
    prompt.remove(PLACEHOLDER)
    with pytest.raises(AssertionError, match="23 placeholders for 24 image tokens"):
        ours([(prompt, [5], [FIRST])])


def test_a_blank_image_lowers_the_log_probs_of_right_answers_in_every_context() -> None:
    """Plain, r+ and r-: log-probs of right solutions with the figure and with a blank image."""
    shown = held_out(8)
    for answer_of in (None, lambda right: right, lambda right: right + 1):
        rows = []
        for figure, image in shown:
            text, right = solution(figure.problem)
            turn = TURN if answer_of is None else with_hint(TURN, HINT, str(answer_of(right)))
            rows += [(RENDERER.prompt_ids(turn, [each.ref]), ids_of(text), [each]) for each in (image, BLANK)]
        with_figure, blank = ours(rows).sum(dim=1).view(-1, 2).T
        assert bool(((with_figure - blank).abs() > 1).all())
        assert float((with_figure - blank).mean()) > 5


def test_accuracy_comes_from_the_image() -> None:
    shown = held_out(12)
    right = [sum(read(image) == figure.problem.answer for figure, image in shown), 0]
    right[1] = sum(figure.problem.answer == read(BLANK) for figure, _ in shown)
    assert right[0] >= 9
    assert right[1] <= 1


@torch.no_grad()
def read(image: Picture) -> int:
    """The model's greedy answer; -1 if it gives none."""
    ids_BS = torch.tensor([RENDERER.prompt_ids(TURN, [image.ref])])
    ids_out_BS = model().generate(
        input_ids=ids_BS,
        pixel_values=image.patches.values_PF,
        image_grid_thw=torch.tensor([image.patches.grid]),
        mm_token_type_ids=(ids_BS == PLACEHOLDER).int(),
        do_sample=False,
        max_new_tokens=32,
    )
    model().model.rope_deltas = None
    text = RENDERER.text(ids_out_BS[0, ids_BS.shape[1] :].tolist())
    answer = text.rpartition("\\boxed{")[2].rstrip("}")
    return int(answer) if answer.isdecimal() else -1


@pytest.mark.parametrize("image", [FIRST, WIDE, TALL, drawn(1, 1), drawn(300, 2), LARGE])
def test_an_image_has_as_many_tokens_as_its_size_says(image: Picture) -> None:
    pixels = RENDERER.pixels
    rows, columns = image.patches.grid[1:]
    assert pixels.tokens(image.ref) == rows * columns // 4
    assert len(image.patches.values_PF) == rows * columns
    prompt = RENDERER.compact_ids(TURN, 1)
    expanded = pixels.expanded(prompt, [image.ref])
    assert len(expanded) == len(prompt) - 1 + pixels.tokens(image.ref)
    assert pixels.compact(expanded, [image.ref]) == prompt


@pytest.mark.parametrize("placement", list(Placement))
def test_every_placement_of_a_hint_keeps_the_images(placement: Placement) -> None:
    plain, hinted = RENDERER.prompt_ids(TURN, [FIRST.ref]), RENDERER.hinted_ids(TURN, HINT, "7", placement, [FIRST.ref])
    assert hinted.count(PLACEHOLDER) == plain.count(PLACEHOLDER) == 24
    assert len(hinted) > len(plain)


def test_a_mark_that_a_model_made_up_before_the_question_is_text() -> None:
    hinted = RENDERER.hinted_ids(TURN, "Is it {answer}?", "<image>", Placement.SYSTEM, [FIRST.ref])
    assert RENDERER.tokenizer.decode(hinted).count("Is it <image>?") == 1
    question = RENDERER.prompt_ids(TURN, [FIRST.ref])
    at = question.index(PLACEHOLDER)
    assert hinted[-(len(question) - at) :] == question[at:]


def test_a_placeholder_in_a_hint_after_the_images_is_a_token() -> None:
    peer = (*ids_of("1"), PLACEHOLDER)
    prompt = RENDERER.hinted_ids(TURN, HINT, peer, Placement.ASSISTANT, [FIRST.ref])
    line = [*prompt, *ids_of("5")]
    (keys,) = keyed(model(), [line], [len(prompt)], [[FIRST.features]])
    assert sum(key < 0 for key in keys) == 24
    assert keys.count(PLACEHOLDER) == 1


@pytest.mark.parametrize(
    ("room", "read", "asked"),
    [
        (2, (FIRST, SECOND, FIRST, WIDE, FIRST, SECOND), (FIRST, SECOND, WIDE, SECOND)),
        (0, (FIRST, FIRST, SECOND, FIRST), (FIRST, SECOND, FIRST)),
        (2, (FIRST, LARGE, LARGE, FIRST), (FIRST, LARGE, FIRST)),
    ],
)
def test_features_are_kept_while_there_is_room(
    room: int, read: tuple[Picture, ...], asked: tuple[Picture, ...]
) -> None:
    """The least recently used image is evicted first; an image larger than the whole room is kept alone."""
    calls: list[ImageRef] = []

    def patches(image: ImageRef) -> Patches:
        calls.append(image)
        return next(each.patches for each in read if each.ref == image)

    cache = FeatureCache(model(), room * FIRST.features.size_bytes)
    for image in read:
        features = cache.of(image.ref, patches)
        assert torch.equal(features.embedding_MD, image.features.embedding_MD)
        assert torch.equal(features.deep_LMD, image.features.deep_LMD)
    assert calls == [image.ref for image in asked]


def test_what_is_transparent_is_white() -> None:
    assert picture(drawn(3, 2, (0, 0, 0, 0)).data).tobytes() == b"\xff" * 18


def test_a_photograph_is_turned_upright() -> None:
    lying, turned = Image.new("RGB", (4, 2), (255, 0, 0)), Image.Exif()
    lying.paste((0, 0, 255), (0, 0, 2, 2))
    turned[ExifTags.Base.Orientation] = 6  # a quarter turn clockwise makes it stand
    file = BytesIO()
    lying.save(file, format="PNG", exif=turned)
    upright = picture(file.getvalue())
    assert upright.size == (2, 4)
    assert [upright.getpixel((0, y)) for y in range(4)] == [(0, 0, 255)] * 2 + [(255, 0, 0)] * 2


def test_sixteen_bits_of_grey_are_not_all_white() -> None:
    file = BytesIO()
    Image.frombytes("I;16", (3, 1), struct.pack("<3H", 0, 0x8080, 0xFFFF)).save(file, format="PNG")
    assert picture(file.getvalue()).tobytes() == bytes([0] * 3 + [128] * 3 + [255] * 3)


def test_images_that_do_not_fit_are_refused_in_one_line(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds an image of 400 x 1 pixels, which is too narrow; crop it"):
        RENDERER.pixels.tokens(checked(drawn(400, 1).data))
    with pytest.raises(UserError, match=r"holds images, but model\.path=.*/model takes no images; choose"):
        Pixels(MODEL.replace("vision_model", "model"))
    (tmp_path / "config.json").write_text('{"model_type": "qwen2_5_vl"}')
    with pytest.raises(UserError, match=r"holds images, but model\.path=.* is a qwen2_5_vl; choose a model of type"):
        Pixels(str(tmp_path))


def test_marks_become_images_in_order_and_no_more_than_there_are() -> None:
    hinted = with_hint(TURN, "Is it {answer}?", "<image>")  # an answer that a model made up
    ids = RENDERER.prompt_ids(hinted, [FIRST.ref])
    assert ids.count(PLACEHOLDER) == 24
    assert RENDERER.tokenizer.decode(ids).endswith("Is it <image>?<|im_end|>\n<|im_start|>assistant\n")
    assert RENDERER.tokenizer.decode(RENDERER.prompt_ids([Message(role="user", content="<image>")])).count("<image>")


def test_a_typed_placeholder_is_text_and_no_place_of_an_image() -> None:
    text = f"<image>{vision.VISION_TOKENS[2]}"
    ids = RENDERER.prompt_ids([Message(role="user", content=text)], [FIRST.ref])
    assert ids.count(PLACEHOLDER) == 24
    assert RENDERER.tokenizer.decode(ids).count(vision.VISION_TOKENS[2]) == 25


def test_a_prompt_with_more_places_than_images_is_refused() -> None:
    with pytest.raises(UserError, match="the prompt has 2 places for 1 images; write <image> where each belongs"):
        RENDERER.expanded_ids((PLACEHOLDER, PLACEHOLDER), [FIRST.ref])
