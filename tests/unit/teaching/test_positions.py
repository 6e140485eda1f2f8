"""The teacher with a model whose positions are learned: no sequence is longer than they are."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch

from cepo import tiny
from cepo.messages.groups import BASE_POLICY
from cepo.net.settings import Settings
from cepo.service.adapters import AdapterCache
from cepo.teaching.engine import TransformersScorer
from tests.helpers.families import build
from tests.helpers.scorers import RENDERER, no_adapters

torch.set_num_threads(1)


@pytest.mark.parametrize(("family", "positions", "length"), [("gpt2", 256, 256), ("gpt2", 512, 288), ("bloom", 0, 288)])
async def test_the_canary_and_the_contexts_end_where_the_positions_do(
    tmp_path: Path, family: str, positions: int, length: int
) -> None:
    """The run allows 160 tokens, and 128 more for a hint."""
    model = tmp_path / "model"
    shutil.copytree(tiny.path(), model, ignore=shutil.ignore_patterns("*.safetensors"))
    build(family, **({"n_positions": positions} if positions else {})).save_pretrained(model)
    settings = Settings(model=str(model), dtype="float32", max_model_len=160 + 128)
    scorer = TransformersScorer(settings, RENDERER, AdapterCache(tmp_path / "cache", no_adapters, keep=2))
    try:
        assert scorer.context_length == length
        assert len((await scorer.load(BASE_POLICY)).canary_logps) > len(RENDERER.canary_ids(15))
    finally:
        scorer.close()
