"""Builds the virtual environments of the images by the commands of their Dockerfiles, and runs services in them."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cepo.net.environment import child_environment
from tests.images.box import Box
from tests.images.dockerfile import ROOT, stages
from tests.unit.deploy.compose import CLEAR, mounts, read, started

PATH = "/image/bin:/usr/local/bin:/usr/bin:/bin:/usr/sbin:/sbin"
MACHINE = re.compile(r"PIP_|(HTTPS?|ALL|NO)_PROXY$|SSL_|REQUESTS_CA", re.IGNORECASE)
"""Variables by which this machine reaches its package index."""


class Images:
    """The virtual environments of the images; each is built when it is first asked for."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._built: dict[str, Path] = {}

    def environment(self, name: str) -> Path:
        """The folder that the image has at /opt/cepo.

        Raises:
            AssertionError: a command of the Dockerfile fails; the message is its output.
        """
        if name not in self._built:
            self._built[name] = self._build(name)
        return self._built[name]

    def _build(self, name: str) -> Path:
        folder = self._folder / name
        for part in ("cepo", "build", "bin", "context"):
            (folder / part).mkdir(parents=True)
        tracked = subprocess.run(["git", "archive", "HEAD"], cwd=ROOT, stdout=subprocess.PIPE, check=True).stdout
        subprocess.run(["tar", "-x", "-C", folder / "context"], input=tracked, check=True)
        if name == "rollout":  # its base is vLLM's image; the environment of `cpu` stands in for it
            shutil.copytree(
                self.environment("cpu"), folder / "cepo", dirs_exist_ok=True, symlinks=True, copy_function=os.link
            )
        *_, build = stages(name)[:2] if name == "rollout" else stages(name)[:1]
        for command in build.runs:
            if "triton.backends" in command:
                self._triton(folder)
            if not command.startswith("useradd"):
                self._run(folder, command)
        return folder / "cepo"

    def _triton(self, folder: Path) -> None:
        """Installs the Triton that PyTorch's CUDA build brings, where PyTorch has no CUDA."""
        pins = (ROOT / "deploy" / "requirements" / "gpu.txt").read_text()
        (pin,) = re.findall(r"^triton==\S+", pins, re.MULTILINE)
        self._run(folder, f"python -c 'import triton' || pip install --no-cache-dir --no-deps {pin}")

    def _run(self, folder: Path, command: str) -> None:
        packages = {f"/opt/{path.name}": path for path in Path("/opt").iterdir() if path.name != "cepo"}
        folders = {"/opt/cepo": folder / "cepo", "/build": folder / "build", "/context": folder / "context"}
        box = Box(folders | packages | {"/usr/local/bin": folder / "bin"}, frozenset(packages), writable_root=True)
        machine = {key: value for key, value in child_environment({}).items() if MACHINE.match(key)}
        variables = {"PATH": f"/opt/cepo/bin:{PATH}", "HOME": "/tmp", **machine}
        scratch = folder / "scratch"
        scratch.mkdir(exist_ok=True)
        ended = box.run(["bash", "-ec", command], scratch, variables)
        assert ended.returncode == 0, f"{command}\n{ended.stdout[-3000:]}"


class Container:
    """A service of docker-compose.yml, profile `cpu`, on the environment of an image."""

    def __init__(self, name: str, image: str, environment: Path, folders: dict[str, Path], **variables: str) -> None:
        """`folders` has the place of each volume of the service by its path in the container."""
        service = started(read(CLEAR), name, "cpu")
        assert (service["read_only"], service["cap_drop"]) == (True, ["ALL"])
        assert service["security_opt"] == ["no-new-privileges:true"]
        final = stages(image)[-1]
        self.name = name
        self.command: list[str] = service["command"]
        self.variables = final.variables | service["environment"] | variables | {"PATH": f"/opt/cepo/bin:{PATH}"}
        places = {path: folders[path] for path in mounts(service)} | {"/opt/cepo": environment}
        self._box = Box(
            places,
            {"/opt/cepo"} | {path for path in places if any(is_read_only(v, path) for v in service["volumes"])},
            user=int(final.user),
            shm_bytes=int(service["shm_size"].removesuffix("gb")) * 10**9,
            working_dir=service["working_dir"],
        )

    def start(self, folder: Path) -> subprocess.Popen[bytes]:
        """Starts the service; its output is in NAME.log of the folder."""
        with (folder / f"{self.name}.log").open("wb") as log:
            command = self._box.command(self.command, self._scratch(folder))
            return subprocess.Popen(command, env=self.variables, stdout=log, stderr=subprocess.STDOUT)

    def run(self, words: Sequence[str], folder: Path) -> subprocess.CompletedProcess[str]:
        """Runs another command in such a container."""
        return self._box.run(words, self._scratch(folder), self.variables)

    def _scratch(self, folder: Path) -> Path:
        scratch = folder / f"{self.name}-root"
        scratch.mkdir(exist_ok=True)
        return scratch


def is_read_only(volume: Any, path: str) -> bool:
    return str(volume).endswith(f":{path}:ro")
