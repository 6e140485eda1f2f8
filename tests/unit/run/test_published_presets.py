"""The published settings, written out: what the papers' tables, their appendices and the released scripts say.

Sources: arXiv:2605.19436, Tables 6 and 7 and Appendix B; github.com/ahmedheakl/CEPO, experiments/geo; arXiv:2503.14476
and EasyR1's DAPO script; github.com/iie-ycx/RLSD, examples/visual_rl; github.com/Qwen-Applications/CLIPO, scripts;
github.com/siyan-zhao/OPSD, scripts; github.com/THU-BPM/RLCSD, configs/math_deepmath; the PPO trainers of
github.com/McGill-NLP/VinePPO and github.com/AIFrameResearch/SPO.
"""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import BaseModel

from cepo.messages.groups import Message
from cepo.messages.hints import with_hint, with_instruction
from cepo.run.config import RunConfig
from cepo.run.file import load
from tests.helpers.factories import RUNS

QUESTION = "Find x."
STUDENT = r"Find x. Solve the problem step by step, keeping reasoning brief. Put ONLY the final answer inside \boxed{}"
PAPER = ("cepo-paper", "cepo-repo", "grpo-cepo-paper", "opsd-cepo-table7", "sdpo-cepo-table7", "rlsd-cepo-table7")
GEOMETRY = tuple(sorted(path.stem for path in RUNS.glob("geo3k_*.toml")))

TABLE_6: dict[str, Any] = {
    "lora.rank": 16,
    "lora.alpha": 32,
    "loop.steps": 50,
    "model.max_length": 2048,
    "sampling.prompts": 32,
    "sampling.samples": 8,
    "optim.schedule": "cosine",
    "optim.warmup_steps": 5,
    "optim.weight_decay": 0.01,
    "algorithm.dual_clip": None,
}
CLIPO: dict[str, Any] = {
    "optim.lr": 1e-6,
    "optim.schedule": "constant",
    "optim.weight_decay": 0.01,
    "sampling.samples": 16,
    "algorithm.clip_low": 0.2,
    "algorithm.clip_high": 0.2,
    "algorithm.dual_clip": 3.0,
    "algorithm.kl_coef": 0.001,
    "algorithm.kl_form": "low_var_kl",
    "algorithm.aggregation": "token-mean",
    "algorithm.contrast": "infonce",
    "algorithm.temperature": 0.05,
    "algorithm.bonus_weight": 0.2,
}
OPSD: dict[str, Any] = {
    "optim.lr": 2e-4,
    "lora.rank": 64,
    "lora.alpha": 128,
    "sampling.temperature": 1.1,
    "sampling.top_p": 0.95,
    "sampling.top_k": 20,
    "sampling.max_tokens": 1024,
    "algorithm.beta": 0.5,
    "algorithm.positive": "solution",
    "algorithm.teacher.source": "reference",
}
SPO: dict[str, Any] = {
    "algorithm.kl_coef": 1e-4,
    "algorithm.kl_form": "low_var_kl",
    "algorithm.kl_aggregation": "seq-mean-token-sum",
    "algorithm.aggregation": "token-mean",
    "algorithm.clip_low": 0.2,
    "algorithm.clip_high": 0.2,
}
PUBLISHED: dict[str, dict[str, Any]] = {
    "grpo-cepo-paper": {**TABLE_6, "optim.lr": 1e-6, "algorithm.clip_low": 0.2, "algorithm.clip_high": 0.28},
    "cepo-paper": {
        **TABLE_6,
        "optim.lr": 5e-6,
        "algorithm.clip_low": 0.2,
        "algorithm.clip_high": 0.28,
        "algorithm.lam": 0.5,
        "algorithm.schedule": "linear",
        "algorithm.decay_steps": 25,
        "algorithm.eps_w": 0.5,
        "algorithm.teacher.source": "actor",
    },
    "cepo-repo": {
        "lora.rank": 16,
        "lora.alpha": 64,
        "model.max_length": 2816,
        "sampling.max_tokens": 2048,
        "optim.lr": 5e-6,
        "optim.schedule": "constant",
        "optim.minibatches": 2,
        "algorithm.eps_w": 0.2,
        "algorithm.dual_clip": 3.0,
        "reward.accuracy": 0.9,
        "reward.format": 0.1,
    },
    "rlsd-actor": {
        **TABLE_6,
        "optim.lr": 1e-6,
        "algorithm.lam": 0.5,
        "algorithm.decay_steps": 25,
        "algorithm.eps_w": 0.5,
        "algorithm.student_logp": "old",
        "algorithm.teacher.source": "actor",
    },
    "rlsd-official-script": {
        "sampling.prompts": 256,
        "sampling.samples": 8,
        "sampling.max_tokens": 4096,
        "optim.lr": 1e-6,
        "optim.schedule": "constant",
        "optim.minibatches": 1,
        "optim.weight_decay": 0.01,
        "algorithm.dual_clip": 3.0,
        "algorithm.clip_low": 0.2,
        "algorithm.clip_high": 0.28,
        "algorithm.decay_steps": 60,
        "algorithm.eps_w": 0.2,
        "algorithm.student_logp": "current",
        "algorithm.teacher.sync_every": 20,
    },
    "dapo": {
        "reward.accuracy": 1.0,
        "reward.wrong": -1.0,
        "reward.overlong_factor": 1.0,
        "algorithm.clip_low": 0.2,
        "algorithm.clip_high": 0.28,
        "algorithm.aggregation": "token-mean",
        "algorithm.dual_clip": 10.0,
        "algorithm.kl_coef": 0.0,
        "sampling.samples": 16,
    },
    "clipo-gsm8k": {
        **CLIPO,
        "sampling.prompts": 512,
        "optim.minibatches": 2,
        "sampling.max_tokens": 2048,
        "algorithm.head_size": 512,
        "algorithm.head_warmup": 14,
    },
    "clipo-math": {
        **CLIPO,
        "sampling.prompts": 128,
        "optim.minibatches": 1,
        "sampling.max_tokens": 4096,
        "algorithm.head_size": 2048,
        "algorithm.head_warmup": 58,
    },
    "opsd-official": {**OPSD, "algorithm.support": "full"},
    "opsd-official-top50": {
        **OPSD,
        "algorithm.support": "teacher_topk",
        "algorithm.top": 50,
        "algorithm.remainder": "renormalize",
    },
    "rlcsd": {
        "optim.lr": 1e-6,
        "optim.minibatches": 4,
        "optim.weight_decay": 0.01,
        "sampling.prompts": 64,
        "sampling.samples": 8,
        "sampling.temperature": 1.0,
        "sampling.top_p": 0.95,
        "sampling.top_k": 20,
        "sampling.max_tokens": 16384,
        "algorithm.clip_low": 0.2,
        "algorithm.clip_high": 0.2,
        "algorithm.kl_coef": 0.0,
        "algorithm.tau": 0.02,
        "algorithm.lam": 0.5,
        "algorithm.threshold": 0.02,
        "algorithm.eta": 1.0,
        "algorithm.residual_clip": 2.0,
        "algorithm.wrong_hints": 4,
        "algorithm.importance": "token_truncate",
        "algorithm.importance_cap": 2.0,
        "algorithm.teacher.source": "sync",
        "algorithm.teacher.sync_every": 10,
    },
    "vineppo": {**SPO, "algorithm.continuations": 9},
    "spo-chain": {**SPO, "algorithm.interval": 5},
    "spo-tree": SPO,
}


