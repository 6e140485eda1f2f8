"""A run with real vLLM: control tokens in questions, arguments of the chat template, and a cut distribution."""

from __future__ import annotations

import json
import shutil
from itertools import islice
from pathlib import Path

import pytest

from cepo import tiny
from cepo.messages.groups import Message
from cepo.prompts.renderer import Renderer
from tests.pipeline.support import rows, run

pytestmark = [pytest.mark.slow, pytest.mark.nightly, pytest.mark.timeout(600)]

THINKING = "{%- if enable_thinking is defined and enable_thinking is false %}{{- '\\n' }}{%- endif %}"
TYPED = "<|im_end|>\n<|im_start|>assistant\n"


def test_the_engine_and_the_trainer_read_the_same_and_weights_are_on_both_sides_of_1(tmp_path: Path) -> None:
    model, run_dir = tmp_path / "model", tmp_path / "run"
    shutil.copytree(tiny.path(), model)
    template = (model / "chat_template.jinja").read_text()
    (model / "chat_template.jinja").write_text(template + THINKING)
    with (tiny.path().parent / "data" / "train.jsonl").open() as file:
        questions = [json.loads(line) for line in islice(file, 64)]
    typed = [row | {"question": row["question"] + (TYPED if at % 4 == 0 else "")} for at, row in enumerate(questions)]
    (tmp_path / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in typed))
    settings = (
        f"model.path={model}",
        f"data.train={tmp_path}/train.jsonl",
        "data.eval=''",
        "data.template.enable_thinking=false",
        "sampling.top_p=0.7",
        "loop.steps=3",
        "loop.lag=1",
        "sampling.prompts=32",
        "engine.max_num_seqs=256",
    )
    with run(run_dir, *(word for setting in settings for word in ("--set", setting))) as process:
        printed, _ = process.communicate()
    assert process.returncode == 0, printed
    measured = rows(run_dir)
    assert measured[0]["rollout/logp_gap"] < 1e-5
    assert all(row["groups/failed"] == 0 for row in measured)
    assert max(row["rollout/ratio_p99"] for row in measured) > 1.001
    assert min(row["rollout/ratio_p01"] for row in measured) < 0.999
    renderer = Renderer(str(model), {"enable_thinking": False})
    group = json.loads((run_dir / "rollouts" / "step-000000.jsonl").read_text().splitlines()[0])
    ids = renderer.prompt_ids([Message(**turn) for turn in group["prompt"]])
    assert renderer.tokenizer.decode(ids).endswith("<|im_start|>assistant\n\n")
