"""`cepo check` on model families: what vLLM, PEFT and the forward pass make of them, without any weights."""

from __future__ import annotations

import json
import shutil
from itertools import takewhile
from pathlib import Path
from typing import Any

import pytest
from transformers import CONFIG_MAPPING

import cepo.tiny
from cepo.cli.preflight.checks import run_checks
from cepo.cli.preflight.preflight import Preflight
from cepo.cli.preflight.sizes import measure
from cepo.cli.preflight.vllm_tables import takes_lora
from cepo.errors import UserError
from cepo.model.miniature import HEAD_DIM, shrunk
from tests.helpers.factories import make_config
from tests.helpers.families import OVERRIDES
from tests.unit.model.test_probe import LONGROPE

ATTENTION = 'lora.targets=["q_proj", "v_proj"]'
FEW = ("data.limit=8", "data.eval=")


def folder(path: Path, family: str, **overrides: Any) -> Path:
    """A model folder of a family: a small configuration and the tiny model's tokenizer, without weights."""
    shutil.copytree(cepo.tiny.path(), path, ignore=shutil.ignore_patterns("*.safetensors", "generation_config.json"))
    config = shrunk(CONFIG_MAPPING[family](), **OVERRIDES.get(family, {}) | overrides)
    config.save_pretrained(path)
    text = json.loads((path / "config.json").read_text())
    (path / "config.json").write_text(json.dumps(text | {"architectures": [ARCHITECTURES[family]]}))
    return path


ARCHITECTURES = {
    "falcon_h1": "FalconH1ForCausalLM",
    "gemma2": "Gemma2ForCausalLM",
    "gemma3_text": "Gemma3ForCausalLM",
    "gemma4_text": "Gemma4ForCausalLM",
    "gpt2": "GPT2LMHeadModel",
    "llama": "LlamaForCausalLM",
    "nemotron_h": "NemotronHForCausalLM",
    "phi3": "Phi3ForCausalLM",
    "qwen3_moe": "Qwen3MoeForCausalLM",
}


def checked(model: Path, *settings: str) -> list[str]:
    """The notes on the model, its adapter and its tokens.

    Raises:
        UserError: what blocks the run, after the name of the check.
    """
    config = make_config(f"model.path={model}", *FEW, *settings)
    preflight = Preflight(config, model)
    try:
        findings = list(takewhile(lambda finding: finding.check != "answers", run_checks(preflight)))
    except UserError as error:
        raise UserError(f"{preflight.check}: {error}") from error
    return [each.text for each in findings if each.state == "note" and each.check in ("model", "adapter", "tokens")]


@pytest.mark.parametrize(
    ("family", "overrides", "targets", "check", "says"),
    [
        ("falcon_h1", {}, ATTENTION, "model", "of the family falcon_h1 is not supported: the log-probs of its hidden"),
        ("gemma2", {}, ATTENTION, "model", "of the family gemma2 is not supported: the log-probs of its hidden states"),
        ("gpt2", {}, 'lora.targets=["c_attn"]', "model", "vLLM serves GPT2LMHeadModel without LoRA; choose another"),
        ("qwen3_moe", {}, 'lora.targets=["gate"]', "adapter", "has no module gate; choose from k_proj, o_proj, q_proj"),
        ("nemotron_h", {}, 'lora.targets=["out_proj"]', "adapter", "Module 'out_proj' is incompatible with Mamba-"),
        ("llama", {"vocab_size": 300}, ATTENTION, "tokens", "the embedding has 300 rows; resize the embedding or "),
        (
            "llama",
            {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 10000.0}},
            ATTENTION,
            "model",
            'scale its rotary positions differently (rope_type "dynamic"); choose another model',
        ),
        (
            "phi3",
            {
                "max_position_embeddings": 1024,
                "original_max_position_embeddings": 170,
                "rope_parameters": LONGROPE | {"original_max_position_embeddings": 170},
            },
            'lora.targets=["qkv_proj"]',
            "model",
            "for hints crosses the 170 positions up to which LongRoPE has short factors; set it to at most ",
        ),
    ],
)
def test_a_family_that_the_run_would_refuse_is_refused_before(
    tmp_path: Path,
    family: str,
    overrides: dict[str, Any],
    targets: str,
    check: str,
    says: str,
) -> None:
    with pytest.raises(UserError) as refused:
        checked(folder(tmp_path / "model", family, **overrides), targets)
    said = str(refused.value)
    assert said.startswith(f"{check}: ")
    assert says in said
    assert "\n" not in said


