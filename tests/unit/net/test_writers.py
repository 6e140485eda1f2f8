"""Every file of the product is written through `cepo.net.files`."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
HELPER = ROOT / "cepo" / "net" / "files.py"
METHODS = {"write_text", "write_bytes", "touch", "mkdir", "save_pretrained", "savefig", "save_file", "to_parquet"}
"""Methods that write a file or make a folder, of paths, models, figures and tables."""
FUNCTIONS = {
    *(f"shutil.{name}" for name in ("copy", "copy2", "copyfile", "copytree", "move")),
    *(f"os.{name}" for name in ("makedirs", "mkdir", "rename", "replace", "truncate", "write")),
    *("json.dump", "pickle.dump", "torch.save"),
}
CHECKPOINT = ("services/trainer/checkpoint.py", "torch.save(state, file)")
"""The file was opened in a scratch folder on the line before."""


def _writes(source: str) -> Iterator[tuple[int, str]]:
    """Line and text of the calls that write a file outside a folder of `replace_folder`, which is named `scratch`."""
    for call in ast.walk(ast.parse(source)):
        if not isinstance(call, ast.Call) or "scratch" in _names(call):
            continue
        name = ast.unparse(call.func)
        method = name.rpartition(".")[2]
        opens = method == "open" and any(set("wax+") & set(mode) for mode in _modes(call))
        if opens or method in METHODS or name in FUNCTIONS:
            yield call.lineno, ast.unparse(call)


def _names(call: ast.Call) -> set[str]:
    return {node.id for node in ast.walk(call) if isinstance(node, ast.Name)}


def _modes(call: ast.Call) -> list[str]:
    """The constant texts among the arguments that can be the mode of `open`."""
    arguments = [*call.args, *(keyword.value for keyword in call.keywords if keyword.arg == "mode")]
    texts = [each.value for each in arguments if isinstance(each, ast.Constant) and isinstance(each.value, str)]
    return [text for text in texts if set(text) <= set("rwaxbt+")]


def test_no_module_writes_a_file_of_its_own() -> None:
    modules = [path for room in ("cepo", "services") for path in (ROOT / room).rglob("*.py") if path != HELPER]
    assert len(modules) > 100
    writes = [(str(path.relative_to(ROOT)), *write) for path in modules for write in _writes(path.read_text("utf-8"))]
    inside = [(file, call) for file, _, call in writes if (file, call) == CHECKPOINT]
    assert inside == [CHECKPOINT]
    assert len(writes) == 1, writes


@pytest.mark.parametrize(
    ("line", "writes"),
    [
        ('path.open("w")', True),
        ('open(path, mode="ab")', True),
        ('path.write_text("")', True),
        ("torch.save(state, path)", True),
        ("save_file(tensors, path)", True),
        ("model.save_pretrained(out)", True),
        ("shutil.copytree(here, there)", True),
        ("folder.mkdir()", True),
        ("json.dump(row, file)", True),
        ('path.open("rb")', False),
        ("path.open()", False),
        ('scratch.write_text("")', False),
        ('Image.open(file, formats=("PNG",))', False),
    ],
)
def test_the_check_knows_what_writes(line: str, writes: bool) -> None:
    assert len(list(_writes(line))) == writes
