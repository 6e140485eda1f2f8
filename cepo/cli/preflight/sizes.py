"""Estimates of a run's memory and disk from the model's config; no weights are read."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache
from typing import TYPE_CHECKING, Any

from cepo.errors import UserError
from cepo.run.deployment import processes

if TYPE_CHECKING:
    from cepo.run.config import RunConfig

CountPass = Callable[[int, bool, bool], int]
"""count(tokens, training, checkpointing): bytes of a pass above the weights."""
BYTES = {"float32": 4, "bfloat16": 2}
ADAPTER_BYTES = 4
"""Per weight of an adapter: float32, in training and on disk."""
OPTIMISER_BYTES = 12
"""Per weight of an adapter: AdamW's two moments and the gradient, in float32."""
SPARE_BYTES = 256 * 2**20
"""For logs and Redis in the run folder."""
ROLLOUT_TOKEN_BYTES = 18
"""Per token in rollouts/, with its advantage and its log-probs in two contexts, compressed."""


@dataclass(frozen=True)
class Sizes:
    """Counts of one model with one run's adapter."""

    parameters: int
    adapter_parameters: int
    auxiliary_parameters: int
    """Weights that the method trains beside the policy: PPO's critic, ctDPO's estimators, CLIPO's head."""
    adapted_modules: int
    layers: int
    """Decoder layers, which the ranks of a trainer shard; 0 if the family has no list of them."""
    layer_parameters: int
    """Parameters of all decoder layers."""
    positions: int
    """The longest sequence of the model in tokens; 0 if its config does not say."""
    cache_numbers: int
    """Elements of the KV cache of one token."""
    linear_names: tuple[str, ...]
    """The last part of the name of each linear module below the head, such as q_proj: what LoRA can adapt."""
    missing_targets: tuple[str, ...]
    vocabulary: int
    """Tokens in the output distribution."""
    embeddings: int
    """Rows of the input embedding."""
    fused_experts: bool
    """Whether the experts of a layer are one parameter, which LoRA modules do not adapt."""
    peft_refusal: str
    """Why PEFT cannot adapt the targets; empty if it can."""
    architecture: str
    """The class in the model's config.json, by which vLLM selects its own."""
    model_config: Any
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
    def cached_bytes(self) -> int:
        """The adapters that an engine keeps on disk, one for each that it holds, and the one that it fetches."""
        return (self.config.max_loras + 1) * self.adapter_parameters * ADAPTER_BYTES

    @property
    def disk_bytes(self) -> int:
        """The adapters, checkpoints and rollouts of the run; with an EMA teacher there are two adapters per version."""
        adapters, steps = 2 if self.config.algorithm.teacher_source.source == "ema" else 1, self.config.loop.steps
        checkpoints = self.config.checkpoint.keep * (adapters * ADAPTER_BYTES + OPTIMISER_BYTES)
        kept = checkpoints + adapters * min(steps, self.config.checkpoint.keep_policies or steps) * ADAPTER_BYTES
        return self.adapter_parameters * kept + self._rollout_bytes + SPARE_BYTES

    @property
    def _rollout_bytes(self) -> int:
        """The training groups in rollouts/, at their longest."""
        sampling, telemetry = self.config.sampling, self.config.telemetry
        limit = telemetry.rollouts_per_step
        groups = sampling.prompts if limit is None else min(sampling.prompts, limit)
        tokens = self.config.loop.steps * groups * sampling.samples * sampling.max_tokens
        return int(min(tokens * ROLLOUT_TOKEN_BYTES, telemetry.rollouts_gigabytes * 1e9))


