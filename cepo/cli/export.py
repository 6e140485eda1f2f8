"""`cepo export RUN_DIR OUT [--merge]`: the newest adapter of a run, or the whole model with the adapter merged in."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cepo.errors import UserError
from cepo.net.files import replace_folder
from cepo.run import file as runfile
from cepo.run.folder import RunDir

if TYPE_CHECKING:
    from cepo.run.config import RunConfig


def export(
    run_dir: Annotated[Path, typer.Argument(metavar="RUN_DIR", help="The folder of a run.")],
    out: Annotated[Path, typer.Argument(metavar="OUT", help="A new folder.")],
    *,
    merge: Annotated[bool, typer.Option("--merge", help="Write the whole model with the adapter merged in.")] = False,
) -> None:
    """Copies or merges the newest adapter.

    Raises:
        UserError: the run holds no adapter, or OUT exists.
    """
    run = RunDir(run_dir)
    versions = sorted(run.adapters.glob("v*"))
    if not versions:
        raise UserError(f"{run.path} holds no adapter; train it first")
    if out.exists():
        raise UserError(f"{out} exists; give a new folder")
    if merge:
        _merge(runfile.load(run.config), versions[-1], out)
    else:
        with replace_folder(out) as scratch:
            shutil.copytree(versions[-1], scratch, dirs_exist_ok=True)
    print(f"{versions[-1].name} of {run.name} written to {out}")


def _merge(config: RunConfig, adapter: Path, out: Path) -> None:
    from peft import PeftModel
    from transformers import AutoTokenizer

    from cepo.model.forward import load_causal_lm
    from cepo.prompts.pixels import image_processor

    base = load_causal_lm(config.model.path, config.model.dtype, "cpu")
    merged: Any = PeftModel.from_pretrained(base, adapter).merge_and_unload()
    with replace_folder(out) as scratch:
        merged.save_pretrained(scratch)
        AutoTokenizer.from_pretrained(config.model.path).save_pretrained(scratch)
        if hasattr(merged.config, "vision_config"):
            image_processor(config.model.path).save_pretrained(scratch)
