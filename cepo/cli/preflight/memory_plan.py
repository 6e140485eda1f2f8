"""The plan of a run's GPU memory: what each process takes of a card, and the settings with which a run would fit.

A pure function of the run, the counts of its model and the card. The activations come from `cepo.model.activations`,
which counts them with the learner's own modules; everything else follows from numbers of weights and tokens. Figures
are in GiB (2^30 bytes); a card of "24 GB" has 24 * 10^9 bytes.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from cepo.cli.preflight.sizes import ADAPTER_BYTES, BYTES, OPTIMISER_BYTES, CountPass, Sizes
from cepo.errors import UserError
from cepo.messages.tasks import evidence_bytes

if TYPE_CHECKING:
    from cepo.run.config import RunConfig

GIB = 2**30
CONTEXT_BYTES = 3 * GIB // 4
"""The CUDA context of a process, with the workspaces of its libraries."""
FRAGMENTATION = 0.1
"""Share of the activations that the allocator holds in addition."""
ENGINE_BYTES = GIB
"""vLLM's activations of a batch of 8,192 tokens and its CUDA graphs."""
LOGITS_COPIES = 3
"""Float32 copies of the logits of a batch that vLLM holds while it samples."""
VISION_BYTES = GIB // 2
"""Image features that a process keeps (256 MiB), and its pass over one image."""
MOMENTS_BYTES = 8
"""Per weight of an adapter: AdamW's two moments in float32. The gradient is among the counted activations."""
OWN_SHARE = 0.85
"""vLLM's share of a card that it has to itself."""
SEQUENCES = 8
"""Full sequences that the KV cache should hold, when a smaller share for vLLM is looked for."""
ENGINES = ("rollout", "teacher", "trainer")
"""The services that use a GPU."""
PART_NAMES = ("weights", "adapters", "passes", "reserve", "KV cache")


@dataclass(frozen=True)
class GpuCard:
    """GPUs of one kind. With several, each process has GPUs of its own; with one, all processes share it."""

    total_bytes: int
    count: int = 1
    used_bytes: int = 0
    """What other processes, outside the plan, hold of each."""

    @property
    def title(self) -> str:
        used = f", {self.used_bytes / GIB:.1f} of them in use" * (self.used_bytes > 0)
        size = f"{self.total_bytes / 1e9:.4g} GB ({self.total_bytes / GIB:.1f} GiB{used})"
        return f"one card of {size}" if self.count == 1 else f"{self.count} cards of {size}"


@dataclass(frozen=True)
class ProcessMemory:
    """The bytes that one process takes of one GPU, by the names of `PART_NAMES`."""

    process: str
    parts: dict[str, int]

    @property
    def total_bytes(self) -> int:
        return sum(self.parts.values())


@dataclass(frozen=True)
class MemoryPlan:
    """What the processes of a run take of their GPUs."""

    config: RunConfig
    card: GpuCard
    processes: tuple[ProcessMemory, ...]
    shared: bool
    """Whether all processes are on one card."""
    sequence_bytes: int
    """The KV cache of one sequence of `model.max_length` on one GPU."""
    evidence_bytes: int = 0
    """The most bytes of the distributions that the teacher sends for a group."""

    @property
    def needed_bytes(self) -> int:
        """The bytes of the fullest card."""
        totals = [process.total_bytes for process in self.processes]
        return sum(totals) if self.shared else max(totals, default=0)

    @property
    def sequences(self) -> int:
        """Full sequences that the KV cache holds; negative if vLLM's share does not even hold its weights."""
        cache = [each.parts["KV cache"] for each in self.processes if each.process == "rollout"]
        return cache[0] // max(1, self.sequence_bytes) if cache else 1

    @property
    def problem(self) -> str:
        """Why the run does not fit, as one clause; empty if it does."""
        if self.sequences < 1:
            return (
                f"engine.gpu_memory_utilization={self.config.engine.gpu_memory_utilization:g} of {self.card.title} "
                "leaves vLLM no KV cache for one sequence of model.max_length"
            )
        if self.needed_bytes + self.card.used_bytes > self.card.total_bytes:
            where = "together" if self.shared else "on one of its cards"
            return f"the run takes {self.needed_bytes / GIB:.1f} GiB {where}, more than {self.card.title}"
        return ""

    def lines(self) -> Iterator[str]:
        """The plan as a table of fixed columns."""
        yield f"plan for {self.card.title}, in GiB:"
        yield f"{'':<10}" + "".join(f"{name:>10}" for name in (*PART_NAMES, "sum"))
        for process in self.processes:
            figures = [*(process.parts.get(name, 0) for name in PART_NAMES), process.total_bytes]
            yield f"{process.process:<10}" + "".join(f"{figure / GIB:>10.1f}" for figure in figures)
        yield f"{'in all' if self.shared else 'most':<10}{self.needed_bytes / GIB:>60.1f}"
        if self.evidence_bytes:
            yield f"the evidence of a group takes up to {self.evidence_bytes / 1e6:.3g} MB in Redis"
        if self.sequences >= 1 and self.processes[0].process == "rollout":
            tokens, share = self.config.model.max_length, self.config.engine.gpu_memory_utilization
            yield f"the KV cache holds {self.sequences} sequences of {tokens} tokens"
            if not self.shared and share < OWN_SHARE and len(self.processes) > 1:
                yield f"vLLM takes {share:g} of a card of its own; engine.gpu_memory_utilization={OWN_SHARE} is safe"


