"""Small random models of the causal-LM families of transformers, and the two ways to compute their log-probs."""

from __future__ import annotations

import random
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn
from transformers import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.pytorch_utils import Conv1D

from cepo.model import attention
from cepo.model.forward import body, response_logps
from cepo.model.lora import make_lean
from cepo.model.miniature import HEAD_DIM, miniature

ROPE = {"rope_type": "default", "rope_theta": 10000.0}
SLIDING = ["sliding_attention", "full_attention"] * 2
HYBRID = ["linear_attention", "hybrid"] * 2
ENCODERS = (
    "bert bert-generation big_bird camembert data2vec-text electra ernie megatron-bert rembert roberta "
    "roberta-prelayernorm roc_bert roformer xlm-roberta xlm-roberta-xl xmod"
)
OVERRIDES: dict[str, dict[str, Any]] = {
    **{family: {"is_decoder": True} for family in ENCODERS.split()},
    "bamba": {"attn_layer_indices": [1]},
    "deepseek_v2": {"num_experts_per_tok": 2, "n_group": 1, "topk_group": 1},
    "dots1": {"n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2},
    "falcon_h1": {"mamba_d_head": HEAD_DIM, "lm_head_multiplier": 0.0390625},
    "gemma3n_text": {
        "num_hidden_layers": 4,
        "layer_types": SLIDING,
        "num_kv_shared_layers": 2,
        "intermediate_size": 96,
        "activation_sparsity_pattern": [0.95, 0.95, 0.0, 0.0],
    },
    "granitemoehybrid": {"layer_types": ["linear_attention", "full_attention"]},
    "hrm_text": {"num_hidden_layers": 16},
    "hunyuan_v1_dense": {"head_dim": HEAD_DIM},
    "hunyuan_v1_moe": {"head_dim": HEAD_DIM},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"]},
    "ministral": {"head_dim": HEAD_DIM},
    "nemotron": {"num_key_value_heads": 2},
    "qwen4_exp_text": {
        "indexer_n_heads": 2,
        "indexer_kv_heads": 1,
        "indexer_head_dim": HEAD_DIM,
        "indexer_budget": 8,
        "indexer_compress_ratio": 2,
    },
    "reformer": {"is_decoder": True, "axial_pos_embds_dim": [32, 32], "axial_pos_shape": [16, 32]},
    "xlstm": {"qk_dim_factor": 1.0},
    "zamba": {
        "num_hidden_layers": 4,
        "layers_block_type": HYBRID,
    },
}
OVERRIDES["qwen4_exp"] = OVERRIDES["qwen4_exp_text"]
OVERRIDES["xmod"]["default_language"] = "en_XX"
"""Where the defaults of a configuration class make no model, or hide what makes the family special."""
NOT_BUILT = {
    "blt": "bytes, not tokens; 192 M parameters at the least",
    "cohere_compass_text": "an embedding model",
    "dbrx": "its configuration cannot be read back from its own dictionary",
    "gemma3n": "needs timm for its vision part; gemma3n_text is tried",
    "gemma4_assistant": "drafts for another model and has no vocabulary of its own",
    "gemma4_unified_assistant": "drafts for another model and has no vocabulary of its own",
    "musicgen": "has no default configuration",
    "musicgen_melody": "has no default configuration",
}
FAMILIES = sorted(set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES) - set(NOT_BUILT))
PROMPT, RESPONSE = (1, 30), (1, 12)


def build(family: str, **overrides: Any) -> Any:
    """A small random model of a family."""
    return miniature(CONFIG_MAPPING[family](), **OVERRIDES.get(family, {}) | overrides)


def random_rows(seed: int, words: int = 512, groups: int = 2) -> tuple[list[list[int]], list[list[int]]]:
    """Groups of three responses under two prompts with a shared beginning, of ordinary tokens, in random order."""
    rng = random.Random(seed)

    def ids(low: int, high: int) -> list[int]:
        return [rng.randrange(64, words) for _ in range(rng.randint(low, high))]

    rows = []
    for _ in range(groups):
        question, responses = ids(*PROMPT), [ids(*RESPONSE) for _ in range(3)]
        rows += [(question + hint, response) for hint in ([], ids(1, 9)) for response in responses]
    rng.shuffle(rows)
    return [prompt for prompt, _ in rows], [response for _, response in rows]


def plain_logps(model: Any, prompts: list[list[int]], responses: list[list[int]]) -> Tensor:
    """The response tokens' log-probs, one row at a time through the model's own forward pass and attention: [N]."""
    rows = []
    with attention.own_attention(model):
        for prompt, response in zip(prompts, responses, strict=True):
            logits_SV = model(input_ids=torch.tensor([prompt + response]), use_cache=False).logits[0].float()
            at_T = torch.arange(len(response)) + len(prompt) - 1
            rows.append(torch.log_softmax(logits_SV, dim=-1)[at_T, torch.tensor(response)])
    return torch.cat(rows)


def our_logps(model: Any, prompts: list[list[int]], responses: list[list[int]]) -> Tensor:
    """The same log-probs through this project's forward pass: [N]."""
    logp_BT = response_logps(model, prompts, responses, 1.0)
    return torch.cat([logp_T[: len(response)] for logp_T, response in zip(logp_BT, responses, strict=True)])


def adapted(model: Any) -> list[Tensor]:
    """Adds a random LoRA adapter to every linear layer below the head, and returns its weights."""
    inside = body(model)
    prefix = next(name for name, module in model.named_modules() if module is inside)
    names = [
        f"{prefix}.{name}"
        for name, module in inside.named_modules()
        if isinstance(module, nn.Linear | Conv1D)
        and not name.endswith(("out_proj", "router"))  # PEFT refuses the first in Mamba layers; routers return tuples
    ]
    peft = get_peft_model(model, LoraConfig(r=2, target_modules=names))
    make_lean(peft)
    weights = [weight for weight in peft.parameters() if weight.requires_grad]
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for weight in weights:
            weight.copy_(torch.randn(weight.shape, generator=generator) * 0.05)
    peft.eval()
    return weights


def gradient(logp_N: Tensor, weights: list[Tensor]) -> Tensor:
    """The gradient of a fixed random weighting of the log-probs, as one vector."""
    weight_N = torch.randn(len(logp_N), generator=torch.Generator().manual_seed(4))
    slopes = torch.autograd.grad((logp_N * weight_N).sum(), weights, allow_unused=True)
    pairs = zip(slopes, weights, strict=True)
    return torch.cat([(torch.zeros_like(w) if slope is None else slope).flatten() for slope, w in pairs])
