"""Every Prometheus metric of the project under its constant name; the code that does a thing counts it.

Names follow https://prometheus.io/docs/practices/naming/: base units, the unit last, `_total` on counters alone. A
stage's label values are its stream's name: rollout, verify, teach. Which service speaks is the scraper's label.
`docs/operations.md` lists what is here.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from prometheus_client import REGISTRY, Counter, Gauge, Histogram, disable_created_metrics
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from cepo.messages.groups import Outcome, Stage
from cepo.service import gpu

disable_created_metrics()  # half of all series, and nobody reads them

_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 50, 100, 250, 500)
RESULTS = ("done", "failed", "retried", "beaten")
COLLECTED_RESULTS = ("done", "failed", "refused", "dropped")

READY = Gauge("cepo_ready", "1 while the service does its work, 0 while it starts or drains")
BUILD = Gauge("cepo_build_info", "1; the version is a label", ["version"])

GROUPS = Counter(
    "cepo_groups_total",
    "Groups that left a stage's hands: done, failed (a dead letter), retried (left for another delivery), "
    "beaten (another worker was first)",
    ["stage", "result"],
)
REDELIVERIES = Counter("cepo_redeliveries_total", "Deliveries to a stage of groups delivered before", ["stage"])
IN_HAND = Gauge("cepo_groups_in_hand", "Groups a stage's process works on now", ["stage"])
WAIT_SECONDS = Histogram(
    "cepo_wait_seconds",
    "Seconds a group was on a stage's stream before its first delivery",
    ["stage"],
    buckets=_BUCKETS,
)
HANDLER_SECONDS = Histogram("cepo_handler_seconds", "Seconds a stage worked on a group", ["stage"], buckets=_BUCKETS)
HOP_SECONDS = Histogram(
    "cepo_hop_seconds", "Seconds to publish a result and end its input", ["stage"], buckets=_BUCKETS
)
QUEUE_GROUPS = Gauge("cepo_queue_groups", "Groups on a stage's stream, in hands or not", ["stage"])
QUEUE_OLDEST_SECONDS = Gauge(
    "cepo_queue_oldest_seconds", "Seconds the oldest group has been on a stage's stream; 0 for an empty one", ["stage"]
)

GENERATED_TOKENS = Counter("cepo_generated_tokens_total", "Tokens the rollout stage sampled")
SCORED_TOKENS = Counter("cepo_scored_tokens_total", "Response tokens the teacher measured, under every context")
TRAINED_TOKENS = Counter("cepo_trained_tokens_total", "Tokens the learner had a gradient of")
VERDICTS = Counter("cepo_verdicts_total", "Verdicts by outcome", ["outcome"])

POLICY_VERSION = Gauge("cepo_engine_policy_version", "Policy version an engine loaded last")
LOAD_SECONDS = Histogram("cepo_engine_load_seconds", "Seconds to fetch, bind and prove a policy", buckets=_BUCKETS)
LOAD_FAILURES = Counter("cepo_engine_load_failures_total", "Loads of a policy that failed")

COLLECTED = Counter(
    "cepo_trainer_groups_total",
    "Groups that reached the trainer: done, failed (by a stage), refused (weights not proven), "
    "dropped (not asked for, or here already)",
    ["result"],
)
PROGRESS = Gauge("cepo_trainer_progress_timestamp_seconds", "Unix time a group last came or a step last ended", ["run"])
PUBLISHED_VERSION = Gauge("cepo_trainer_policy_version", "Newest policy version the trainer has published", ["run"])
LAG_BOUND = Gauge("cepo_trainer_lag_bound_steps", "Steps the rollouts may be behind: loop.lag", ["run"])


def verdicts() -> dict[Outcome, Counter]:
    """The counters of the outcomes, at 0: one that first appears at 1 has no increase, and no alert would see it."""
    return {outcome: VERDICTS.labels(outcome.name.lower()) for outcome in Outcome}


def collected() -> dict[str, Counter]:
    """The counters of what reached the trainer, by result, at 0."""
    return {result: COLLECTED.labels(result) for result in COLLECTED_RESULTS}


class StageMetrics:
    """One stage's metrics, bound to its label once: counters are there at 0, and finding a label costs more than
    counting.
    """

    def __init__(self, stage: Stage) -> None:
        name = stage.name.lower()
        self.groups = {result: GROUPS.labels(name, result) for result in RESULTS}
        self.redeliveries = REDELIVERIES.labels(name)
        self.in_hand = IN_HAND.labels(name)
        self.wait_seconds = WAIT_SECONDS.labels(name)
        self.handler_seconds = HANDLER_SECONDS.labels(name)
        self.hop_seconds = HOP_SECONDS.labels(name)
        self.queue_groups = QUEUE_GROUPS.labels(name)
        self.queue_oldest_seconds = QUEUE_OLDEST_SECONDS.labels(name)


def train_name(key: str) -> str:
    """The gauge of a key of metrics.jsonl: `credit/lambda` is `cepo_train_credit_lambda`."""
    return "cepo_train_" + re.sub(r"\W", "_", key).removesuffix("_total")


class TrainMetrics(Collector):
    """Every number of the run's last step under a name of its own; a key that a step lacks keeps its last value."""

    def __init__(self) -> None:
        self._values: dict[str, dict[str, float]] = {}

    def step(self, run: str, row: Mapping[str, Any]) -> None:
        """Takes a step's row."""
        numbers = {key: float(value) for key, value in row.items() if isinstance(value, int | float)}
        self._values[run] = self._values.get(run, {}) | numbers

    def clear(self) -> None:
        """Forgets every run."""
        self._values.clear()

    def collect(self) -> Iterable[Metric]:
        for key in sorted({key for values in self._values.values() for key in values}):
            family = GaugeMetricFamily(train_name(key), f"{key} of the last step, as in metrics.jsonl", labels=["run"])
            for run, values in self._values.items():
                if key in values:
                    family.add_metric([run], values[key])
            yield family


class GpuMetrics(Collector):
    """Memory of the GPUs this process sees; nothing where there is none."""

    def collect(self) -> Iterable[Metric]:
        used = GaugeMetricFamily("cepo_gpu_memory_used_bytes", "Memory in use on a GPU, by anybody", labels=["gpu"])
        total = GaugeMetricFamily("cepo_gpu_memory_total_bytes", "Memory of a GPU", labels=["gpu"])
        for index, memory in enumerate(gpu.memory()):
            used.add_metric([str(index)], memory.used)
            total.add_metric([str(index)], memory.total)
        return (used, total) if used.samples else ()


TRAIN = TrainMetrics()
REGISTRY.register(TRAIN)
REGISTRY.register(GpuMetrics())
