"""Every Prometheus metric of the project. The code that does the work updates the metric.

Names follow https://prometheus.io/docs/practices/naming/: base units, the unit last, `_total` only on counters. The
label `stage` is the name of the stream: rollout, verify or teach. Prometheus adds the service's label when it scrapes.
`docs/operations.md` lists all metrics.
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

disable_created_metrics()  # they are half of all series, and are not used

_BUCKETS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 50, 100, 250, 500)
RESULTS = ("done", "failed", "retried", "superseded")
COLLECTED_RESULTS = ("done", "failed", "refused", "dropped", "reissued")

READY = Gauge("cepo_ready", "1 while the service does its work, 0 while it starts or drains")
BUILD = Gauge("cepo_build_info", "1; the version is a label", ["version"])

GROUPS = Counter(
    "cepo_groups_total",
    "Groups that a stage finished: done, failed (a dead letter), retried (left for another delivery), "
    "superseded (another worker finished it first)",
    ["stage", "result"],
)
UNREADABLE = Counter(
    "cepo_unreadable_total",
    "Items of a stream that no worker could read and that were moved to the stream `failures`",
    ["stream"],
)
REDELIVERIES = Counter("cepo_redeliveries_total", "Groups that were delivered to a stage again", ["stage"])
IN_PROGRESS = Gauge("cepo_groups_in_progress", "Groups that a process of a stage is working on", ["stage"])
WAIT_SECONDS = Histogram(
    "cepo_wait_seconds",
    "Seconds a group waited in a stage's stream before its first delivery",
    ["stage"],
    buckets=_BUCKETS,
)
HANDLER_SECONDS = Histogram("cepo_handler_seconds", "Seconds a stage worked on a group", ["stage"], buckets=_BUCKETS)
HOP_SECONDS = Histogram(
    "cepo_hop_seconds", "Seconds to publish a result and delete its input", ["stage"], buckets=_BUCKETS
)
QUEUE_GROUPS = Gauge("cepo_queue_groups", "Groups in a stage's stream, whether or not a worker holds them", ["stage"])
QUEUE_OLDEST_SECONDS = Gauge(
    "cepo_queue_oldest_seconds",
    "Seconds since the oldest group in a stage's stream was published; 0 if it is empty",
    ["stage"],
)

GENERATED_TOKENS = Counter("cepo_generated_tokens_total", "Tokens that the rollout stage sampled")
ENVIRONMENT_SECONDS = Histogram(
    "cepo_environment_step_seconds", "Seconds an environment took to answer a turn", buckets=_BUCKETS
)
ENVIRONMENT_FAILURES = Counter(
    "cepo_environment_failures_total", "Responses that their environment ended with an error, a crash or a timeout"
)
SESSION_SPLITS = Counter(
    "cepo_session_splits_total", "Turns of a session whose prompt did not continue the token ids of the turns before"
)
SESSIONS_EXPIRED = Counter("cepo_sessions_expired_total", "Sessions that ended because no request came for them")
SCORED_TOKENS = Counter("cepo_scored_tokens_total", "Response tokens that the teacher scored, counted once per context")
TRAINED_TOKENS = Counter("cepo_trained_tokens_total", "Tokens with a gradient in an update")
VERDICTS = Counter("cepo_verdicts_total", "Verdicts by outcome", ["outcome"])

POLICY_VERSION = Gauge("cepo_engine_policy_version", "Policy version that an engine loaded last")
LOAD_SECONDS = Histogram("cepo_engine_load_seconds", "Seconds to fetch, load and verify a policy", buckets=_BUCKETS)
LOAD_FAILURES = Counter("cepo_engine_load_failures_total", "Failed loads of a policy")

COLLECTED = Counter(
    "cepo_trainer_groups_total",
    "Groups that reached the trainer: done, failed (in a stage), refused (weights not verified), "
    "dropped (not expected, or a duplicate); reissued: published again, because Redis had lost them",
    ["result"],
)
PROGRESS = Gauge(
    "cepo_trainer_progress_timestamp_seconds",
    "Unix time at which a group last arrived or a step last finished",
    ["run"],
)
PUBLISHED_VERSION = Gauge("cepo_trainer_policy_version", "Newest policy version that was published", ["run"])
LAG_BOUND = Gauge("cepo_trainer_lag_bound_steps", "Largest number of off-policy steps, loop.lag", ["run"])


def verdicts() -> dict[Outcome, Counter]:
    """The counters by outcome, created at 0: a counter that first appears at 1 has no increase for an alert to see."""
    return {outcome: VERDICTS.labels(outcome.name.lower()) for outcome in Outcome}


def collected() -> dict[str, Counter]:
    """The counters of groups that reached the trainer by result, created at 0."""
    return {result: COLLECTED.labels(result) for result in COLLECTED_RESULTS}


class StageMetrics:
    """The metrics of one stage, with the label bound once: counters exist at 0, and label lookups are slow."""

    def __init__(self, stage: Stage) -> None:
        name = stage.name.lower()
        self.groups = {result: GROUPS.labels(name, result) for result in RESULTS}
        self.redeliveries = REDELIVERIES.labels(name)
        self.in_progress = IN_PROGRESS.labels(name)
        self.wait_seconds = WAIT_SECONDS.labels(name)
        self.handler_seconds = HANDLER_SECONDS.labels(name)
        self.hop_seconds = HOP_SECONDS.labels(name)
        self.queue_groups = QUEUE_GROUPS.labels(name)
        self.queue_oldest_seconds = QUEUE_OLDEST_SECONDS.labels(name)


def train_name(key: str) -> str:
    """The gauge of a key of metrics.jsonl. Example: train_name("credit/lambda") == "cepo_train_credit_lambda"."""
    return "cepo_train_" + re.sub(r"\W", "_", key).removesuffix("_total")


class TrainMetrics(Collector):
    """A gauge for each number of the last step. A key that is missing in a step keeps its previous value."""

    def __init__(self) -> None:
        self._values: dict[str, dict[str, float]] = {}

    def step(self, run: str, row: Mapping[str, Any]) -> None:
        """Sets the gauges to the row of a step."""
        numbers = {key: float(value) for key, value in row.items() if isinstance(value, int | float)}
        self._values[run] = self._values.get(run, {}) | numbers

    def clear(self) -> None:
        """Removes the gauges of all runs."""
        self._values.clear()

    def collect(self) -> Iterable[Metric]:
        for key in sorted({key for values in self._values.values() for key in values}):
            family = GaugeMetricFamily(train_name(key), f"{key} of the last step, as in metrics.jsonl", labels=["run"])
            for run, values in self._values.items():
                if key in values:
                    family.add_metric([run], values[key])
            yield family


class GpuMetrics(Collector):
    """Memory of the visible GPUs; no series without a GPU."""

    def collect(self) -> Iterable[Metric]:
        used = GaugeMetricFamily("cepo_gpu_memory_used_bytes", "Memory of a GPU in use by any process", labels=["gpu"])
        total = GaugeMetricFamily("cepo_gpu_memory_total_bytes", "Memory of a GPU", labels=["gpu"])
        for index, memory in enumerate(gpu.memory()):
            used.add_metric([str(index)], memory.used)
            total.add_metric([str(index)], memory.total)
        return (used, total) if used.samples else ()


TRAIN = TrainMetrics()
REGISTRY.register(TRAIN)
REGISTRY.register(GpuMetrics())
