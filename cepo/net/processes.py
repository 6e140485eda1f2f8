"""Processes that end with the one that made them, however it ends."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal


def die_with_parent() -> None:
    """In a child before it begins: it is killed once the thread that made it ends."""
    pr_set_pdeathsig = 1
    ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)
    parent = multiprocessing.parent_process()
    if parent is not None and not parent.is_alive():  # while this one was being started
        os._exit(1)
