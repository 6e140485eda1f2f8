"""A small soak with one fault of every kind."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.soak import FAULTS, Plan

RUN = """
import json, sys
from benchmarks.soak import Plan, soak
print(json.dumps(soak(Plan(*map(int, sys.argv[1:3]), float(sys.argv[3]), int(sys.argv[4])))))
"""


@pytest.mark.parametrize(
    ("groups", "step", "claim_seconds", "seed"),
    [
        (60, 5, 0.15, 1013),  # with this seed the poisoned group fails while other faults last, which saves seconds
        pytest.param(1000, 20, 0.3, 7, marks=[pytest.mark.nightly, pytest.mark.timeout(900)]),
    ],
)
def test_no_fault_loses_or_doubles_a_group(groups: int, step: int, claim_seconds: float, seed: int) -> None:
    arguments = [str(each) for each in (groups, step, claim_seconds, seed)]
    root = Path(__file__).parents[3]
    soaked = subprocess.run(
        [sys.executable, "-c", RUN, *arguments], cwd=root, capture_output=True, text=True, check=False
    )
    assert soaked.returncode == 0, soaked.stderr
    figures = json.loads(soaked.stdout)
    assert figures["broken"] == [], f"seed {seed}: {soaked.stderr}"
    assert figures["groups_exactly_once"] == groups
    assert set(figures["faults"]) >= set(FAULTS)


def test_every_fault_happens_before_the_last_groups_and_a_seed_repeats_them() -> None:
    plan = Plan(10_000, 50, 1.0, 3)
    assert plan.faults() == Plan(10_000, 50, 1.0, 3).faults() != Plan(10_000, 50, 1.0, 4).faults()
    assert {name for _, name in plan.faults()} == set(FAULTS)
    assert max(at for at, _ in plan.faults()) < 9_500
    assert len(plan.poison()) == 20
