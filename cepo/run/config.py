"""What defines a run: `RunConfig`, the sections of a run file and what must hold between them.

A run is validated whole before anything starts; the trainer and the command line read it, the other services do not.
"""

from __future__ import annotations

from typing import Self

from pydantic import Field, model_validator

from cepo.algo.variants import AnyAlgorithm
from cepo.messages.groups import Feedback, Reward
from cepo.run.data import DataConfig
from cepo.run.sections import (
    CheckpointConfig,
    EngineConfig,
    EvalConfig,
    LoopConfig,
    LoraConfig,
    ModelConfig,
    OptimConfig,
    SamplingConfig,
    Section,
    TelemetryConfig,
)

CUDA_SEQUENCES = 256
"""The default of `engine.max_num_seqs` on CUDA."""
HINT_TOKENS = 128
"""Tokens reserved for a hint line whose answer is longer than the reference."""


class RunConfig(Section):
    """Everything that defines a run."""

    name: str = Field(pattern=r"^[A-Za-z0-9._+-]+$")
    """Name of the run, of letters, digits and `._+-`. Its folder is runs/NAME-TIME, unless `--run-dir` is given."""
    model: ModelConfig
    """The base model."""
    data: DataConfig
    """The problems, and how prompts are made of them."""
    algorithm: AnyAlgorithm
    """The method; `algorithm.name` decides which other keys there are."""
    lora: LoraConfig = LoraConfig()
    """The adapter that is trained."""
    sampling: SamplingConfig = SamplingConfig()
    """How training responses are sampled."""
    reward: Reward = Reward()
    """What a response earns."""
    optim: OptimConfig = OptimConfig()
    """The optimiser, and how a step's tokens are split into passes."""
    loop: LoopConfig = LoopConfig()
    """Length, seed and off-policy steps of the run."""
    eval: EvalConfig = EvalConfig()
    """When and how held-out problems are evaluated."""
    checkpoint: CheckpointConfig = CheckpointConfig()
    """When the run is saved, and how much of it is kept."""
    telemetry: TelemetryConfig = TelemetryConfig()
    """Where metrics and rollouts go."""
    engine: EngineConfig = EngineConfig()
    """Devices, processes and sizes of the engines."""

    @model_validator(mode="after")
    def _resolved(self) -> Self:
        """Applies the defaults that depend on another section; the run folder's config.toml shows them."""
        if self.loop.lag:
            object.__setattr__(self, "algorithm", self.algorithm.for_lagging_rollouts())
        if self.engine.device == "cuda" and "gradient_checkpointing" not in self.optim.model_fields_set:
            object.__setattr__(self, "optim", self.optim.model_copy(update={"gradient_checkpointing": True}))
        if self.engine.device == "cuda" and "max_num_seqs" not in self.engine.model_fields_set:
            object.__setattr__(self, "engine", self.engine.model_copy(update={"max_num_seqs": CUDA_SEQUENCES}))
        return self

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.sampling.max_tokens >= self.model.max_length:
            raise ValueError(
                f"sampling.max_tokens={self.sampling.max_tokens} leaves no room for a prompt in "
                f"model.max_length={self.model.max_length}; lower the first or raise the second"
            )
        for reward in self.rewards:
            self._reward_fits(reward)
        if not self.algorithm.learns_at(self.loop.steps - 1):
            raise ValueError(
                f"loop.steps={self.loop.steps} ends before the policy learns: {self.algorithm.name} trains another "
                "model first; raise loop.steps, or lower the steps for that model in the algorithm section"
            )
        if self.lora.rank > self.engine.max_lora_rank:
            raise ValueError(
                f"lora.rank={self.lora.rank} is above engine.max_lora_rank={self.engine.max_lora_rank}; "
                "lower the rank or raise the limit"
            )
        if self.checkpoint.keep_best and not self.data.eval:
            raise ValueError(
                f"checkpoint.keep_best={self.checkpoint.keep_best!r} needs held-out problems; name them in data.eval"
            )
        if self.sampling.prompts % self.optim.minibatches:
            raise ValueError(
                f"sampling.prompts={self.sampling.prompts} cannot be split into "
                f"optim.minibatches={self.optim.minibatches} equal parts"
            )
        self._environments_fit()
        self._feedback_exists()
        self._log_probs_compare()
        return self

    def _reward_fits(self, reward: Reward) -> None:
        if reward.overlong_buffer > self.sampling.max_tokens:
            raise ValueError(
                f"reward.overlong_buffer={reward.overlong_buffer} is above "
                f"sampling.max_tokens={self.sampling.max_tokens}, the length at which it ends; lower it"
            )
        if self.algorithm.scores_steps and not reward.scorer:
            raise ValueError(f"algorithm.name={self.algorithm.name!r} needs a URL that scores steps in reward.scorer")
        if reward.scorer and not self.algorithm.scores_steps:
            raise ValueError(f"reward.scorer has no effect: {self.algorithm.name} uses no step rewards")

    def _environments_fit(self) -> None:
        """Refuses methods that cannot replay an environment, and rewards of an environment that is not there."""
        if self.data.source == "groups" and (self.algorithm.offline or self.algorithm.continues):
            raise ValueError(
                f'data.source="groups" does not fit algorithm.name={self.algorithm.name!r}, which trains on given '
                "pairs or samples on from the middle of a response; use another method"
            )
        played = self.data.environments
        if played and (self.algorithm.offline or self.algorithm.continues):
            raise ValueError(
                f"data.environment={played[0]!r} does not fit algorithm.name={self.algorithm.name!r}, which trains on "
                "given responses or continues from the middle of one; use another method, or no environment"
            )
        for title in [source.title for source in self.data.sources] or [""]:
            reward = self.reward_of(title)
            if (reward.judge or reward.environment) and not self.data.of(title).environment:
                key = "reward.judge" if reward.judge else "reward.environment"
                where = f" of the source {title!r}" if title else ""
                raise ValueError(f"{key} has no effect: the problems{where} have no environment; set data.environment")

    def _log_probs_compare(self) -> None:
        """Refuses to compare log-probs of a part of a distribution with those of the whole.

        vLLM returns log-probs before the temperature and the cut, or after both. With a cut and another temperature
        than 1 it therefore has none that the trainer's can be compared with: importance weights would be the kept
        probability mass, always below 1.
        """
        sampling, key = self.sampling, self.algorithm.sampled_logps_in
        if sampling.cut and sampling.temperature != 1 and key:
            raise ValueError(
                f"sampling.{sampling.cut} with sampling.temperature={sampling.temperature:g} gives log-probs of the "
                f"kept tokens alone, and algorithm.{key} compares them with the whole distribution; set "
                "sampling.temperature=1, or sampling.top_p=1 and sampling.top_k=0"
            )

    @property
    def rewards(self) -> tuple[Reward, ...]:
        """The rewards of the run and of its sources."""
        return (self.reward, *(source.reward for source in self.data.sources if source.reward is not None))

    def reward_of(self, title: str) -> Reward:
        """The reward of a source's problems; without such a source, that of the run."""
        source = self.data.titled(title)
        return self.reward if source is None or source.reward is None else source.reward

    @property
    def reward_functions(self) -> tuple[str, ...]:
        """Every reward function that the run's tasks name."""
        return tuple(dict.fromkeys(name for reward in self.rewards for name in reward.functions))

    @property
    def step_scorers(self) -> tuple[str, ...]:
        """Every URL that scores the steps of the run's tasks."""
        return tuple(dict.fromkeys(reward.scorer for reward in self.rewards if reward.scorer))

    @property
    def raw_logprobs(self) -> bool:
        """Whether the rollout engine returns log-probs before it applies top_p and top_k, at temperature 1."""
        return bool(self.sampling.cut) and self.sampling.temperature == 1

    def _feedback_exists(self) -> None:
        """Refuses a method whose contexts show what this run can never have."""
        if self.algorithm.shows_solution and not self.data.solution:
            raise ValueError(
                f"data.solution is missing: algorithm.name={self.algorithm.name} shows the reference solution; "
                "name its column"
            )
        most = max((ask.rank for ask in self.algorithm.asks), default=0) + 1
        if most > self.sampling.samples:
            raise ValueError(
                f"algorithm.wrong_hints={most} is above sampling.samples={self.sampling.samples}, the answers of a "
                "group; lower it"
            )

    @property
    def hint_tokens(self) -> int:
        """Tokens by which a context of the teacher may be longer than the policy's: hint line and peer response."""
        peers = (Feedback.PEER_FULL, Feedback.PEER_PREFIX, Feedback.PEER_SUFFIX)
        longest = self.sampling.max_tokens
        shown = [min(ask.tokens or longest, longest) for ask in self.algorithm.asks if ask.feedback in peers]
        return HINT_TOKENS + max(shown, default=0)

    @property
    def max_loras(self) -> int:
        """Adapters that an engine holds: one per off-policy step, one being sampled with, one just announced."""
        return self.loop.lag + 2

    @property
    def eval_steps(self) -> frozenset[int]:
        """Steps after whose update the policy is evaluated; the last step is always among them."""
        if not self.data.eval:
            return frozenset()
        return frozenset(range(self.eval.every - 1, self.loop.steps, self.eval.every)) | {self.loop.steps - 1}
