"""What defines a run: closed, frozen, validated whole before anything starts. Read by the trainer and the CLI only.

Names that start with `.`, `/` or `~` are files and folders; anything else is a Hugging Face name.
"""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from cepo.algo.variants import AnyAlgorithm
from cepo.answers.kinds import parse_kind
from cepo.errors import UserError
from cepo.messages.groups import Feedback, Reward
from cepo.messages.hints import HINT, INSTRUCTION

HINT_TOKENS = 128
"""Room for a hint line with an answer that is longer than the reference."""
LINEAR_LAYERS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")


Condition = Annotated[str, Field(pattern=r"^[^=~]+[=~]")]


class Section(BaseModel):
    """Closed and frozen: an unknown key is an error that names it."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class Model(Section):
    path: str = Field(min_length=1)
    """Hugging Face name, or a folder."""
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    max_length: int = Field(default=2048, ge=8)
    """Context length: prompt, hint and response together, in tokens."""


class Lora(Section):
    rank: int = Field(default=16, ge=1, le=512)
    alpha: int = Field(default=32, ge=1)
    targets: tuple[str, ...] = Field(default=LINEAR_LAYERS, min_length=1, strict=False)  # TOML has lists, not tuples

    @model_validator(mode="after")
    def _no_head(self) -> Self:
        if bad := {"lm_head", "embed_tokens"} & set(self.targets):
            raise ValueError(f"lora.targets: leave out {sorted(bad)}: engines drop such weights from scored log-probs")
        return self


class Data(Section):
    train: str = Field(min_length=1)
    eval: str = ""
    """Held-out problems; empty: none are measured."""
    question: str = ""
    """Column with the question or the chat messages, nested as in `prompt.0.content`; empty: recognised by name."""
    answer: str = ""
    """Column with the reference answer, nested as in `reward_model.ground_truth`; empty: recognised by name."""
    images: str = ""
    """Column with an image or several: bytes, a path or a data URI each; empty: `images` or `image` if there is one."""
    solution: str = ""
    """Column with a worked solution, for methods that show it."""
    rejected: str = "rejected"
    """Column with the rejected response, where a method learns from pairs; `answer` is then that of the chosen one."""
    answer_kind: str = ""
    """How answers are compared, such as `choice` or `number tolerance=1%`; empty: inferred from each reference."""
    split: str = "train"
    """Split of a Hugging Face data set; the evaluation set takes `eval_split`."""
    eval_split: str = "test"
    where: tuple[Condition, ...] = Field(default=(), strict=False)
    """Rows to use: all of these hold, `column=value` or `column~value` for contains; `eval_where` for evaluation."""
    eval_where: tuple[Condition, ...] = Field(default=(), strict=False)
    limit: int = Field(default=0, ge=0)
    """Training rows to use, drawn with `loop.seed`; 0: all."""
    system: str = ""
    instruction: str = INSTRUCTION
    """Line after the question; empty where the data holds it already."""
    hint: str = HINT
    """Line after the instruction in the teacher's contexts; {answer} is replaced."""
    placement: Literal["user", "assistant", "system"] = "user"
    """Where the hint stands: after the question (the paper), in the answer (its code) or in the system turn."""
    on_bad_row: Literal["refuse", "drop"] = "refuse"
    """What happens to a row that cannot be used: over-long prompt, no answer, or one that cannot be graded."""

    @field_validator("answer_kind")
    @classmethod
    def _known_kind(cls, kind: str) -> str:
        try:
            parse_kind(kind)
        except UserError as error:
            raise ValueError(f"data.answer_kind: {error}") from error
        return kind

    @model_validator(mode="after")
    def _hint_has_answer(self) -> Self:
        if "{answer}" not in self.hint:
            raise ValueError(f"data.hint={self.hint!r} must contain {{answer}}, or every context is the same")
        return self