def plan_memory(sizes: Sizes, card: GpuCard, count: CountPass, services: Sequence[str] = ENGINES) -> MemoryPlan:
    """Plans a run on a card.

    Args:
        sizes: the counts of the model, with the run.
        count: `sizes.pass_counter(sizes)`.
        services: the services that are on the card; a colocated teacher is part of the trainer.
    """
    config = sizes.config
    engine = config.engine
    alone = engine.teacher == "service"
    used = engine.tensor_parallel + alone + engine.trainer_processes
    makers = {"rollout": _rollout, "teacher": _teacher, "trainer": _trainer}
    processes = [
        make(sizes, card, count) for name, make in makers.items() if name in services and (name != "teacher" or alone)
    ]
    sequence = config.model.max_length * sizes.cache_numbers * BYTES[config.model.dtype] // engine.tensor_parallel
    evidence = evidence_bytes(config.algorithm.asks, sizes.vocabulary, config.sampling.group_tokens)
    return MemoryPlan(config, card, tuple(processes), card.count < used, sequence, evidence)


def planned_cache(sizes: Sizes, card: GpuCard) -> int:
    """The bytes of vLLM's KV cache on each GPU; 0 if its share leaves none for a sequence of full length."""
    plan = plan_memory(sizes, card, lambda *_: 0, ("rollout",))
    return plan.processes[0].parts["KV cache"] if plan.sequences >= 1 else 0


def _rollout(sizes: Sizes, card: GpuCard, count: CountPass) -> ProcessMemory:
    """vLLM gets its share of the card: the KV cache has what the rest leaves of it."""
    config, engine = sizes.config, sizes.config.engine
    slots = config.max_loras * sizes.adapter_parameters * BYTES[config.model.dtype]
    adapters = slots * engine.max_lora_rank // (config.lora.rank * engine.tensor_parallel)
    logits = LOGITS_COPIES * engine.max_num_seqs * sizes.vocabulary * 4
    parts = {
        "weights": sizes.weights_bytes // engine.tensor_parallel,
        "adapters": adapters,
        "passes": ENGINE_BYTES + logits,
        "reserve": CONTEXT_BYTES,
    }
    share = int(engine.gpu_memory_utilization * card.total_bytes)
    return ProcessMemory("rollout", {**parts, "KV cache": share - sum(parts.values())})


def _teacher(sizes: Sizes, card: GpuCard, count: CountPass) -> ProcessMemory:
    adapters = sizes.config.max_loras * sizes.adapter_parameters * ADAPTER_BYTES
    return _torch_process("teacher", sizes, sizes.weights_bytes, adapters, _scoring(sizes, count))


def _scoring(sizes: Sizes, count: CountPass) -> int:
    """A scoring pass, with ids and log-probs of the likeliest tokens as doubles: twice their bytes in a message."""
    tokens, asks = _scored_tokens(sizes.config), sizes.config.algorithm.asks
    likeliest = max((2 * evidence_bytes((ask,), sizes.vocabulary, tokens) for ask in asks), default=0)
    return count(tokens, False, False) + likeliest


def _trainer(sizes: Sizes, card: GpuCard, count: CountPass) -> ProcessMemory:
    """The learner; with several ranks each has a shard of the layers, and gathers two layers at a time."""
    config, ranks = sizes.config, sizes.config.engine.trainer_processes
    one = BYTES[config.model.dtype]
    layers, gathered = sizes.layer_parameters * one, 2 * sizes.layer_parameters // max(1, sizes.layers) * one
    weights = sizes.weights_bytes - layers + layers // ranks + gathered * (ranks > 1)
    adapters = sizes.adapter_parameters * (ADAPTER_BYTES + MOMENTS_BYTES)
    adapters += sizes.auxiliary_parameters * (ADAPTER_BYTES + OPTIMISER_BYTES)  # its gradients outlive its passes
    # one row longer than the budget is a pass of its own
    tokens = min(max(config.optim.tokens_per_microbatch, config.model.max_length), _step_tokens(config))
    passes = count(tokens, True, config.optim.gradient_checkpointing)
    passes += 3 * evidence_bytes(config.algorithm.asks, sizes.vocabulary, tokens) // 2  # ids of 8 bytes
    if config.engine.teacher == "colocated":  # scoring and training take turns
        passes = max(passes, _scoring(sizes, count))
        adapters += config.max_loras * sizes.adapter_parameters * ADAPTER_BYTES
    return _torch_process("trainer", sizes, weights, adapters, passes)


