"""Estimates of a run's memory and disk from the model's config; no weights are read."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cepo.errors import UserError
from cepo.run.deployment import processes

if TYPE_CHECKING:
    from cepo.run.config import RunConfig

BYTES = {"float32": 4, "bfloat16": 2}
ADAPTER_BYTES = 4
"""Per weight of an adapter: float32, in training and on disk."""
OPTIMISER_BYTES = 12
"""Per weight of an adapter: AdamW's two moments and the gradient, in float32."""
_NOT_LINEAR = {"lm_head", "embed_tokens", "wte", "wpe"}
SPARE_BYTES = 256 * 2**20
"""For logs, rollouts and Redis in the run folder."""


@dataclass(frozen=True)
class Sizes:
    """Counts of one model with one run's adapter."""

    parameters: int
    adapter_parameters: int
    adapted_modules: int
    positions: int
    """The longest sequence of the model in tokens; 0 if its config does not say."""
    cache_numbers: int
    """Elements of the KV cache of one token."""
    linear_names: tuple[str, ...]
    """The last part of the name of each linear module, such as q_proj: what LoRA can adapt."""
    missing_targets: tuple[str, ...]
    vocabulary: int
    """Tokens in the output distribution."""
    config: RunConfig

    @property
    def holders(self) -> list[str]:
        """The processes that hold a copy of the weights."""
        return [spec.name for spec in processes(self.config) if spec.follows_run]

    @property
    def weights_bytes(self) -> int:
        return self.parameters * BYTES[self.config.model.dtype]

    @property
    def training_bytes(self) -> int:
        """The adapter, its gradient and the optimiser state."""
        return self.adapter_parameters * (ADAPTER_BYTES + OPTIMISER_BYTES)

    @property
    def cache_bytes(self) -> int:
        """The KV cache of `engine.max_num_seqs` sequences of full length."""
        tokens = self.config.engine.max_num_seqs * self.config.model.max_length
        return tokens * self.cache_numbers * BYTES[self.config.model.dtype]

    @property
    def disk_bytes(self) -> int:
        """The adapters and checkpoints that the run keeps; with an EMA teacher there are two adapters per version."""
        adapters, steps = 2 if self.config.algorithm.teacher_source.source == "ema" else 1, self.config.loop.steps
        checkpoints = self.config.checkpoint.keep * (adapters * ADAPTER_BYTES + OPTIMISER_BYTES)
        kept = checkpoints + adapters * min(steps, self.config.checkpoint.keep_policies or steps) * ADAPTER_BYTES
        return self.adapter_parameters * kept + SPARE_BYTES


def measure(config: RunConfig) -> Sizes:
    """Builds the model on the meta device and counts.

    Raises:
        UserError: the model is missing, or is no causal language model.
    """
    import torch
    from transformers import AutoConfig

    from cepo.model.forward import auto_class

    try:
        model_config: Any = AutoConfig.from_pretrained(config.model.path)
        with torch.device("meta"):
            model: Any = auto_class(model_config).from_config(model_config)
    except (OSError, ValueError) as error:
        raise UserError(
            f"model.path={config.model.path} cannot be loaded: {str(error).splitlines()[0]}; "
            "give a folder or the Hugging Face name of a causal language model"
        ) from error
    text = model_config.get_text_config()
    head_dim = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
    heads = getattr(text, "num_key_value_heads", None) or text.num_attention_heads
    linear = {n: m for n, m in model.named_modules() if getattr(m, "weight", None) is not None and m.weight.dim() == 2}
    bound = {target: [n for n in linear if n == target or n.endswith(f".{target}")] for target in config.lora.targets}
    adapted = [linear[name] for name in {name: None for names in bound.values() for name in names}]
    return Sizes(
        parameters=sum(parameter.numel() for parameter in model.parameters()),  # tied weights count once
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
    """A number of bytes with a unit. Example: shown(1500) == "1.5 kB"."""
    size = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} TB"
