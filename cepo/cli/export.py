"""`cepo export RUN_DIR OUT [--merge]`: the newest adapter of a run, or a whole model with it merged in."""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path
from typing import Any

from cepo.errors import UserError
from cepo.run import config as runconfig, file as runfile
from cepo.run.folder import RunDir


def add_parser(commands: Any) -> None:
    parser = commands.add_parser("export", help="write the trained adapter, or a merged model")
    parser.add_argument("run_dir", type=Path)
    parser.add_argument("out", type=Path)
    parser.add_argument("--merge", action="store_true", help="write the whole model with the adapter merged in")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Copies or merges; refuses to overwrite."""
    folder = RunDir(options.run_dir)
    versions = sorted(folder.adapters.glob("v*"))
    if not versions:
        raise UserError(f"{folder.path} holds no adapter; train it first")
    if options.out.exists():
        raise UserError(f"{options.out} exists; give a new folder")
    if options.merge:
        _merge(runfile.load(folder.config), versions[-1], options.out)
    else:
        shutil.copytree(versions[-1], options.out)
    print(f"{versions[-1].name} of {folder.name} written to {options.out}")
    return 0


def _merge(config: runconfig.RunConfig, adapter: Path, out: Path) -> None:
    from peft import PeftModel
    from transformers import AutoTokenizer

    from cepo.model.forward import load_causal_lm
    from cepo.prompts.pixels import image_processor

    base = load_causal_lm(config.model.path, config.model.dtype, "cpu")
    merged: Any = PeftModel.from_pretrained(base, adapter).merge_and_unload()
    merged.save_pretrained(out)
    AutoTokenizer.from_pretrained(config.model.path).save_pretrained(out)
    if hasattr(merged.config, "vision_config"):
        image_processor(config.model.path).save_pretrained(out)
