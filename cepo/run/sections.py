"""The sections of a run file, such as [model] and [sampling]: every key with its type, bounds, default and meaning.

The text under a key is its documentation: it is the field's `description`.
"""

from __future__ import annotations

from typing import Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from cepo.names import require_functions

LINEAR_LAYERS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


class Section(BaseModel):
    """Frozen and closed: an unknown key is an error that names it."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", strict=True, allow_inf_nan=False, use_attribute_docstrings=True
    )


class ModelConfig(Section):
    path: str = Field(min_length=1)
    """The model: a Hugging Face name such as "Qwen/Qwen3-8B", or a folder that starts with `.`, `/` or `~`. Relative
    folders are relative to the run file."""
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    """Number format of the base model's weights. The adapter is always float32."""
    max_length: int = Field(default=2048, ge=8)
    """Context length in tokens: prompt, hint and response together."""


class LoraConfig(Section):
    rank: int = Field(default=16, ge=1, le=512)
    """Rank of the LoRA adapter; at most `engine.max_lora_rank`."""
    alpha: int = Field(default=32, ge=1)
    """Numerator of the adapter's scale: its output is multiplied by alpha / rank."""
    targets: tuple[str, ...] = Field(default=LINEAR_LAYERS, min_length=1, strict=False)  # TOML has lists, not tuples
    """Names of the linear layers that get an adapter, such as ["q_proj", "v_proj"]; not `lm_head` or `embed_tokens`."""

    @model_validator(mode="after")
    def _no_head(self) -> Self:
        if bad := {"lm_head", "embed_tokens"} & set(self.targets):
            raise ValueError(
                f"lora.targets: leave out {sorted(bad)}; the engines ignore adapters of these layers when they score"
            )
        return self


class SamplingConfig(Section):
    prompts: int = Field(default=32, ge=1)
    """Prompts per step; each makes one group. A multiple of `optim.minibatches`."""
    samples: int = Field(default=8, ge=2)
    """Group size G: responses sampled per prompt."""
    temperature: float = Field(default=1.0, ge=0.01)
    """Sampling temperature. Log-probs of the trainer and the teacher are at the same temperature."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    """Nucleus sampling: share of the probability mass that is kept. 1: off. At `temperature = 1` the rollout
    engine's log-probs are of the whole distribution all the same; at another temperature they are of the kept tokens,
    and a method that compares them with the trainer's is refused."""
    top_k: int = Field(default=0, ge=0)
    """Number of most likely tokens that are kept. 0: off. For log-probs see `top_p`."""
    max_tokens: int = Field(default=1024, ge=1)
    """Longest response in tokens, tool results and user turns in it included; below `model.max_length`."""

    @property
    def group_tokens(self) -> int:
        """The most response tokens of a group."""
        return self.samples * self.max_tokens

    @property
    def cut(self) -> str:
        """The key that samples from a part of the distribution, such as "top_p=0.95"; empty if none does."""
        if self.top_p < 1:
            return f"top_p={self.top_p:g}"
        return f"top_k={self.top_k}" if self.top_k else ""


class OptimConfig(Section):
    lr: float = Field(default=5e-6, gt=0)
    """Peak learning rate of AdamW."""
    schedule: Literal["cosine", "constant"] = "cosine"
    """"cosine" rises over `warmup_steps` and falls to 0 at `loop.steps`; "constant" stays at `lr`."""
    warmup_steps: int = Field(default=5, ge=0)
    """Steps over which the learning rate rises linearly; the first step has rate 0. For "cosine" alone."""
    weight_decay: float = Field(default=0.01, ge=0)
    """Weight decay of AdamW."""
    max_grad_norm: float = Field(default=1.0, gt=0)
    """Gradients with a larger norm are scaled down to it."""
    minibatches: int = Field(default=1, ge=1)
    """Optimiser updates per step; the step's prompts are split evenly between them."""
    tokens_per_microbatch: int = Field(default=16384, ge=1)
    """Largest number of tokens in one forward and backward pass; a prefix that sequences share counts once. Lower it
    if the trainer runs out of memory."""
    gradient_checkpointing: bool = False
    """Stores one hidden state per layer and recomputes the rest in the backward pass: less memory, about a third more
    work. Default: true with `engine.device = "cuda"`, where the default run otherwise takes 43 GiB of activations."""

    @model_validator(mode="after")
    def _rises_to_fall(self) -> Self:
        default = type(self).model_fields["warmup_steps"].default
        if self.schedule == "constant" and self.warmup_steps not in (0, default):
            raise ValueError(
                f'optim.warmup_steps={self.warmup_steps} has no effect with optim.schedule="constant"; set it to 0'
            )
        return self


