"""The example method in docs/architecture.md is complete and computes what the page says."""

from __future__ import annotations

import math
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from cepo.algo.batch import TrainBatch
from services.trainer.learning.batch import pack
from tests.helpers.factories import make_ragged

PAGE = Path(__file__).parents[3] / "docs" / "architecture.md"


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Returns the class of the page, executed in a new module."""
    (code,) = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert code.count("\n") <= 40
    module = ModuleType("evidence_gate")
    monkeypatch.setitem(sys.modules, module.__name__, module)  # pydantic resolves the annotations in this module
    exec(code, vars(module))
    return vars(module)["EvidenceGate"]


def batch_of(asks: tuple[Any, ...]) -> TrainBatch:
    return pack(make_ragged([[3, 5, 4, 2], [6, 1, 2, 3]], asks=asks))


def test_it_asks_for_the_two_contexts_and_gates_each_token_by_them(example: Any) -> None:
    method = example(threshold=0.5)
    plain, answer = method.asks
    batch = batch_of(method.asks)
    advantages = method.advantages(batch, 0)
    expected_BT = method.base_advantages(batch)
    tokens = open_tokens = 0
    for row, response in enumerate(batch.response_ids):
        for at in range(len(response)):
            change = batch.evidence[answer].logp_BT[row, at] - batch.evidence[plain].logp_BT[row, at]
            tokens += 1
            open_tokens += bool(abs(change) > 0.5)
            if abs(change) <= 0.5:
                expected_BT[row, at] = 0.0
    torch.testing.assert_close(advantages.adv_BT, expected_BT, rtol=0, atol=0)
    assert 0 < open_tokens < tokens
    assert math.isclose(advantages.metrics["gate/open_fraction"], open_tokens / tokens, rel_tol=1e-6)


def test_without_evidence_it_is_grpo(example: Any) -> None:
    method = example()
    batch = batch_of(())
    torch.testing.assert_close(method.advantages(batch, 0).adv_BT, method.base_advantages(batch), rtol=0, atol=0)
