"""Real vLLM with models other than the shipped ones, and `cepo check --engine`."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import Phi3Config, Phi3ForCausalLM

import cepo.tiny
from tests.helpers.factories import RUNS
from tests.unit.model.test_probe import LONGROPE

pytestmark = [pytest.mark.slow, pytest.mark.nightly]
TINY = str(RUNS / "tiny_cepo.toml")
HEAD_DIM, FACTORS = 32, 16
"""vLLM's attention on the CPU takes no narrower heads."""
FEW = ["data.limit=8", "data.eval=", "sampling.prompts=2"]


def cepo_command(*words: str, settings: list[str]) -> subprocess.CompletedProcess[str]:
    changed = [word for setting in settings for word in ("--set", setting)]
    command = [sys.executable, "-m", "cepo", *words, *changed]
    return subprocess.run(command, capture_output=True, text=True, timeout=280, check=False)


def test_the_engine_is_tried_and_the_hours_are_estimated() -> None:
    done = cepo_command("check", TINY, "--engine", "--json", settings=FEW)
    assert done.returncode == 0, done.stderr
    speed, hours = [each["text"] for each in json.loads(done.stdout)["findings"] if each["check"] == "engine"]
    assert re.match(r"vLLM started in \d+ s: \d+ tokens a second over 16 responses of \d+ tokens on average$", speed)
    assert re.match(
        r"about [\d.e-]+ h of sampling: 20 steps x 2 prompts x 8 samples x \d+ tokens / \d+ tokens a ", hours
    )


def test_longrope_has_the_same_factors_in_the_engine_and_the_trainer(tmp_path: Path) -> None:
    """`model.max_length` is above the original 64; in float32 proofs are compared to within 4e-4 nats a token."""
    model = tmp_path / "model"
    shutil.copytree(cepo.tiny.path(), model, ignore=shutil.ignore_patterns("*.safetensors", "*.bin"))
    config = Phi3Config(
        hidden_size=4 * HEAD_DIM,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
        vocab_size=512,
        max_position_embeddings=512,
        original_max_position_embeddings=64,
        rope_parameters=LONGROPE | {"short_factor": [1.0] * FACTORS, "long_factor": list(range(1, 3 * FACTORS, 3))},
        eos_token_id=2,
        pad_token_id=0,
    )
    torch.manual_seed(0)
    Phi3ForCausalLM(config).save_pretrained(model)
    settings = [
        f"model.path={model}",
        "sampling.max_tokens=12",
        'lora.targets=["qkv_proj", "o_proj"]',
        'algorithm={name="grpo"}',
        "loop.steps=1",
        "optim.warmup_steps=0",
    ]
    done = cepo_command("train", TINY, "--run-dir", str(tmp_path / "run"), settings=[*FEW, *settings])
    assert done.returncode == 0, done.stderr
    (row,) = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert row["rollout/logp_gap"] < 1e-4
