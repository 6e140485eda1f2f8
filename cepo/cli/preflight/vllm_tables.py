"""What vLLM's own tables say of a model's architecture, read from the installed vLLM without importing it.

vLLM takes five seconds and more to import, and each of its model classes as long again. Its registry is a file of
dictionaries, and a class that takes LoRA adapters inherits `SupportsLoRA`, so both are read from the source.
"""

from __future__ import annotations

import ast
from functools import cache
from importlib.util import find_spec
from pathlib import Path

MODELS = "model_executor/models"
LORA = "SupportsLoRA"


def takes_lora(architecture: str) -> bool | None:
    """Whether vLLM serves an architecture with LoRA adapters; None if it has no such architecture, or is not installed.

    Args:
        architecture: the name in the model's config.json, such as "LlamaForCausalLM".
    """
    spec = find_spec("vllm")
    if spec is None or not spec.submodule_search_locations:
        return None
    folder = Path(spec.submodule_search_locations[0]) / MODELS
    place = _registered(folder).get(architecture)
    return None if place is None else _inherits(folder, *place, frozenset())


@cache
def _registered(folder: Path) -> dict[str, tuple[str, str]]:
    """The module and class of each architecture. Example: {"LlamaForCausalLM": ("llama", "LlamaForCausalLM")}."""
    places: dict[str, tuple[str, str]] = {}
    for node in ast.walk(ast.parse((folder / "registry.py").read_text(encoding="utf-8"))):
        if isinstance(node, ast.Dict):
            for key, value in zip(node.keys, node.values, strict=True):
                match key, value:
                    case ast.Constant(str(name)), ast.Tuple([ast.Constant(str(module)), ast.Constant(str(kind))]):
                        places.setdefault(name, (module, kind))
    return places


def _inherits(folder: Path, module: str, kind: str, met: frozenset[tuple[str, str]]) -> bool:
    """Whether a class, or one that it inherits from, is a `SupportsLoRA`."""
    if kind == LORA:
        return True
    bases, imported = _classes(folder, module).get(kind), _imports(folder, module)
    if (module, kind) in met:
        return False
    met |= {(module, kind)}
    if bases is None:
        return kind in imported and _inherits(folder, *imported[kind], met)
    return any(base == LORA or _inherits(folder, module, base, met) for base in bases)


@cache
def _tree(folder: Path, module: str) -> ast.Module:
    path = folder.joinpath(*module.split("."))
    files = [path.with_suffix(".py"), path / "__init__.py"]
    text = next((file.read_text(encoding="utf-8") for file in files if file.is_file()), "")
    return ast.parse(text)


@cache
def _classes(folder: Path, module: str) -> dict[str, list[str]]:
    """The names of the bases of each class of a module."""
    return {
        node.name: [base.id for base in node.bases if isinstance(base, ast.Name)]
        for node in ast.walk(_tree(folder, module))
        if isinstance(node, ast.ClassDef)
    }


@cache
def _imports(folder: Path, module: str) -> dict[str, tuple[str, str]]:
    """The module and name of what a module imports from its neighbours."""
    is_package = folder.joinpath(*module.split("."), "__init__.py").is_file()
    parts = module.split(".") if is_package else module.split(".")[:-1]
    names: dict[str, tuple[str, str]] = {}
    for node in ast.walk(_tree(folder, module)):
        if isinstance(node, ast.ImportFrom) and node.module and node.level == 1:
            source = ".".join([*parts, node.module])
            names |= {each.asname or each.name: (source, each.name) for each in node.names}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("vllm.model_executor.models."):
            source = (node.module or "").removeprefix("vllm.model_executor.models.")
            names |= {each.asname or each.name: (source, each.name) for each in node.names}
    return names
