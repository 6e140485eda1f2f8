"""Runs inside a child process: a user's environment class, which may loop, exhaust memory or crash.

The parent sends JSON, `{"environment", "row", "seed"}` for a new trajectory and `{"message"}` for a turn of it. The
child answers with a line of JSON: an `EnvironmentStep`, or `{"failed": reason}`.
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import json
import math
import os
import random
import signal
import socket
import sys
from collections.abc import Callable, Iterable
from multiprocessing.connection import Connection
from typing import Any, cast

from cepo.errors import UserError
from cepo.service.hooks import imported, one_line
from cepo.service.killable import confine
from services.rollout.environments.adapted import PREFIX, adapted
from services.rollout.environments.protocol import MAX_REPLY_BYTES

MEMORY_BYTES = 4 * 2**30
"""Address space of one environment."""
ORPHAN_SECONDS = 5
"""How long after the deadline a child ends itself if its parent died and cannot kill it."""


def load(names: Iterable[str]) -> dict[str, Callable[[], Any]]:
    """Imports environment classes, `module:Class`; returns them by name.

    Raises:
        UserError: a class cannot be imported or has no `step`; names it, with the error.
    """
    return {name: _loaded(name) for name in names}


def _loaded(name: str) -> Callable[[], Any]:
    load = (lambda name: adapted(name.removeprefix(PREFIX))) if name.startswith(PREFIX) else None
    made = imported(name, f"environment {name}", load)
    if load:
        return cast(Callable[[], Any], made)
    if not callable(made) or not callable(getattr(made, "step", None)):
        raise UserError(f"environment {name} is not a class with a method step(message)")
    return made


def serve(connection: Connection, deadline_seconds: float, names: tuple[str, ...]) -> None:
    """The main loop of a child: answers until the parent closes the connection.

    The first answer says that the child is ready, or why it is not.
    """
    confine(MEMORY_BYTES)
    with contextlib.suppress(EOFError, ConnectionError):  # the parent is gone
        _serve(connection, deadline_seconds, names)


def _serve(connection: Connection, deadline_seconds: float, names: tuple[str, ...]) -> None:
    try:
        classes = load(names)
    except UserError as error:
        _send(connection, _json({"failed": str(error)}))
        return
    _send(connection, _json({}))
    environment: Any = None
    with asyncio.Runner() as runner:
        while True:
            asked = json.loads(connection.recv_bytes())
            signal.alarm(math.ceil(deadline_seconds) + ORPHAN_SECONDS)
            try:
                if "row" in asked:
                    environment, reply = _begun(classes[asked["environment"]], asked, runner), b"{}"
                else:
                    reply = _json(_stepped(_called(runner, environment.step, asked["message"])))
                if len(reply) > MAX_REPLY_BYTES:
                    raise ValueError(f"its answer has {len(reply)} bytes, above {MAX_REPLY_BYTES}")
            except Exception as error:  # noqa: BLE001 any error is the outcome of this trajectory
                reply = _json({"failed": one_line(error)})
            signal.alarm(0)
            _send(connection, reply)


def _begun(made: Callable[[], Any], asked: dict[str, Any], runner: asyncio.Runner) -> Any:
    """A new environment, reset to a row. Python's and NumPy's random numbers start with the trajectory's seed."""
    random.seed(asked["seed"])
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed(asked["seed"] % 2**32)
    environment = made()
    if callable(getattr(environment, "reset", None)):
        answer = _called(runner, environment.reset, asked["row"])
        if answer is not None:
            raise ValueError(f"reset returned {type(answer).__name__}; the row's question begins the conversation")
    return environment


def _called(runner: asyncio.Runner, function: Callable[[Any], Any], argument: Any) -> Any:
    """The value of a function or of a coroutine function."""
    value = function(argument)
    if inspect.iscoroutine(value):
        return runner.run(value)
    return value


def _stepped(answer: Any) -> dict[str, Any]:
    """The JSON of what `step` returned: `(messages, reward)`, or `(True, reward)` at the end.

    Examples: `("5", 0.0)` is one message of the role `tool`; `([{"role": "user", "content": "Go on."}], 0.5)`.
    """
    if not isinstance(answer, tuple) or len(answer) != 2:
        raise TypeError("step must return (messages, reward), or (True, reward) at the end of the trajectory")
    told, reward = answer
    if isinstance(told, bool):
        return {"done": told, "reward": float(reward)}
    messages = [told] if isinstance(told, str | dict) else list(told)
    return {
        "messages": [{"content": each} if isinstance(each, str) else each for each in messages],
        "reward": float(reward),
    }


def _send(connection: Connection, line: bytes) -> None:
    """Writes a line of JSON. The parent reads lines, so that it need not trust a length that this process writes."""
    with socket.socket(fileno=os.dup(connection.fileno())) as end:
        end.sendall(line + b"\n")


def _json(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