class LoopConfig(Section):
    steps: int = Field(default=50, ge=1)
    """Training steps. A step samples, verifies and scores its groups, then updates the policy."""
    seed: int = Field(default=0, ge=0)
    """Seed of the data order, the sampling and the adapter's initial weights."""
    lag: int = Field(default=0, ge=0, le=8)
    """Off-policy steps: how many steps behind the trainer's policy the sampling policy may be. 0: on-policy."""
    deterministic: bool = False
    """Uses deterministic kernels and a fixed order of work, so that two runs on the same machine give the same bytes.
    Slower."""


class EvalConfig(Section):
    every: int = Field(default=10, ge=1)
    """Steps between evaluations. The policies before the first step and after the last are always evaluated."""
    prompts: int = Field(default=256, ge=1)
    """Largest number of held-out problems to evaluate on, the first of the data set."""
    samples: int = Field(default=1, ge=1)
    """Responses sampled per held-out problem; the accuracy is their mean."""
    temperature: float = Field(default=1.0, ge=0.01)
    """Sampling temperature of evaluations."""
    top_p: float = Field(default=1.0, gt=0, le=1)
    """Nucleus sampling in evaluations. 1: off."""
    top_k: int = Field(default=0, ge=0)
    """Number of most likely tokens that are kept in evaluations. 0: off."""
    presence_penalty: float = Field(default=0.0, ge=-2, le=2)
    """Subtracted from the logits of tokens that the response already holds, as in OpenAI's API."""


class CheckpointConfig(Section):
    every: int = Field(default=1, ge=1)
    """Steps between checkpoints. The last step is always saved."""
    keep: int = Field(default=2, ge=1)
    """Number of newest checkpoints to keep."""
    keep_policies: int = Field(default=50, ge=0)
    """Number of newest adapters to keep in adapters/; those that a task or a checkpoint needs stay too. 0: all."""
    keep_best: Literal["", "accuracy/eval"] = ""
    """"accuracy/eval": also keeps the adapter with the highest held-out accuracy, for `cepo export --policy best`. Half
    of the held-out problems choose it, and its accuracy is measured on the other half."""
    patience: int = Field(default=0, ge=0)
    """Ends the run after this number of evaluations in a row without a better policy. 0: never. Needs `keep_best`."""

    @model_validator(mode="after")
    def _patience_has_a_measure(self) -> Self:
        if self.patience and not self.keep_best:
            raise ValueError(
                f"checkpoint.patience={self.patience} has no effect without a measure; set "
                'checkpoint.keep_best="accuracy/eval"'
            )
        return self


class TelemetryConfig(Section):
    tensorboard: bool = False
    """Writes the metrics to tensorboard/ in the run folder; needs the `tensorboard` package."""
    wandb_project: str = ""
    """Weights & Biases project that gets the metrics; needs the `wandb` package. Empty: none."""
    trackers: tuple[str, ...] = Field(default=(), strict=False)
    """User functions as `module:function` that open other trackers, such as MLflow. Each takes the run and returns a
    function that is called with every row of metrics and its step."""
    rollouts_per_step: int | None = Field(default=None, ge=0)
    """Largest number of groups per step that are written to rollouts/ with the credit of every token. Unset: all."""
    rollouts_gigabytes: float = Field(default=20.0, gt=0)
    """Size of rollouts/ above which the groups of the oldest steps are removed."""

    @field_validator("trackers")
    @classmethod
    def _named(cls, trackers: tuple[str, ...]) -> tuple[str, ...]:
        require_functions(trackers, "telemetry.trackers", "my_trackers:mlflow_run")
        return trackers


class EngineConfig(Section):
    device: Literal["cpu", "cuda"] = "cuda"
    """Device of the rollout engine, the teacher and the trainer."""
    gpu_memory_utilization: float = Field(default=0.5, gt=0, lt=1)
    """Share of the GPU's memory that the rollout engine takes, weights and KV cache together."""
    max_num_seqs: int = Field(default=128, ge=1)
    """Largest number of sequences that the rollout engine samples at once. Default: 256 with `engine.device = "cuda"`,
    the sequences of a step by default."""
    max_lora_rank: int = Field(default=16, ge=1)
    """Largest adapter rank that the rollout engine accepts."""
    teacher: Literal["service", "colocated"] = "service"
    """"service": the teacher is a process with its own copy of the base model. "colocated": the trainer's process
    scores with the trainer's copy, so scoring and training take turns."""
    tensor_parallel: int = Field(default=1, ge=1)
    """GPUs over which one rollout engine splits the model."""
    trainer_processes: int = Field(default=1, ge=1)
    """Trainer processes, one GPU each; they shard the base model and split the groups of every step."""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.teacher == "colocated" and self.trainer_processes > 1:
            raise ValueError(
                f'engine.teacher="colocated" needs the whole base model in one process, and engine.trainer_processes='
                f'{self.trainer_processes} shards it; set engine.teacher="service" or engine.trainer_processes=1'
            )
        if self.device == "cpu" and self.tensor_parallel > 1:
            raise ValueError(f'engine.tensor_parallel={self.tensor_parallel} needs engine.device="cuda"; set it to 1')
        return self
