"""Environments as users write them, good and bad."""

from __future__ import annotations

import os
import random
import sys
import time
from collections.abc import Callable
from typing import Any

NOTHING = 3


class Echo:
    """Repeats what it is told, with what it knows."""

    def reset(self, row: dict[str, Any]) -> None:
        self.row = row
        self.turns = 0

    def step(self, message: dict[str, Any]) -> tuple[Any, float]:
        self.turns += 1
        if message["content"] == "stop":
            return True, 1.0
        if message["content"] == "process":
            return str(os.getpid()), 0.0
        if message["content"] == "random":
            return str(random.random()), 0.0
        if message["content"] == "two":
            return [{"role": "tool", "content": "a", "name": "t"}, {"role": "user", "content": "b"}], 0.25
        return f"{self.row['answer']} {self.turns} {message['content']}", 0.5


class Waiting:
    async def reset(self, row: dict[str, Any]) -> None:
        self.answer = row["answer"]

    async def step(self, message: dict[str, Any]) -> tuple[str, float]:
        return self.answer, 0.0


class Plain:
    """It has no `reset`."""

    def step(self, message: dict[str, Any]) -> tuple[str, float]:
        return "plain", 0.0


def loop() -> None:
    while True:
        pass


def fail() -> None:
    raise KeyError("no such\nthing")


DEEDS: dict[str, Callable[[], Any]] = {
    "hang": lambda: time.sleep(1000),
    "loop": loop,
    "crash": lambda: os._exit(1),
    "exit": lambda: sys.exit(1),
    "raise": fail,
    "eat": lambda: (str(len(bytearray(2**33))), 0.0),
    "flood": lambda: ("x" * 100_000_000, 0.0),
    "bytes": lambda: (b"\xff\xfe", 0.0),
    "surrogate": lambda: ("\ud800", 0.0),
    "nan": lambda: ("x", float("nan")),
    "object": object,
    "no reward": lambda: "x",
    "nothing": lambda: ([], 0.0),
    "not done": lambda: (False, 0.0),
    "role": lambda: ([{"role": "assistant", "content": "I am right"}], 0.0),
    "field": lambda: ([{"role": "tool", "content": "x", "evil": 1}], 0.0),
    "number": lambda: ([{"role": "tool", "content": 3}], 0.0),
    "hello": lambda: ("fine", 0.0),
}


class Hostile:
    """Does what the turn says."""

    def step(self, message: dict[str, Any]) -> Any:
        return DEEDS[message["content"]]()


class Partial:
    """Begins an answer on the connection itself, and never ends it."""

    def step(self, message: dict[str, Any]) -> Any:
        import gc
        from multiprocessing.connection import Connection

        (connection,) = (each for each in gc.get_objects() if isinstance(each, Connection) and not each.closed)
        raw = {"partial": b'{"half', "garbage": b"\xff\xfe\n", "huge": b"x" * 2**22}
        os.write(connection.fileno(), raw[message["content"]])
        time.sleep(1000)


class BadReset:
    def reset(self, row: dict[str, Any]) -> Any:
        match row["answer"]:
            case "messages":
                return ["Hello"]
            case "crash":
                os._exit(1)
        raise ValueError(row["answer"])

    def step(self, message: dict[str, Any]) -> Any:
        return True, 0.0