def measure(config: RunConfig) -> Sizes:
    """Builds the model on the meta device and counts.

    Raises:
        UserError: the model is missing, or is no causal language model.
    """
    import torch
    from transformers import AutoConfig
    from transformers.pytorch_utils import Conv1D

    from cepo.model.forward import auto_class
    from cepo.model.rope import positions

    try:
        model_config: Any = AutoConfig.from_pretrained(config.model.path)
        with torch.device("meta"):
            model: Any = auto_class(model_config).from_config(model_config)
    except (OSError, ValueError) as error:
        raise UserError(
            f"model.path={config.model.path} cannot be loaded: {str(error).splitlines()[0]}; "
            "give a folder or the Hugging Face name of a causal language model"
        ) from error
    options = model_config.get_text_config().to_dict()
    head = model.get_output_embeddings()
    kinds = torch.nn.Linear | Conv1D | torch.nn.Embedding  # not a router, whose weight vLLM would not adapt
    layers = {name: module for name, module in model.named_modules() if isinstance(module, kinds)}
    bound = {target: [n for n in layers if n == target or n.endswith(f".{target}")] for target in config.lora.targets}
    adapted = [layers[name] for name in {name: None for names in bound.values() for name in names}]
    plain = {n for n, m in layers.items() if not isinstance(m, torch.nn.Embedding) and m is not head}
    parameters = dict(model.named_parameters())
    adapter_parameters = sum(config.lora.rank * sum(module.weight.shape) for module in adapted)
    decoder_layers = getattr(model.get_decoder(), "layers", None) or ()
    counts = Sizes(
        parameters=sum(parameter.numel() for parameter in parameters.values()),  # tied weights count once
        adapter_parameters=adapter_parameters,
        auxiliary_parameters=_auxiliary_parameters(config, adapter_parameters, head.weight.shape[1]),
        adapted_modules=len(adapted),
        positions=positions(model_config),
        layers=len(decoder_layers),
        layer_parameters=sum(parameter.numel() for layer in decoder_layers for parameter in layer.parameters()),
        cache_numbers=_cache_numbers(options),
        linear_names=tuple(sorted({n.rpartition(".")[2] for n in plain})),
        missing_targets=tuple(target for target, names in bound.items() if not names),
        vocabulary=head.weight.shape[0],
        embeddings=model.get_input_embeddings().weight.shape[0],
        fused_experts=any("experts" in name and parameter.dim() == 3 for name, parameter in parameters.items()),
        peft_refusal="",
        architecture=next(iter(model_config.architectures or ()), type(model).__name__),
        model_config=model_config,
        config=config,
    )
    return replace(counts, peft_refusal=_peft_refusal(model, config))


@dataclass(frozen=True)
class _CountedContext:
    """The part of the trainer's `AuxiliaryContext` from which an auxiliary model makes its weights."""

    adapter_parameters: int
    hidden_size: int
    seed: int = 0

    def add_adapter(self, adapter: str) -> list[Any]:
        import torch

        return [torch.nn.Parameter(torch.empty(self.adapter_parameters))]


def _auxiliary_parameters(config: RunConfig, adapter_parameters: int, hidden_size: int) -> int:
    """Counts the weights of the method's auxiliary model on the meta device."""
    import torch

    context: Any = _CountedContext(adapter_parameters, hidden_size)
    with torch.device("meta"):
        auxiliary = config.algorithm.auxiliary_model(context)
    model = getattr(auxiliary, "model", None)
    return 0 if model is None else sum(parameter.numel() for parameter in model.parameters())


def pass_counter(sizes: Sizes) -> CountPass:
    """A function that counts the bytes of a pass above the weights, on the meta device, and remembers its results.

    It raises UserError if the family's pass cannot run without its weights.
    """
    from cepo.model.activations import pass_bytes

    model, lora = sizes.config.model, sizes.config.lora

    @cache
    def count(tokens: int, training: bool, checkpointing: bool) -> int:
        kind = (sizes.model_config, model.dtype, lora.targets, lora.rank, tokens)
        try:
            return pass_bytes(*kind, training=training, checkpointing=checkpointing)
        except RuntimeError as error:
            raise UserError(
                f"model.path={model.path}: the memory of a pass cannot be counted: {str(error).splitlines()[0]}"
            ) from error

    return count


def _cache_numbers(options: Mapping[str, Any]) -> int:
    """Keys and values of all layers for one token; 0 for a model without attention.

    Layers may have heads of their own width (Gemma 4): `per_layer_config` is `{"05": {"head_dim": 512}, ...}`.
    """
    heads, width = options.get("num_attention_heads"), options.get("hidden_size")
    layers = options.get("num_hidden_layers") or 0
    if not isinstance(heads, int) or not isinstance(width, int):
        return 0
    own = options.get("per_layer_config") or {}
    shared = {key: options.get(key) for key in ("head_dim", "num_key_value_heads")}
    each = [shared | {int(at): values for at, values in own.items()}.get(layer, {}) for layer in range(layers)]
    return sum(2 * (one["num_key_value_heads"] or heads) * (one["head_dim"] or width // heads) for one in each)


def _peft_refusal(model: Any, config: RunConfig) -> str:
    """PEFT's own answer for the targets, on a model without memory; the first line of its error."""
    from peft import LoraConfig, get_peft_model

    try:
        get_peft_model(model, LoraConfig(r=config.lora.rank, target_modules=list(config.lora.targets)))
    except ValueError as error:
        return str(error).splitlines()[0]
    return ""


def shown(count: int) -> str:
    """A number of bytes with a unit. Example: shown(1500) == "1.5 kB"."""
    size = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.3g} TB"
