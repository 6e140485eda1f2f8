"""Every name that the code imports from vLLM exists in the allowed releases, on the CPU and in the CUDA wheel."""

from __future__ import annotations

import subprocess
import sys
import tomllib
import zipfile
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import pytest

from cepo.errors import UserError
from services.rollout.vllm_patches import VERSION, vllm_names
from tests.helpers.vllm_names import ROOT, imported_names, lacking

PACKAGE = Path(next(iter(find_spec("vllm").submodule_search_locations)))
INSTALLED = PACKAGE.parent


def installed(file: str) -> str | None:
    path = INSTALLED / file
    return path.read_text() if path.is_file() else None


def test_every_name_exists_in_the_installed_vllm() -> None:
    names = imported_names()
    assert ("vllm.lora.request", "LoRARequest") in names
    assert len(names) > 20
    assert lacking(installed, names) == []


def test_a_moved_module_and_a_renamed_class_are_lacking() -> None:
    names = {("vllm", "SamplingParams"), ("vllm", "Nothing"), ("vllm.moved", "Any"), ("vllm.lora", "request")}
    assert lacking(installed, names) == ["vllm.Nothing", "vllm.moved.Any"]


@pytest.mark.nightly
def test_every_name_exists_in_the_newest_allowed_cuda_wheel(tmp_path: Path) -> None:
    """Downloads about 330 MB."""
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    (bound,) = (line for line in extras["rollout"] if line.startswith("vllm"))
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary", ":all:"]
    platform = ["--platform", "manylinux_2_28_x86_64", "--python-version", "3.11"]
    subprocess.run([*command, *platform, "--dest", str(tmp_path), bound], check=True, timeout=280)
    (wheel,) = tmp_path.glob("vllm-*.whl")
    with zipfile.ZipFile(wheel) as files:
        members = set(files.namelist())
        assert "vllm/__init__.py" in members
        names = imported_names()
        assert lacking(lambda file: files.read(file).decode() if file in members else None, names) == []


def test_an_import_that_this_vllm_lacks_is_one_line_with_the_known_release() -> None:
    line = rf"^vLLM {VERSION}\S* lacks vllm\.moved: the service was written against vLLM {VERSION}; install vllm=="
    with pytest.raises(UserError, match=line), vllm_names():
        import_module("vllm.moved")
    with pytest.raises(ModuleNotFoundError), vllm_names():
        import_module("no_such_package")