def _torch_process(name: str, sizes: Sizes, weights: int, adapters: int, passes: int) -> ProcessMemory:
    vision = VISION_BYTES * hasattr(sizes.model_config, "vision_config")
    reserve = CONTEXT_BYTES + int(FRAGMENTATION * passes)
    parts = {"weights": weights, "adapters": adapters, "passes": passes + vision, "reserve": reserve}
    return ProcessMemory(name, parts)


def _step_tokens(config: RunConfig) -> int:
    """The most tokens that the responses of a step and their prompts have."""
    return config.sampling.prompts * config.sampling.samples * config.model.max_length


def _scored_tokens(config: RunConfig) -> int:
    """The most tokens of a scoring pass; one row longer than the budget is a pass of its own."""
    from cepo.teaching.engine import TOKENS_PER_PASS

    return min(max(TOKENS_PER_PASS, config.model.max_length + config.hint_tokens), 3 * _step_tokens(config))


def fitting_settings(sizes: Sizes, card: GpuCard, count: CountPass, services: Sequence[str] = ENGINES) -> list[str]:
    """The first of a few changes, the cheapest ones first, with which the run fits; empty if it fits with none.

    Example: ["optim.tokens_per_microbatch=4096", "engine.gpu_memory_utilization=0.35"].
    """
    for changes in _changes(sizes.config):
        changed = replace(sizes, config=_changed(sizes.config, changes))
        plan = plan_memory(changed, card, count, services)
        if plan.problem and "rollout" in services:
            share = _largest_share(plan)
            if share is None:
                continue
            if share < changed.config.engine.gpu_memory_utilization or plan.sequences < 1:
                changes = {**changes, "engine.gpu_memory_utilization": share}
                changed = replace(sizes, config=_changed(sizes.config, changes))
                plan = plan_memory(changed, card, count, services)
        if not plan.problem:
            return [f"{key}={_toml(value)}" for key, value in changes.items()]
    return []


def _changes(config: RunConfig) -> Iterator[dict[str, object]]:
    """Changes that each add one more to those before."""
    steps: list[dict[str, object]] = [{}]
    if not config.optim.gradient_checkpointing:
        steps.append({"optim.gradient_checkpointing": True})
    least = max(2048, config.model.max_length)
    tokens = config.optim.tokens_per_microbatch // 2
    while tokens >= least:
        steps.append({"optim.tokens_per_microbatch": tokens})
        tokens //= 2
    if config.engine.teacher == "service" and config.engine.trainer_processes == 1:
        steps.append({"engine.teacher": "colocated"})
    changes: dict[str, object] = {}
    for step in steps:
        changes = {**changes, **step}
        yield changes


def _largest_share(plan: MemoryPlan) -> float | None:
    """The largest share of the card for vLLM, in steps of 0.05, that the others leave; None if it is too small."""
    rollout = next(each for each in plan.processes if each.process == "rollout")
    others = sum(each.total_bytes for each in plan.processes if each is not rollout) if plan.shared else 0
    others += plan.card.used_bytes
    own = rollout.total_bytes - rollout.parts["KV cache"] + SEQUENCES * plan.sequence_bytes
    share = min(int((1 - others / plan.card.total_bytes) * 20) / 20, 0.9)
    return share if share * plan.card.total_bytes >= own else None


def _changed(config: RunConfig, changes: dict[str, object]) -> RunConfig:
    tree = config.model_dump()
    for key, value in changes.items():
        section, _, name = key.partition(".")
        tree[section][name] = value
    return type(config).model_validate(tree)


def _toml(value: object) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def refusal(plan: MemoryPlan, settings: Sequence[str]) -> str:
    """One line for a plan that does not fit, with the settings that would."""
    fix = f"set {', '.join(settings)}" if settings else "take a larger card, or give each service a card of its own"
    return f"{plan.problem}; {fix}"


def parse_gpu(text: str) -> GpuCard:
    """Reads the size of a card. Example: "24GB" is one card, "3x80GB" three of them.

    Raises:
        UserError: the text is no such size.
    """
    size = re.fullmatch(r"(?:(\d+)x)?(\d+(?:\.\d+)?) ?(GB|GiB)", text.strip(), re.IGNORECASE)
    if size is None or float(size[2]) == 0 or size[1] == "0":
        raise UserError(f"--gpu {text!r} is not the memory of a card; give 24GB, 80GB or 3x80GB")
    unit = 10**9 if size[3].lower() == "gb" else GIB
    return GpuCard(int(float(size[2]) * unit), int(size[1] or 1))
