"""The size and naming rules of CONTRIBUTING.md, over the hand-written Python files."""

from __future__ import annotations

import ast
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).parents[2]
FILES = [
    path
    for room in ("cepo", "services", "benchmarks", "tests")
    for path in (ROOT / room).rglob("*.py")
    if "pb" not in path.relative_to(ROOT).parts
]
TREES = {path.relative_to(ROOT): ast.parse(path.read_text()) for path in FILES}
CODE = {path: tree for path, tree in TREES.items() if path.parts[0] in ("cepo", "services")}


def test_no_class_name_is_defined_twice() -> None:
    places = defaultdict(list)
    for path, tree in CODE.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.ClassDef):
                places[node.name].append(str(path))
    assert len(places) > 200
    assert not {name: files for name, files in places.items() if len(files) > 1}


def test_every_room_says_what_it_is_for() -> None:
    packages = [path for path in CODE if path.name == "__init__.py"]
    assert len(packages) > 15
    assert not [str(path) for path in packages if not ast.get_docstring(CODE[path])]


def test_files_and_functions_are_short() -> None:
    lines = {path: (ROOT / path).read_text().count("\n") for path in TREES}
    assert not [f"{path}: {n}" for path, n in lines.items() if n > (400 if path.parts[0] == "tests" else 300)]
    assert not [
        f"{path}:{node.lineno} {node.name}"
        for path, tree in CODE.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and (node.end_lineno or 0) - node.lineno >= 60
    ]
