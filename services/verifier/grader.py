"""The algebra, as it runs inside a worker process: it may loop, eat memory or crash, and only that process suffers.

Nothing else imports math-verify. Its own alarms are switched off, because the pool's deadline kills the whole process.
"""

from __future__ import annotations

import logging
import math
import resource
import signal
from multiprocessing.connection import Connection

from math_verify import parse, verify

logging.getLogger("math_verify").setLevel(logging.ERROR)  # it warns that its timeouts are off
ORPHAN_SECONDS = 5
"""How long past the deadline a worker survives a parent that died before it could end it."""


def equivalent(answer: str, reference: str) -> bool:
    """Whether two answers are mathematically the same; not symmetric, the reference decides the form.

    Raises:
        Exception: whatever the algebra raises.
    """
    wanted, found = (
        parse(f"\\boxed{{{text}}}", parsing_timeout=0, raise_on_error=True) for text in (reference, answer)
    )
    return bool(verify(wanted, found, timeout_seconds=0, raise_on_error=True))


def serve(connection: Connection, deadline_seconds: float, memory_bytes: int) -> None:
    """Answers (answer, reference) with (whether equivalent, error) until the parent hangs up."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which drains
    resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    equivalent("0.5", "1/2")  # builds the parser's tables before the first deadline runs
    connection.send(None)
    while True:
        try:
            answer, reference = connection.recv()
        except EOFError:
            return
        signal.alarm(math.ceil(deadline_seconds) + ORPHAN_SECONDS)
        try:
            reply = (equivalent(answer, reference), "")
        except Exception as error:  # noqa: BLE001 the outcome of this item, and the worker's work is to report it
            reply = (False, type(error).__name__)
        signal.alarm(0)
        connection.send(reply)