class Sampling(Section):
    prompts: int = Field(default=32, ge=1)
    """Prompts (groups) a step."""
    samples: int = Field(default=8, ge=2)
    """Rollouts a prompt: the group size G."""
    temperature: float = Field(default=1.0, gt=0)
    top_p: float = Field(default=1.0, gt=0, le=1)
    top_k: int = Field(default=0, ge=0)
    max_tokens: int = Field(default=1024, ge=1)


class Optim(Section):
    lr: float = Field(default=5e-6, gt=0)
    schedule: Literal["cosine", "constant"] = "cosine"
    warmup_steps: int = Field(default=5, ge=0)
    """Steps over which the rate rises; the first of them has rate 0."""
    weight_decay: float = Field(default=0.01, ge=0)
    max_grad_norm: float = Field(default=1.0, gt=0)
    minibatches: int = Field(default=1, ge=1)
    """Optimiser updates a step."""
    tokens_per_microbatch: int = Field(default=16384, ge=1)
    """Tokens of one forward and backward pass; what several sequences begin with counts once."""
    gradient_checkpointing: bool = False
    """Keeps one hidden state a layer and recomputes the rest in the backward pass: less memory, a third more work."""

    @model_validator(mode="after")
    def _rises_to_fall(self) -> Self:
        if self.schedule == "constant" and self.warmup_steps not in (
            0,
            type(self).model_fields["warmup_steps"].default,
        ):
            raise ValueError(
                f'optim.warmup_steps={self.warmup_steps} has no effect with optim.schedule="constant"; set it to 0'
            )
        return self


class Loop(Section):
    steps: int = Field(default=50, ge=1)
    seed: int = Field(default=0, ge=0)
    lag: int = Field(default=0, ge=0, le=8)
    """Steps the rollouts may be behind; 0 is on-policy."""
    deterministic: bool = False


class Evaluation(Section):
    every: int = Field(default=10, ge=1)
    """Steps between evaluations; the policy before the first step and after the last is always measured."""
    prompts: int = Field(default=256, ge=1)
    samples: int = Field(default=1, ge=1)
    temperature: float = Field(default=1.0, gt=0)
    top_p: float = Field(default=1.0, gt=0, le=1)
    top_k: int = Field(default=0, ge=0)
    presence_penalty: float = Field(default=0.0, ge=-2, le=2)


class Checkpoint(Section):
    every: int = Field(default=1, ge=1)
    keep: int = Field(default=2, ge=1)
    keep_policies: int = Field(default=50, ge=0)
    """Newest versions that stay in adapters/, beside those a task or a checkpoint names; 0: all."""


class Telemetry(Section):
    tensorboard: bool = False
    wandb_project: str = ""
    rollouts_per_step: int = Field(default=2, ge=0)
    """Groups written to rollouts/ with their credit."""


class Engine(Section):
    device: Literal["cpu", "cuda"] = "cuda"
    gpu_memory_utilization: float = Field(default=0.5, gt=0, lt=1)
    max_num_seqs: int = Field(default=128, ge=1)
    max_lora_rank: int = Field(default=16, ge=1)
    """The rollout engine's limit on the adapter rank."""
    teacher: Literal["service", "colocated"] = "service"
    """A process of its own, or the trainer's: one copy of the base less, and scoring and learning take turns."""
    tensor_parallel: int = Field(default=1, ge=1)
    """GPUs that one rollout engine splits the model over."""
    trainer_processes: int = Field(default=1, ge=1)
    """Processes of the trainer, a GPU each: they split the base between them and share every step's groups."""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.teacher == "colocated" and self.trainer_processes > 1:
            raise ValueError(
                f'engine.teacher="colocated" scores on the whole base, which engine.trainer_processes='
                f'{self.trainer_processes} split between them; set the one to "service" or the other to 1'
            )
        if self.device == "cpu" and self.tensor_parallel > 1:
            raise ValueError(f'engine.tensor_parallel={self.tensor_parallel} needs engine.device="cuda"; set it to 1')
        return self


