"""Which keys of a run may change when it is resumed, and the comparison of what is asked with what the run has.

Each key of a run file is classified in `KEYS`; a test fails for a key that is not.

    free      may change: it decides how long, where or how fast the run goes on, not what it computes
    problems  may change if the problems stay the same: the digests in problems/SHA256SUMS decide
    fixed     changes what the run computes, so it needs `--allow-change KEY`
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from cepo.errors import UserError
from cepo.run.folder import RunDir
from cepo.run.lines import Row

if TYPE_CHECKING:
    from cepo.run.config import RunConfig

Class = Literal["free", "problems", "fixed"]
KEYS: dict[str, dict[Class, str]] = {
    "": {"free": "name"},
    "model": {"fixed": "path dtype max_length"},
    "data": {
        "problems": "train eval question answer images solution rejected split eval_split where eval_where limit "
        "system instruction on_bad_row",
        "fixed": "answer_kind curriculum environment hint max_turns placement source template",
    },
    "algorithm": {"fixed": "*"},
    "lora": {"fixed": "rank alpha targets"},
    "sampling": {"fixed": "prompts samples temperature top_p top_k max_tokens"},
    "reward": {"fixed": "*"},
    "optim": {
        "fixed": "lr schedule warmup_steps weight_decay max_grad_norm minibatches",
        "free": "tokens_per_microbatch gradient_checkpointing",
    },
    "loop": {"fixed": "seed lag", "free": "steps deterministic"},
    "eval": {"free": "every prompts samples temperature top_p top_k presence_penalty"},
    "checkpoint": {"free": "every keep keep_policies keep_best patience"},
    "telemetry": {"free": "tensorboard wandb_project trackers rollouts_per_step rollouts_gigabytes"},
    "engine": {
        "free": "device gpu_memory_utilization max_num_seqs max_lora_rank teacher tensor_parallel trainer_processes"
    },
}
"""The keys of each section by class; `*` stands for every key, also those of other methods."""


@dataclass(frozen=True)
class Change:
    """A key whose value in the run folder differs from the value that is asked for."""

    key: str
    was: Any
    now: Any

    def __str__(self) -> str:
        """Example: `loop.steps (20 -> 40)`."""
        return f"{self.key} ({_shown(self.was)} -> {_shown(self.now)})"


def class_of(key: str) -> Class:
    """The class of a key such as `optim.lr` or `data.template.enable_thinking`, which has that of `data.template`.

    Raises:
        KeyError: the key is not classified.
    """
    section, _, name = key.partition(".") if "." in key else ("", "", key)
    if key.startswith("data.train."):  # of a source, such as data.train.0.share
        name = name.split(".")[2]
        return "problems" if name in ("path", *KEYS["data"]["problems"].split()) else "fixed"
    for kind, names in KEYS[section].items():
        if names == "*" or name.partition(".")[0] in names.split():
            return kind
    raise KeyError(key)


def changes(was: RunConfig, asked: RunConfig) -> list[Change]:
    """The keys whose values differ, in the order of the sections.

    With another method the other keys of `algorithm` are those of that method, so `algorithm.name` stands for all.
    """
    old, new = dict(_leaves(was.model_dump(mode="json"))), dict(_leaves(asked.model_dump(mode="json")))
    keys = [key for key in {**old, **new} if old.get(key) != new.get(key)]
    if "algorithm.name" in keys:
        keys = [key for key in keys if not key.startswith("algorithm.") or key == "algorithm.name"]
    return [Change(key, old.get(key), new.get(key)) for key in keys]


def check_changes(was: RunConfig, asked: RunConfig, allowed: Sequence[str], folder: RunDir) -> list[Change]:
    """The keys that a resume changes, all of which may change.

    Args:
        allowed: the keys of `--allow-change`; a section, such as `lora`, stands for all its keys.

    Raises:
        UserError: a fixed key differs and is not allowed, which the message names with both values; or an allowed key
            does not exist.
    """
    _check_known(asked, allowed)
    differing = changes(was, asked)
    refused = [change for change in differing if class_of(change.key) == "fixed" and not _allows(allowed, change.key)]
    if refused:
        listed, words = ", ".join(map(str, refused)), " ".join(f"--allow-change {change.key}" for change in refused)
        raise UserError(
            f"the run in {folder.path} would change what it computes: {listed}; leave the new values out (`cepo resume "
            f"RUN_DIR` keeps those of the run), or give {words}"
        )
    return differing


def record(folder: RunDir, differing: Sequence[Change]) -> None:
    """Adds the changes of a resume to changes.jsonl, with the step from which they hold."""
    saved = [int(path.name.removeprefix("step-")) for path in folder.checkpoints.glob("step-*")]
    step, now = max(saved, default=0), time.strftime("%Y-%m-%dT%H:%M:%S%z")
    folder.append_changes(
        [{"step": step, "time": now, "key": each.key, "was": each.was, "now": each.now} for each in differing]
    )


def changed_model(rows: Sequence[Row], step: int) -> list[str]:
    """The keys of the model and its adapter that were changed, with `--allow-change`, for a resume at `step`.

    Args:
        rows: the rows of changes.jsonl.
    """
    return [row["key"] for row in rows if row["step"] >= step and row["key"].startswith(("model.", "lora."))]


def _leaves(tree: Mapping[str, Any], parents: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in tree.items():
        if isinstance(value, dict):
            yield from _leaves(value, f"{parents}{name}.")
        elif isinstance(value, list) and value and isinstance(value[0], dict):
            yield from _leaves({str(at): each for at, each in enumerate(value)}, f"{parents}{name}.")
        else:
            yield parents + name, value


def _allows(allowed: Sequence[str], key: str) -> bool:
    return any(key == each or key.startswith(f"{each}.") for each in allowed)


def _check_known(config: RunConfig, allowed: Sequence[str]) -> None:
    known = dict(_leaves(config.model_dump(mode="json")))
    for each in allowed:
        if not any(_allows([each], key) for key in known):
            raise UserError(f"--allow-change {each}: there is no such key; give one such as optim.lr")


def _shown(value: Any) -> str:
    return "none" if value is None else repr(value)
