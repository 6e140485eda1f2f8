"""Reads the Dockerfiles of deploy/docker: which commands build the virtual environment, and how its container runs."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass, field
from pathlib import Path

from tests.unit.deploy.kustomize import K8S

ROOT = K8S.parents[1]
DOCKER = ROOT / "deploy" / "docker"


@dataclass
class Stage:
    """The instructions of one FROM."""

    base: str
    runs: list[str] = field(default_factory=list)
    """Shell commands, in order, with copies as `cp` commands."""
    variables: dict[str, str] = field(default_factory=dict)
    user: str = "root"


def stages(name: str) -> list[Stage]:
    """The stages of a Dockerfile.

    Raises:
        AssertionError: an instruction is not supported.
    """
    text = re.sub(r"^#.*\n", "", (DOCKER / f"{name}.Dockerfile").read_text(), flags=re.MULTILINE)
    read: list[Stage] = []
    for line in text.replace("\\\n", " ").splitlines():
        instruction, _, rest = line.strip().partition(" ")
        match instruction:
            case "FROM":
                read.append(Stage(rest.partition(" AS ")[0]))
            case "RUN":
                read[-1].runs.append(rest)
            case "COPY" if not rest.startswith("--from"):
                read[-1].runs.append(copied(rest))
            case "ENV":
                read[-1].variables |= dict(word.split("=", 1) for word in shlex.split(rest))
            case "USER":
                read[-1].user = rest
            case _:
                assert instruction in ("", "ARG", "COPY", "CMD", "ENTRYPOINT", "HEALTHCHECK"), line
    return read


def copied(sources_and_target: str) -> str:
    """A shell command that copies out of the folder /context as COPY does: the contents of a folder, not the folder."""
    *sources, target = sources_and_target.split()
    commands = [f"mkdir -p {target if target.endswith('/') else Path(target).parent}"]
    for source in sources:
        contents = "/." if (ROOT / source).is_dir() else ""
        commands.append(f"mkdir -p {target}" if contents else "true")
        commands.append(f"cp -r /context/{source}{contents} {target}")
    return " && ".join(commands)
