"""What a model measures, from its config alone: no weights are read. Arithmetic for `cepo check`, an estimate."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from cepo.errors import UserError
from cepo.run.config import RunConfig
from cepo.run.deployment import processes

BYTES = {"float32": 4, "bfloat16": 2}
ADAPTER_BYTES = 4
"""An adapter's weights are float32 in training and on disk."""
OPTIMISER_BYTES = 12
"""AdamW's two moments and the gradient of a weight, in float32."""
_NOT_LINEAR = {"lm_head", "embed_tokens", "wte", "wpe"}
SPARE_BYTES = 256 * 2**20
"""Logs, rollouts and Redis in the run folder."""


@dataclass(frozen=True)
class Sizes:
    """Counts of one model under one run's adapter."""

    parameters: int
    adapter_parameters: int
    adapted_modules: int
    positions: int
    """Longest sequence the model was made for; 0: not said."""
    cache_numbers: int
    """Keys and values of one token."""
    linear_names: tuple[str, ...]
    """What LoRA could adapt."""
    missing_targets: tuple[str, ...]
    vocabulary: int
    """Tokens of a distribution."""
    config: RunConfig

    @property
    def holders(self) -> list[str]:
        """Processes with a copy of the weights each: those that follow the run."""
        return [spec.name for spec in processes(self.config) if spec.follows_run]

    @property
    def weights_bytes(self) -> int:
        return self.parameters * BYTES[self.config.model.dtype]

    @property
    def training_bytes(self) -> int:
        """Adapter, its gradient and the optimiser."""
        return self.adapter_parameters * (ADAPTER_BYTES + OPTIMISER_BYTES)

    @property
    def cache_bytes(self) -> int:
        """The KV cache of as many full-length sequences as the engine takes at once."""
        tokens = self.config.engine.max_num_seqs * self.config.model.max_length
        return tokens * self.cache_numbers * BYTES[self.config.model.dtype]

    @property
    def disk_bytes(self) -> int:
        """The adapters that are kept, two a version with an average as the teacher; checkpoints; what is spared."""
        adapters, steps = 2 if self.config.algorithm.teacher_source.source == "ema" else 1, self.config.loop.steps
        checkpoints = self.config.checkpoint.keep * (adapters * ADAPTER_BYTES + OPTIMISER_BYTES)
        kept = checkpoints + adapters * min(steps, self.config.checkpoint.keep_policies or steps) * ADAPTER_BYTES
        return self.adapter_parameters * kept + SPARE_BYTES


def measure(config: RunConfig) -> Sizes:
    """Builds the model without weights and counts.

    Raises:
        UserError: no such model, or it is no causal language model.
    """
    import torch
    from transformers import AutoConfig

    from cepo.model.forward import auto_class

    try:
        made: Any = AutoConfig.from_pretrained(config.model.path)
        with torch.device("meta"):
            model: Any = auto_class(made).from_config(made)
    except (OSError, ValueError) as error:
        raise UserError(
            f"model.path={config.model.path} cannot be loaded: {str(error).splitlines()[0]}; "
            "give a folder or the Hugging Face name of a causal language model"
        ) from error
    text = made.get_text_config()
    head_dim = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
    linear = {n: m for n, m in model.named_modules() if getattr(m, "weight", None) is not None and m.weight.dim() == 2}
    bound = {target: [n for n in linear if n == target or n.endswith(f".{target}")] for target in config.lora.targets}
    adapted = [linear[name] for name in {name: None for names in bound.values() for name in names}]
    return Sizes(
        parameters=sum(parameter.numel() for parameter in model.parameters()),  # tied ones count once
        adapter_parameters=sum(config.lora.rank * sum(module.weight.shape) for module in adapted),
        adapted_modules=len(adapted),
        positions=getattr(text, "max_position_embeddings", None) or 0,
        cache_numbers=2 * text.num_hidden_layers * heads * head_dim,
        linear_names=tuple(sorted({n.rpartition(".")[2] for n in linear} - _NOT_LINEAR)),
        missing_targets=tuple(target for target, names in bound.items() if not names),
        vocabulary=model.get_output_embeddings().weight.shape[0],
        config=config,
    )


def shown(count: int) -> str:
    """A number of bytes as people read it."""
    size = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} TB"
