"""Names that the code imports from vLLM, looked up in the Python files of a vLLM package without importing it."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]
ReadFile = Callable[[str], str | None]
"""Returns the text of a file such as "vllm/inputs.py", or None if the package has no such file."""


def imported_names() -> set[tuple[str, str]]:
    """Module and name of every import from vLLM in the package. Example: ("vllm.inputs", "tokens_input")."""
    names: set[tuple[str, str]] = set()
    for path in (path for room in ("cepo", "services", "benchmarks") for path in (ROOT / room).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] == "vllm":
                names |= {(str(node.module), alias.name) for alias in node.names}
            if isinstance(node, ast.Import):
                names |= {(alias.name, "") for alias in node.names if alias.name.partition(".")[0] == "vllm"}
    return names


def lacking(read: ReadFile, names: set[tuple[str, str]]) -> list[str]:
    """The names that a package does not have, as "module.name", sorted."""

    @cache
    def module(dotted: str) -> frozenset[str] | None:
        path = dotted.replace(".", "/")
        text = next((text for file in (f"{path}/__init__.py", f"{path}.py") if (text := read(file)) is not None), None)
        return None if text is None else frozenset(_defined(ast.parse(text).body))

    def has(dotted: str, name: str) -> bool:
        defined = module(dotted)
        return defined is not None and (not name or name in defined or module(f"{dotted}.{name}") is not None)

    return sorted(f"{dotted}.{name}".rstrip(".") for dotted, name in names if not has(dotted, name))


def _defined(body: list[ast.stmt]) -> Iterator[str]:
    """Names that statements bind at the top of a module, also within `if` and `try`; keys of lazily loaded names."""
    for node in body:
        match node:
            case ast.ClassDef(name=name) | ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name):
                yield name
            case ast.Import(names=names) | ast.ImportFrom(names=names):
                yield from (alias.asname or alias.name for alias in names)
            case ast.Assign(targets=targets, value=value):
                yield from (each.id for target in targets for each in ast.walk(target) if isinstance(each, ast.Name))
                if isinstance(value, ast.Dict):  # `MODULE_ATTRS` of vllm/__init__.py
                    yield from (str(key.value) for key in value.keys if isinstance(key, ast.Constant))
            case ast.AnnAssign(target=ast.Name(id=name)):
                yield name
            case ast.If() | ast.Try() | ast.With():
                parts = [node.body, *(getattr(node, part, []) for part in ("orelse", "finalbody"))]
                parts += [handler.body for handler in getattr(node, "handlers", [])]
                for part in parts:
                    yield from _defined(part)
