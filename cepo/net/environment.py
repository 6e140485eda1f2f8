"""The environment variables of this process. No other module reads or sets them."""

from __future__ import annotations

import os


def variable(name: str) -> str | None:
    """The value of a variable; None if it is not set."""
    return os.environ.get(name)


def stay_on_loopback() -> None:
    """Makes torch.distributed use only loopback, in this process and its children."""
    os.environ.update({"GLOO_SOCKET_IFNAME": "lo", "NCCL_SOCKET_IFNAME": "lo"})


def child_environment(extra: dict[str, str]) -> dict[str, str]:
    """The environment of this process with `extra` added, for a child process."""
    return {**os.environ, **extra}