def value(config: BaseModel, key: str) -> Any:
    """The value of a dotted key."""
    held: Any = config
    for name in key.split("."):
        held = getattr(held, name)
    return held


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_preset_has_the_published_values(name: str) -> None:
    config = load(RUNS / f"{name}.toml")
    assert {key: value(config, key) for key in PUBLISHED[name]} == PUBLISHED[name]


@pytest.mark.parametrize("name", [*PAPER, "rlsd-actor", *GEOMETRY])
def test_the_students_prompt_is_that_of_appendix_b(name: str) -> None:
    assert with_instruction(QUESTION, load(RUNS / f"{name}.toml").data.instruction) == STUDENT


@pytest.mark.parametrize("name", ["cepo-paper", "rlsd-actor", "opsd-cepo-table7", "sdpo-cepo-table7", "geo3k_cepo_2b"])
def test_the_teachers_prompt_is_that_of_appendix_b(name: str) -> None:
    turn = (Message(role="user", content=STUDENT),)
    hinted = with_hint(turn, load(RUNS / f"{name}.toml").data.hint, "7")
    assert hinted[0].content == f"{STUDENT}.\nHere is a sample answer: 7"


def test_rlsd_by_the_papers_equation_differs_from_cepo_in_the_denominator_alone() -> None:
    cepo, rlsd = (load(RUNS / f"{name}.toml") for name in ("cepo-paper", "rlsd-actor"))
    assert cepo.algorithm.asks[0] == rlsd.algorithm.asks[0]
    assert cepo.algorithm.asks[1:] != rlsd.algorithm.asks[1:]
    shared = set(type(cepo.algorithm).model_fields) & set(type(rlsd.algorithm).model_fields) - {"name"}
    assert {key for key in shared if value(cepo.algorithm, key) != value(rlsd.algorithm, key)} == set()
    sections = set(RunConfig.model_fields) - {"name", "algorithm", "optim"}
    assert {key for key in sections if value(cepo, key) != value(rlsd, key)} == set()
    assert cepo.optim == rlsd.optim.model_copy(update={"lr": 5e-6})
