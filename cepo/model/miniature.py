"""A small random model of a family, from the configuration of a large one: the family's code without its weights.

`cepo check` proves a family with it before any weights are read. What makes a family special is kept (multipliers,
caps, kinds of layers, rope, experts); widths, depths and counts shrink.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch

from cepo.model.forward import auto_class
from cepo.model.probe import own_pass

HEADS, HEAD_DIM, WORDS, WINDOW = 4, 16, 512, 16
HIDDEN = HEADS * HEAD_DIM
MOST_LAYERS = 8

SMALL: dict[str, int] = {
    r"hidden_size|d_model|n_embd|emb_dim|embedding_dim|word_embed_proj_dim|lru_width|d_inner": HIDDEN,
    r"(input_|output_)?embedding_size|ple_embed_dim|router_hidden_size": HIDDEN,
    r"mamba_d_ssm": 2 * HIDDEN,
    r"\w*intermediate_size(_mlp)?|\w*ffn_dim|\w*ffn_hidden_size|dff|dim_ff|feed_forward_size": 96,
    r"num_attention_heads|n_heads?|num_heads|\w*attention_heads|linear_num_(key_|value_)?heads": HEADS,
    r"num_query_groups|index_n_heads": HEADS,
    r"mamba_n_heads|mamba_num_heads|n_mamba_heads": 2 * HEADS,
    r"head_dim|kv_channels|d_head|attention_head_size|attention_head_dim|dim_head": HEAD_DIM,
    r"linear_head_dim|swa_head_dim|linear_(key|value)_head_dim|index_head_dim": HEAD_DIM,
    r"qk_nope_head_dim|v_head_dim|mamba_head_?dim|mamba_d_head": HEAD_DIM,
    r"qk_rope_head_dim|rotary_dim": 8,
    r"qk_head_dim": HEAD_DIM + 8,
    r"\w*vocab_size(_per_layer_input|_base)?": WORDS,
    r"n_positions|n_ctx|max_seq_len|max_target_positions|max_source_positions": 512,
    r"sliding_window(_size)?|attention_window_size|window_size|attention_chunk_size|local_attention": WINDOW,
    r"(q|kv|o)_lora_rank|laurel_rank|hidden_size_per_layer_input|time_step_rank|mamba_dt_rank": 16,
    r"gated_norm_rank|adapter_rank|hc_lowrank|mamba_d_state|state_size|ssm_state_size|d_rel": 16,
    r"pronunciation_embed_dim|shape_embed_dim": 16,
    r"num_experts|num_local_experts|n_routed_experts|moe_num_experts|zero_expert_num|num_centroids": 4,
    r"num_experts_per_tok(en)?|moe_k|moe_topk|n_shared_experts|moe_num_shared_experts": 2,
    r"n_group|topk_group|num_expert_group|o_groups|\w*layer_offset": 1,
    r"split_ngram_parts|heads_per_ngram|\w*layer_period|num_layers_per_stack": 2,
    r"num_kv_shared_layers": 0,
}
"""Sizes by the name of their key; a size that is already smaller stays."""

LAYERS = r"num_hidden_layers|n_layers?|num_layers|encoder_layers|decoder_layers|num_(en|de)coder_layers|num_blocks"
PER_LAYER = r"layer_types|layers_block_type|mlp_layer_types|indexer_types|block_types|attention_layers"
SPECIAL = re.compile(r"(?!num_)(\w*token_(id|ids|index)|\w*_token)")


def miniature(config: Any, **overrides: Any) -> Any:
    """A random float32 model of the configuration's family, on the CPU, in evaluation mode.

    Args:
        config: a transformers configuration, which stays as it is.
        overrides: values of the text part, which count instead of the small ones.

    Raises:
        ValueError: the small configuration makes no model, or one that does not run.
    """
    with torch.random.fork_rng([]):
        torch.manual_seed(0)
        try:
            small = shrunk(config, **overrides)
            model = auto_class(small).from_config(small, dtype=torch.float32)
            _randomise(model)
            own_pass(model)
        except Exception as error:
            reason = f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error) else ''}"
            raise ValueError(f"no small model of {config.model_type} ({reason})") from error
    return model


@torch.no_grad()
def _randomise(model: Any) -> None:
    """Zeros and ones would hide what a bias or a norm does, and small logits what a cap or a factor does."""
    for parameter in model.eval().requires_grad_(False).parameters():
        parameter.add_(torch.randn_like(parameter) * 0.05)
    model.get_output_embeddings().weight.normal_(std=0.2)


def shrunk(config: Any, **overrides: Any) -> Any:
    """The configuration of a small model of the same family.

    Args:
        overrides: values of the text part, which count instead of the small ones.
    """
    options = _shrunk(config.to_dict())
    text = next((options[key] for key in ("text_config", "llm_config") if isinstance(options.get(key), dict)), options)
    text |= overrides
    return type(config).from_dict(options)


def _shrunk(options: Mapping[str, Any]) -> dict[str, Any]:
    layers, kept = _layers(options)
    small: dict[str, Any] = {}
    for key, value in options.items():
        if key == "per_layer_config" and value:
            small[key] = {at: _wide(each) for at, each in value.items() if int(at) < kept}
        elif isinstance(value, dict):
            small[key] = _section(key, value)
        elif isinstance(value, list) and layers and len(value) == layers:
            small[key] = value[:kept]
        elif isinstance(value, bool) or not isinstance(value, int):
            small[key] = value
        else:
            small[key] = min(value, kept) if re.fullmatch(LAYERS, key) else _number(options, key, value)
    return small


def _section(key: str, section: dict[Any, Any]) -> dict[Any, Any]:
    if not all(isinstance(name, str) for name in section):
        return section  # id2label
    return _rope(section) if "rope" in key else _shrunk(section)


def _number(options: Mapping[str, Any], key: str, value: int) -> int:
    if key in ("num_key_value_heads", "num_kv_heads", "swa_num_key_value_heads"):
        return _key_heads(options, value)
    if key in ("attention_hidden_size", "attention_head_dim"):  # Zamba: attention is twice as wide as the model
        wide = HIDDEN * max(1, options.get("attention_hidden_size", 0) // options["hidden_size"])
        return wide if key == "attention_hidden_size" else wide // HEADS
    if key == "num_heads" and "expand" in options:  # Mamba 2
        return min(value, 2 * HEADS)
    if key == "head_dim" and value == options.get("qk_rope_head_dim"):
        return _size("qk_rope_head_dim", value)
    if SPECIAL.fullmatch(key):
        return value if value < WORDS // 8 else value % (WORDS // 8)
    return min(value, _size(key, value))


def _wide(section: Mapping[str, Any]) -> dict[str, Any]:
    """A layer's own values: its heads stay wider than those of the other layers."""
    return {key: 2 * HEAD_DIM if key == "head_dim" else value for key, value in section.items()}


