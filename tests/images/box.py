"""Processes as containers run them, without a container engine: a mount namespace with its own root.

The root file system holds the system's programs and libraries, read-only, and only the folders that are named; a
process runs as a user without capabilities and sees the processes of its own namespace.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field
from pathlib import Path

POSSIBLE = os.geteuid() == 0 and shutil.which("unshare") is not None and shutil.which("setpriv") is not None
SYSTEM = ("bin", "etc", "lib", "lib32", "lib64", "sbin", "usr")
DEVICES = ("null", "zero", "full", "random", "urandom")
PYTHON = f"{sys.base_prefix}/bin/python{sys.version_info.major}.{sys.version_info.minor}"
UNPRIVILEGED = "--clear-groups --no-new-privs --bounding-set=-all --inh-caps=-all"


@dataclass
class Box:
    """What a container's configuration says of its file system and its user."""

    folders: Mapping[str, Path] = field(default_factory=dict)
    """Folders of this machine by their path in the container; they are writable unless `read_only` names them."""
    read_only: Set[str] = frozenset()
    user: int = 0
    shm_bytes: int = 64 * 2**20
    writable_root: bool = False
    working_dir: str = "/"

    def command(self, words: Sequence[str], scratch: Path) -> list[str]:
        """The command that runs `words` in the container; `scratch` is an empty folder for the root."""
        become = f"/usr/bin/setpriv --reuid={self.user} --regid={self.user} {UNPRIVILEGED} --" if self.user else ""
        lines = [
            "set -e",
            "inside=$PATH PATH=/usr/sbin:/usr/bin:/sbin:/bin",
            f"root={shlex.quote(str(scratch))}",
            "mount -t tmpfs -o mode=755 tmpfs $root && cd $root",
            *(self._system(name) for name in SYSTEM),
            *([] if sys.base_prefix.startswith("/usr") else self._bound(Path(sys.base_prefix), sys.base_prefix, "ro")),
            "mkdir -p dev proc tmp image/bin && mount -t proc proc proc",
            "mkdir sys && mount --rbind /sys sys && mount -o remount,ro,bind sys",
            f"ln -s {shlex.quote(PYTHON)} image/bin/python",
            "mount -t tmpfs -o mode=755 tmpfs dev && mkdir dev/shm",
            *(f"touch dev/{name} && mount --bind /dev/{name} dev/{name}" for name in DEVICES),
            f"mount -t tmpfs -o mode=1777,size={self.shm_bytes} tmpfs dev/shm",
            "mount -t tmpfs -o mode=1777 tmpfs tmp",
            *(
                line
                for inside, folder in self.folders.items()
                for line in self._bound(folder, inside, "ro" if inside in self.read_only else "rw")
            ),
            "" if self.writable_root else "mount -o remount,ro,bind dev && mount -o remount,ro,bind .",
            f'exec chroot . {become} /usr/bin/env -C {self.working_dir} PATH="$inside" {shlex.join(words)}',
        ]
        namespaces = ["--mount", "--pid", "--fork", "--propagation", "private"]
        return ["unshare", *namespaces, "bash", "-c", "\n".join(lines)]

    def run(
        self, words: Sequence[str], scratch: Path, variables: Mapping[str, str]
    ) -> subprocess.CompletedProcess[str]:
        """Runs a command to its end; only the given variables are set."""
        return subprocess.run(
            self.command(words, scratch),
            env=dict(variables),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    @staticmethod
    def _system(name: str) -> str:
        """Binds a top-level folder of this machine; a symbolic link, such as /lib on newer systems, is copied."""
        path = Path("/") / name
        if path.is_symlink():
            return f"ln -s {path.readlink()} {name}"
        return (
            f"mkdir {name} && mount --rbind /{name} {name} && mount -o remount,ro,bind {name}" if path.is_dir() else ""
        )

    @staticmethod
    def _bound(folder: Path, inside: str, mode: str) -> list[str]:
        source, target = shlex.quote(str(folder)), shlex.quote(inside.lstrip("/"))
        return [f"mkdir -p {target}", f"mount --bind {source} {target}", f"mount -o remount,{mode},bind {target}"]
