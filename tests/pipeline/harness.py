"""lm-eval's own command on two small tasks, without a network."""

from __future__ import annotations

import json
import subprocess
import sys
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from cepo import tiny
from cepo.messages.groups import Message
from cepo.messages.hints import INSTRUCTION
from cepo.prompts.renderer import Renderer
from tests.pipeline.support import started

DATA = """
dataset_path: json
dataset_kwargs:
  data_files:
    test: {rows}
test_split: test
target_delimiter: ""
"""
CHOOSE = """
task: tiny_sums
output_type: multiple_choice
doc_to_text: "{{sum}}="
doc_to_choice: "{{choices}}"
doc_to_target: "{{label}}"
metric_list:
  - {metric: acc, aggregation: mean, higher_is_better: true}
"""
WRITE = """
task: tiny_steps
output_type: generate_until
doc_to_text: "{{prompt}}"
doc_to_target: "{{choices[label]}}"
generation_kwargs: {until: ["<|im_end|>"], max_gen_toks: 40, temperature: 0, do_sample: false}
metric_list:
  - {metric: exact_match, aggregation: mean, higher_is_better: true}
"""


def write_tasks(folder: Path, count: int) -> None:
    """Writes a multiple-choice task and a free-answer task."""
    renderer, rows = Renderer(str(tiny.path())), []
    for a in range(count):
        left, right = 23 + a, 45 + 3 * a
        total = left + right
        ids = renderer.prompt_ids([Message(role="user", content=f"{left} + {right} - 11 = ?\n{INSTRUCTION}")])
        choices = [str(total + off) for off in (10, 0, -1, 2)]
        rows.append(
            {"sum": f"{left}+{right}", "choices": choices, "label": 1, "prompt": renderer.tokenizer.decode(ids)}
        )
    (folder / "rows.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    for name, task in (("sums", CHOOSE), ("steps", WRITE)):
        (folder / f"{name}.yaml").write_text(task + DATA.format(rows=folder / "rows.jsonl"))


def started_on(model: str, arguments: str, folder: Path, token: str) -> AbstractContextManager[subprocess.Popen[str]]:
    """lm-eval's own command, without a network."""
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(folder / f"{model}-home")}
    words = ["run", "--model", model, "--model_args", arguments, "--tasks", "tiny_sums,tiny_steps", "--device", "cpu"]
    words += ["--include_path", str(folder), "--output_path", str(folder / model), "--log_samples", "--batch_size", "8"]
    variables = {**offline, "OPENAI_API_KEY": token, "OMP_NUM_THREADS": "1"}
    return started([sys.executable, "-m", "lm_eval", *words], variables, folder / f"{model}.log")


def results(folder: Path) -> dict[str, Any]:
    """The metrics of the run, and its samples."""
    (file,) = folder.rglob("results_*.json")
    found = json.loads(file.read_text())["results"]
    samples = {
        name: [json.loads(line) for line in next(folder.rglob(f"samples_{name}_*.jsonl")).read_text().splitlines()]
        for name in ("tiny_sums", "tiny_steps")
    }
    chosen = [answer for row in samples["tiny_sums"] for answer in row["filtered_resps"]]
    return {
        "metrics": {
            name: {key: value for key, value in row.items() if key.startswith(("acc,", "exact_match,"))}
            for name, row in found.items()
        },
        "logps": [float(logp) for logp, _ in chosen],
        "greedy": [str(greedy) for _, greedy in chosen],
        "written": [row["filtered_resps"] for row in samples["tiny_steps"]],
    }