def test_a_family_without_trees_is_noted(tmp_path: Path) -> None:
    assert checked(folder(tmp_path / "model", "gemma3_text"), ATTENTION) == [
        "gemma3_text does not share prefixes: every sequence runs in full, and passes and micro-batches count their "
        "padding"
    ]


def test_heads_of_their_own_width_in_some_layers_are_counted(tmp_path: Path) -> None:
    """Gemma 4: asking its configuration for `head_dim` raises. Five layers of 16 and one of 32, two key heads each."""
    path = folder(tmp_path / "model", "gemma4_text")
    checked(path, ATTENTION)
    assert measure(make_config(f"model.path={path}", ATTENTION)).cache_numbers == 2 * 2 * (5 * HEAD_DIM + 2 * HEAD_DIM)


def test_experts_that_lora_leaves_out_are_noted(tmp_path: Path) -> None:
    assert checked(folder(tmp_path / "model", "qwen3_moe"), ATTENTION) == [
        "the routed experts are one parameter a layer, which LoRA does not adapt; the other modules train"
    ]


def test_only_layers_that_peft_adapts_are_offered(tmp_path: Path) -> None:
    names = measure(make_config(f"model.path={folder(tmp_path / 'model', 'qwen3_moe')}", ATTENTION)).linear_names
    assert names == ("k_proj", "o_proj", "q_proj", "v_proj")


def test_a_token_beyond_the_embedding_that_nothing_uses_is_a_note(tmp_path: Path) -> None:
    path = folder(tmp_path / "model", "llama")
    tokenizer = json.loads((path / "tokenizer.json").read_text())
    extra = dict(tokenizer["added_tokens"][0], id=len(tokenizer["model"]["vocab"]) + 900, content="<|unused|>")
    tokenizer["added_tokens"].append(extra)
    tokenizer["model"]["vocab"]["<|unused|>"] = extra["id"]
    (path / "tokenizer.json").write_text(json.dumps(tokenizer))
    (note,) = checked(path, ATTENTION)
    assert note.startswith("1 tokens have no row in the embedding of 512, such as '<|unused|>' (")


@pytest.mark.parametrize(
    ("architecture", "served"),
    [
        ("LlamaForCausalLM", True),
        ("Gemma4ForCausalLM", True),
        ("Cohere2ForCausalLM", True),
        ("GPTNeoXForCausalLM", True),  # through vLLM's transformers backend
        ("GPT2LMHeadModel", False),
        ("MambaForCausalLM", False),
        ("Nowhere", None),
    ],
)
def test_vllms_tables_are_read_without_importing_it(architecture: str, served: bool | None) -> None:
    assert takes_lora(architecture) is served


def test_positions_hold_the_longest_context_that_is_scored(tmp_path: Path) -> None:
    """`model.max_length` is below the 200 positions, and the hint of another rollout may go beyond them."""
    path = folder(tmp_path / "model", "llama", max_position_embeddings=200)
    settings = (f"model.path={path}", ATTENTION, *FEW)
    with pytest.raises(UserError, match=r"and 128 for the hint of another rollout, are \d+ tokens, above the 200 pos"):
        list(run_checks(Preflight(make_config(*settings), tmp_path)))
    grpo = make_config(*settings, 'algorithm={name="grpo"}')
    assert any("of 160 tokens" in finding.text for finding in run_checks(Preflight(grpo, tmp_path)))


def test_a_small_model_that_does_not_run_leaves_the_proof_to_the_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Zamba 2 and Kimi Linear were refused by name because their small models did not run."""

    def fails(model: object) -> None:
        raise RuntimeError("selected index k out of range")

    monkeypatch.setattr("cepo.model.miniature.own_pass", fails)
    assert checked(folder(tmp_path / "model", "llama"), ATTENTION) == [
        "the family is proven only when the run loads the model: no small model of llama (RuntimeError: selected index "
        "k out of range)"
    ]
