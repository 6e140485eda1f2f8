"""The tiny vision-language model through the four services and real vLLM: figures, text-only rows and bad rows."""

from __future__ import annotations

import base64
import json
from itertools import islice
from pathlib import Path
from typing import Any

import pytest

from cepo.tiny.figures import QUESTION, figures
from tests.helpers.vision import BLANK, one_colour
from tests.pipeline.support import ROOT, command, rows, started

pytestmark = pytest.mark.slow

RUN = ROOT / "deploy" / "runs" / "tiny_vl_cepo.toml"
SETTINGS = ("loop.steps=3", "sampling.prompts=8", "eval.prompts=32", "eval.every=3", "engine.max_num_seqs=64")


def row(answer: int, *images: bytes, question: str = QUESTION) -> dict[str, Any]:
    uris = ["data:image/png;base64," + base64.b64encode(image).decode() for image in images]
    return {"question": question, "answer": str(answer), "images": uris}


def written(path: Path, dataset: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(each) + "\n" for each in dataset))
    return f"'{path}'"


@pytest.mark.timeout(600)
def test_a_run_on_images_trains_and_what_it_reads_is_in_them(tmp_path: Path) -> None:
    drawn = list(islice(figures(0, held_out=False), 20))
    train = [row(figure.problem.answer, figure.png()) for figure in drawn]
    train[3] = row(52, question="12 + 45 - 5 = ?")
    train[4] = row(drawn[4].problem.answer, drawn[4].png(), BLANK.data, question="From <image> and not <image> find x.")
    train[5] = row(7, drawn[5].png()[:-30])
    train[6] = row(7, drawn[6].png(), question="Find x.<image><image>")
    train[7] = row(7, one_colour(5000, 5000))
    train[8] = {"question": QUESTION, "answer": "7", "images": ["absent.png"]}
    blank = [row(figure.problem.answer, BLANK.data) for figure in islice(figures(1, held_out=True), 32)]
    data = (
        f"data.train={written(tmp_path / 'train.jsonl', train)}",
        f"data.eval={written(tmp_path / 'eval.jsonl', blank)}",
        "data.on_bad_row='drop'",
    )
    run_dir = tmp_path / "run"
    with started(command(run_dir, settings=(*SETTINGS, *data), file=RUN)) as process:
        printed, _ = process.communicate()
    assert process.returncode == 0, printed
    assert "16 problems, 32 held out" in printed
    reasons = ("a damaged image", "1 image for 2 <image> marks", "an image of 5000 x 5000 pixels")
    for number, reason in enumerate(reasons, start=5):
        assert printed.count(f"row {number}: column 'images' holds {reason}") == 1
    assert "and 1 more" in printed
    metrics = rows(run_dir)
    assert [each["groups/failed"] for each in metrics] == [0, 0, 0]
    assert 0 < max(each["rollout/logp_gap"] for each in metrics) < 1e-5
    assert sum(each["accuracy/train"] for each in metrics) / 3 > 0.3
    assert max(metrics[0]["accuracy/eval_before"], metrics[-1]["accuracy/eval"]) < 0.15  # on blank images
    groups = [json.loads(line) for line in (run_dir / "rollouts" / "step-000000.jsonl").read_text().splitlines()]
    marks = [sum(message["content"].count("<image>") for message in group["prompt"]) for group in groups]
    assert [len(group["images"]) for group in groups] == marks
    assert all((run_dir / "images" / name).is_file() for group in groups for name in group["images"])
    contexts = [
        evidence["context"] for group in groups for sample in group["samples"] for evidence in sample["evidence"]
    ]
    assert len(list((run_dir / "images").iterdir())) == 16
    assert {"ANSWER", "REJECTED"} <= set(contexts)
