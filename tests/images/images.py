"""Builds the virtual environments of the images by the commands of their Dockerfiles, and runs services in them."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil

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
        for part in ("cepo", "bin", "context", "scratch"):
            (folder / part).mkdir(parents=True)
        tracked = subprocess.run(["git", "archive", "HEAD"], cwd=ROOT, stdout=subprocess.PIPE, check=True).stdout
        subprocess.run(["tar", "-x", "-C", folder / "context"], input=tracked, check=True)
        if name == "rollout":  # its base is vLLM's image; the environment of `cpu` stands in for it
            shutil.copytree(
                self.environment("cpu"), folder / "cepo", dirs_exist_ok=True, symlinks=True, copy_function=os.link
            )
        commands = [command for command in stages(name)[0].runs if not command.startswith("useradd")]
        places = [at for at, command in enumerate(commands) if "triton.backends" in command]
        for at in places:
            commands.insert(at, triton())
        packages = {f"/opt/{path.name}": path for path in Path("/opt").iterdir() if path.name != "cepo"}
        folders = {"/opt/cepo": folder / "cepo", "/context": folder / "context", "/usr/local/bin": folder / "bin"}
        box = Box(folders | packages, set(packages), writable_root=True)
        machine = {key: value for key, value in child_environment({}).items() if MACHINE.match(key)}
        variables = {"PATH": f"/opt/cepo/bin:{PATH}", "HOME": "/tmp", **machine}
        ended = box.run(["bash", "-exc", "\n".join(commands)], folder / "scratch", variables)
        assert ended.returncode == 0, ended.stdout[-3000:]
        return folder / "cepo"


def triton() -> str:
    """A command that installs the Triton that PyTorch's CUDA build brings, where PyTorch has no CUDA."""
    pins = (ROOT / "deploy" / "requirements" / "gpu.txt").read_text()
    (pin,) = re.findall(r"^triton==\S+", pins, re.MULTILINE)
    return f"python -c 'import triton' || pip install --no-cache-dir --no-deps {pin}"


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

    @staticmethod
    def end(process: subprocess.Popen[bytes]) -> None:
        """Kills a started service; with the first process of its namespace, all of them end."""
        for child in psutil.Process(process.pid).children() if process.poll() is None else ():
            child.kill()
        process.wait()

    def run(self, words: Sequence[str], folder: Path) -> subprocess.CompletedProcess[str]:
        """Runs another command in such a container."""
        return self._box.run(words, self._scratch(folder), self.variables)

    def _scratch(self, folder: Path) -> Path:
        scratch = folder / f"{self.name}-root"
        scratch.mkdir(exist_ok=True)
        return scratch


def is_read_only(volume: Any, path: str) -> bool:
    return str(volume).endswith(f":{path}:ro")
