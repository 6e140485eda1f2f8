"""The tiny task with figures: the drawings, the shipped files, and the training of the vision-language model."""

from __future__ import annotations

import json
from dataclasses import replace
from io import BytesIO
from itertools import islice

import pytest
import torch
from PIL import Image
from transformers import AutoModelForImageTextToText, Qwen3ForCausalLM

from cepo import tiny
from cepo.prompts.images import read
from cepo.tiny import vision
from cepo.tiny.figures import HEIGHT, KINDS, QUESTION, WIDTH, figures
from cepo.tiny.task import DATA
from cepo.tiny.train_vision import RECIPE, batches, encode, loss_of, train

torch.set_num_threads(1)


@pytest.mark.parametrize(("name", "seed", "held_out"), [("train", 0, False), ("eval", 1, True)])
def test_the_shipped_files_are_what_the_task_writes(name: str, seed: int, held_out: bool) -> None:
    rows = [json.loads(line) for line in (DATA / f"figures_{name}.jsonl").read_text().splitlines()]
    drawn = list(islice(figures(seed, held_out=held_out), len(rows)))
    assert {figure.kind for figure in drawn} == set(KINDS)
    assert [row["answer"] for row in rows] == [str(figure.problem.answer) for figure in drawn]
    assert {row["question"] for row in rows} == {QUESTION}
    for row, figure in islice(zip(rows, drawn, strict=True), 0, None, 16):
        with Image.open(BytesIO(read(row["images"][0], None))) as image:
            assert image.size == (WIDTH, HEIGHT)
            assert image.tobytes() == figure.draw().tobytes()


def test_no_held_out_figure_is_trained_on() -> None:
    kept, trained = (set(islice(figures(seed, held_out=out), 500)) for seed, out in ((1, True), (0, False)))
    assert not kept & trained
    assert all(figure.problem.held_out for figure in kept)


def test_the_answer_follows_from_the_numbers_that_are_drawn() -> None:
    for figure in islice(figures(3, held_out=False), 200):
        first, *rest = figure.labels
        answers = {"perimeter": first + sum(rest), "angles": 180 - first - sum(rest), "segment": first - sum(rest)}
        assert figure.problem.answer == answers[figure.kind] > 0


@torch.no_grad()
def test_it_starts_as_the_text_model() -> None:
    tokenizer = vision.tokenizer()
    ids_BS = torch.tensor([tokenizer.encode("12 + 34 - 5 = ?")])
    text = Qwen3ForCausalLM.from_pretrained(tiny.path(), dtype=torch.float32)
    vision_model = vision.new_model(tokenizer)
    wanted_BSV = text(ids_BS).logits
    assert torch.allclose(vision_model(ids_BS).logits[..., : wanted_BSV.shape[-1]], wanted_BSV, atol=1e-5)


@torch.no_grad()
def test_the_shipped_model_reads_what_a_new_one_cannot() -> None:
    tokenizer = vision.tokenizer()
    inputs = encode(tokenizer, vision.image_processor(), next(batches(replace(RECIPE, seed=9, batch_size=32))))
    shipped = AutoModelForImageTextToText.from_pretrained(vision.path(), dtype=torch.float32)
    assert float(loss_of(shipped, *inputs)) < 0.5 < float(loss_of(vision.new_model(tokenizer), *inputs))


def test_the_script_trains() -> None:
    recipe = replace(RECIPE, num_steps=4, batch_size=4, warmup_steps=1)
    tokenizer = vision.tokenizer()
    once, again = (train(recipe, tokenizer).state_dict() for _ in range(2))
    before = vision.new_model(tokenizer).model.language_model.state_dict()
    assert all(torch.equal(once[key], again[key]) for key in once)
    assert not torch.equal(
        once["model.language_model.layers.0.mlp.up_proj.weight"], before["layers.0.mlp.up_proj.weight"]
    )


def test_the_shipped_weights_are_small() -> None:
    assert sum(file.stat().st_size for file in vision.path().iterdir()) < 12 * 10**6
