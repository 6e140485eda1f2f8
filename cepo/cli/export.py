"""`cepo export RUN_DIR OUT [--policy best] [--merge]`: an adapter of a run, or the whole model with it merged in.

A README.md beside it, in the form of a Hugging Face model card, says how it was trained and what it measured.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cepo.cli.model_card import model_card
from cepo.errors import UserError
from cepo.net.files import replace_folder
from cepo.run import file as runfile
from cepo.run.best import best_of
from cepo.run.folder import RunDir

if TYPE_CHECKING:
    from cepo.run.config import RunConfig


def export(
    run_dir: Annotated[Path, typer.Argument(metavar="RUN_DIR", help="The folder of a run.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="A new folder.")],
    *,
    policy: Annotated[
        str,
        typer.Option("--policy", metavar="newest|best|N", help="The adapter: newest, best, or a version."),
    ] = "newest",
    merge: Annotated[bool, typer.Option("--merge", help="Write the whole model with the adapter merged in.")] = False,
) -> None:
    """Copies or merges an adapter.

    Raises:
        UserError: the run holds no such adapter, or OUT exists.
    """
    run = RunDir(run_dir)
    adapter = chosen(run, policy)
    if out.exists():
        raise UserError(f"{out} exists; give a new folder")
    config = runfile.load(run.config)
    with replace_folder(out) as scratch:
        if merge:
            _merge(config, adapter, scratch)
        else:
            shutil.copytree(adapter, scratch, dirs_exist_ok=True)
        (scratch / "README.md").write_text(model_card(config, run, adapter, merged=merge))
    print(f"{adapter.name} of {run.name} written to {out}")


def chosen(run: RunDir, policy: str) -> Path:
    """The folder of an adapter.

    Args:
        policy: "newest", "best", or the number of a version.

    Raises:
        UserError: the run does not hold it.
    """
    versions = {int(path.name[1:]): path for path in run.adapters.glob("v*")}
    if not versions:
        raise UserError(f"{run.path} holds no adapter; train it first")
    if policy == "newest":
        return versions[max(versions)]
    if policy == "best":
        best = best_of(run.rows())
        if best is None:
            raise UserError(f"{run.path} measured no policy on held-out problems; name them in data.eval")
        version = best.version
    elif policy.isdecimal():
        version = int(policy)
    else:
        raise UserError(f"--policy {policy}: give newest, best or the number of a version")
    if version not in versions:
        kept = f"v{min(versions)} to v{max(versions)}"
        raise UserError(
            f"{run.adapters} does not hold version {version} ({policy}); it holds {kept}. "
            'checkpoint.keep_best="accuracy/eval" keeps the best one'
        )
    return versions[version]


def _merge(config: RunConfig, adapter: Path, scratch: Path) -> None:
    """Writes the base model with the adapter merged in, its tokenizer and its image processor into a folder."""
    from peft import PeftModel
    from transformers import AutoTokenizer

    from cepo.model.forward import load_causal_lm
    from cepo.prompts.pixels import image_processor

    base = load_causal_lm(config.model.path, config.model.dtype, "cpu")
    merged: Any = PeftModel.from_pretrained(base, adapter).merge_and_unload()
    merged.save_pretrained(scratch)
    AutoTokenizer.from_pretrained(config.model.path).save_pretrained(scratch)
    if hasattr(merged.config, "vision_config"):
        image_processor(config.model.path).save_pretrained(scratch)
