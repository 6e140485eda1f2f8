"""The wide task of the comparison with TRL: prompts of about 256 tokens and responses of any length up to 512.

A random model of the tiny model's shape samples its 512 tokens uniformly, including the end of sequence, so responses
end anywhere. None of them is correct; the share of digits is the reward, so that every group has a gradient.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from cepo.tiny.task import DATA
from services.verifier.functions import Sample

TINY = DATA.parent / "model"
EXAMPLES = 14


def digits(sample: Sample) -> float:
    """The share of digits in the response, the same reward as in `_trl.py`."""
    return sum(letter.isdigit() for letter in sample.response) / max(1, len(sample.response))


def write_prompts(file: Path, examples: int) -> None:
    """The problems of the tiny task, each after `examples` solved ones."""
    rows = [json.loads(line) for line in (DATA / "train.jsonl").read_text().splitlines()]
    solved = [f"{row['question'].removesuffix('?')}{row['answer']}" for row in rows]
    prompts = [" ".join([*solved[at : at + examples], row["question"]]) for at, row in enumerate(rows[examples:])]
    asked = [row | {"question": prompt} for prompt, row in zip(prompts, rows[examples:], strict=True)]
    file.write_text("".join(json.dumps(row) + "\n" for row in asked))


def overrides(folder: Path) -> list[str]:
    """Writes the model and the prompts, each a question after solved ones; returns overrides for the run file."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(0)
    model, data = folder / "model", folder / "prompts.jsonl"
    shutil.copytree(TINY, model)
    config = AutoConfig.from_pretrained(TINY)
    AutoModelForCausalLM.from_config(config, dtype=torch.float32).save_pretrained(model)
    write_prompts(data, EXAMPLES)
    return [
        f'model.path="{model}"',
        "model.max_length=896",
        f'data.train="{data}"',
        "sampling.prompts=12",
        "sampling.max_tokens=512",
        'reward.functions=["benchmarks._wide:digits"]',
        "optim.lr=1e-12",
    ]