def _size(key: str, value: int) -> int:
    return next((size for pattern, size in SMALL.items() if re.fullmatch(pattern, key)), value)


def _layers(options: Mapping[str, Any]) -> tuple[int, int]:
    """The number of layers, and the number to keep: the first ones that have every kind of layer."""
    counts = [value for key, value in options.items() if re.fullmatch(LAYERS, key) and isinstance(value, int)]
    layers, kept = max(counts, default=0), 2
    for key, value in options.items():
        if re.fullmatch(PER_LAYER, key) and isinstance(value, list) and len(value) == layers:
            kept = max(kept, max(value.index(kind) + 1 for kind in value))
    return layers, min(kept, MOST_LAYERS, max(2, layers))


def _key_heads(options: Mapping[str, Any], value: int) -> int:
    """As many key heads as query heads, one, or half of them, as in the large model."""
    heads = options.get("num_attention_heads") or value
    return HEADS if value == heads else 1 if value == 1 else HEADS // 2


def _rope(section: Mapping[str, Any]) -> dict[str, Any]:
    """Rotary parameters for heads of HEAD_DIM; the factors of LongRoPE are cut to the number of frequencies."""
    small: dict[str, Any] = {}
    for key, value in section.items():
        if isinstance(value, dict):
            small[key] = _rope(value)
        elif key in ("short_factor", "long_factor") and isinstance(value, list):
            small[key] = value[: int(HEAD_DIM * section.get("partial_rotary_factor", 1.0)) // 2]
        elif key == "mrope_section":
            small[key] = [4, 2, 2]
        else:
            small[key] = value
    return small
