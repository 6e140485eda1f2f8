"""Writes sbom.json, the bill of materials of the CPU set-up, from the lock.

`--check` writes nothing; it exits 1 when the bill is stale, a pin is loose, the environment is not the lock, or a
package asks for what the lock has not. It looks nothing up, so it knows no vulnerability: with a network,
`pip-audit --no-deps -r deploy/requirements/cpu.txt` does, and any scanner that reads CycloneDX.
"""

from __future__ import annotations

import json
import re
import sys
import tomllib
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
LOCK, BILL = HERE / "cpu.txt", HERE / "sbom.json"
PIN = re.compile(r"([A-Za-z0-9._-]+)==([A-Za-z0-9.!]+)")
TORCH = "torch"
"""Installed before the lock, with what it needs, by the Makefile."""
LEFT_OUT = {
    "torchaudio": "vLLM's, for speech; its CUDA build would keep transformers from importing",
    "torchcodec": "vLLM's, for video; likewise",
    "torchvision": "vLLM's, for some image models; likewise",
    "evaluate": "lm-eval's, for metrics of tasks that no test runs",
    "rouge-score": "likewise",
    "scikit-learn": "likewise",
    "sqlitedict": "lm-eval's, for its cache of requests",
    "word2number": "lm-eval's, for a task that no test runs",
    "regress": "check-jsonschema's, for its command; only its schemas are read",
    "ruamel-yaml": "likewise",
    "agent-detector": "fastapi-cloud-cli's, which nothing starts",
    "detect-installer": "likewise",
}
"""What packages of the lock ask for and the lock leaves out, and why nothing misses it."""


def pins() -> dict[str, str]:
    """Versions by normalised name; exits if a line is no exact pin."""
    found = re.search(rf"{TORCH}==(\S+)", (ROOT / "Makefile").read_text())
    assert found is not None
    versions = {TORCH: found[1]}
    for line in LOCK.read_text().splitlines():
        if line and not line.startswith("#"):
            pin = PIN.fullmatch(line)
            if pin is None:
                sys.exit(f"{LOCK.name}: {line!r} is not NAME==VERSION")
            versions[canonicalize_name(pin[1])] = pin[2]
    return versions


def bill(versions: dict[str, str]) -> str:
    """CycloneDX 1.6 (https://cyclonedx.org/docs/1.6/json/), the same bytes for the same lock."""
    components = [
        {"type": "library", "bom-ref": f"pkg:pypi/{name}@{version}", "name": name, "version": version}
        | {"purl": f"pkg:pypi/{name}@{version}"}
        for name, version in sorted(versions.items())
    ]
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    subject = {"type": "application", "name": project["name"], "version": project["version"]}
    document = {"bomFormat": "CycloneDX", "specVersion": "1.6", "version": 1, "metadata": {"component": subject}}
    return json.dumps(document | {"components": components}, indent=1) + "\n"


def conflicts(versions: dict[str, str]) -> Iterator[str]:
    """Where the environment is not the lock, and requirements that the lock does not meet."""
    for name, version in versions.items():
        try:
            installed = metadata.distribution(name)
        except metadata.PackageNotFoundError:
            yield f"{name} is in the lock and not installed"
            continue
        if installed.version.partition("+")[0] != version:
            yield f"{name} {installed.version} is installed, the lock has {version}"
        for line in (installed.requires or []) if name != TORCH else []:
            wanted = Requirement(re.sub(r"(==[\d.]+)\+\w+", r"\1", line))  # any build of a version will do
            needed = canonicalize_name(wanted.name)
            if wanted.marker is not None and not wanted.marker.evaluate({"extra": ""}):
                continue
            if needed not in versions and needed not in LEFT_OUT:
                yield f"{name} needs {wanted}, which is not in the lock"
            elif needed in versions and not wanted.specifier.contains(versions[needed], prereleases=True):
                yield f"{name} needs {wanted}, the lock has {versions[needed]}"


def main() -> None:
    versions = pins()
    if "--check" not in sys.argv:
        BILL.write_text(bill(versions))
        return
    if not BILL.is_file() or BILL.read_text() != bill(versions):
        sys.exit(f"{BILL.relative_to(ROOT)} is stale: run `make sbom`")
    found = list(conflicts(versions))
    if found:
        sys.exit("\n".join(found))
    said = f"{len(versions)} pins: the bill lists them, the environment is them, and each finds what it asks for; "
    sys.stdout.write(f"{said}vulnerabilities were not looked up\n")


if __name__ == "__main__":
    main()