class RunConfig(Section):
    """Everything that defines a run."""

    name: str = Field(pattern=r"^[A-Za-z0-9._+-]+$")
    model: Model
    data: Data
    algorithm: AnyAlgorithm
    lora: Lora = Lora()
    sampling: Sampling = Sampling()
    reward: Reward = Reward()
    optim: Optim = Optim()
    loop: Loop = Loop()
    eval: Evaluation = Evaluation()
    checkpoint: Checkpoint = Checkpoint()
    telemetry: Telemetry = Telemetry()
    engine: Engine = Engine()

    @model_validator(mode="after")
    def _resolved(self) -> Self:
        """What one section decides for another; the run folder's config.toml shows it."""
        if self.loop.lag:
            object.__setattr__(self, "algorithm", self.algorithm.for_lagging_rollouts())
        return self

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.sampling.max_tokens >= self.model.max_length:
            raise ValueError(
                f"sampling.max_tokens={self.sampling.max_tokens} leaves no room for a prompt in "
                f"model.max_length={self.model.max_length}; lower the one or raise the other"
            )
        if self.reward.overlong_buffer > self.sampling.max_tokens:
            raise ValueError(
                f"reward.overlong_buffer={self.reward.overlong_buffer} is above "
                f"sampling.max_tokens={self.sampling.max_tokens}, which it ends at; lower it"
            )
        if self.algorithm.scores_steps and not self.reward.scorer:
            raise ValueError(f"algorithm.name={self.algorithm.name!r} needs a URL that scores steps in reward.scorer")
        if self.reward.scorer and not self.algorithm.scores_steps:
            raise ValueError(f"reward.scorer has no effect: {self.algorithm.name} uses no step rewards")
        if not self.algorithm.learns_at(self.loop.steps - 1):
            raise ValueError(
                f"loop.steps={self.loop.steps} ends before the policy learns: {self.algorithm.name} trains another "
                "model alone at first; raise it, or lower the steps for that in the algorithm section"
            )
        if self.lora.rank > self.engine.max_lora_rank:
            raise ValueError(
                f"lora.rank={self.lora.rank} is above engine.max_lora_rank={self.engine.max_lora_rank}; "
                "lower the rank or raise the limit"
            )
        if self.sampling.prompts % self.optim.minibatches:
            raise ValueError(
                f"sampling.prompts={self.sampling.prompts} cannot be split into "
                f"optim.minibatches={self.optim.minibatches} equal parts"
            )
        self._feedback_exists()
        return self

    def _feedback_exists(self) -> None:
        """Whether what the algorithm shows can be there at all."""
        if self.algorithm.shows_solution and not self.data.solution:
            raise ValueError(
                f"data.solution is missing: algorithm.name={self.algorithm.name} shows the reference solution; "
                "name its column"
            )
        most = max((ask.rank for ask in self.algorithm.asks), default=0) + 1
        if most > self.sampling.samples:
            raise ValueError(
                f"algorithm.wrong_hints={most} is above sampling.samples={self.sampling.samples}, which is all the "
                "answers a group can have; lower it"
            )

    @property
    def hint_tokens(self) -> int:
        """What the teacher's contexts may be longer than the policy's: the hint line, and a peer's response."""
        peers = (Feedback.PEER_FULL, Feedback.PEER_PREFIX, Feedback.PEER_SUFFIX)
        longest = self.sampling.max_tokens
        shown = [min(ask.tokens or longest, longest) for ask in self.algorithm.asks if ask.feedback in peers]
        return HINT_TOKENS + max(shown, default=0)

    @property
    def max_loras(self) -> int:
        """Adapters an engine holds: one per step in flight, one being sampled, one announced."""
        return self.loop.lag + 2

    @property
    def eval_steps(self) -> frozenset[int]:
        """Steps after whose update the held-out problems are measured; the last one always."""
        if not self.data.eval:
            return frozenset()
        return frozenset(range(self.eval.every - 1, self.loop.steps, self.eval.every)) | {self.loop.steps - 1}
