"""The whole system on one machine: an embedded Redis and the four services as processes on loopback, kept alive.

A process that dies is restarted; the trainer continues from its newest checkpoint. A process that exits with 2 found
invalid user input: the last line of its log is the message, and the run ends. The run also ends if a process dies twice
with the same error before a step is done. While Redis does not answer, the launcher waits: it restarts and judges no
process. Child processes die with the launcher.
"""

from __future__ import annotations

import contextlib
import json
import secrets
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from cepo.errors import Unreachable
from cepo.net.connections import free_ports, shown
from cepo.net.files import check_writable, make_folder, replace_file
from cepo.net.settings import Settings
from cepo.run import embedded
from cepo.run.child import Child
from cepo.run.deployment import SPECS, Spec, environment, processes
from cepo.run.folder import RunDir
from cepo.run.lines import Lines
from cepo.run.redis_watch import RedisWatch

if TYPE_CHECKING:
    from cepo.run.config import RunConfig

START_SECONDS = 30.0
STOP_SECONDS = 60.0
SERVICE_STOP_SECONDS = 5.0
STEADY_SECONDS = 600.0
"""Without a trainer there are no steps: a process that has run for this long works."""


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
        home: RunDir | None = None,
        kv_cache_bytes: int = 0,
    ) -> None:
        """Plans the processes; nothing is started.

        Args:
            redis_url: the Redis to use; empty starts an embedded Redis.
            services: the services to start; the caller serves at the address of a service that is left out.
            own_ports: whether to take free ports, so that several runs fit on one machine; otherwise the ports of the
                table are used.
            home: the folder of Redis and of the logs of every process except the trainer; default: `run`.
            kv_cache_bytes: the KV cache of the rollout engine on each GPU; 0 leaves it to the user's settings.
        """
        planned = processes(config)
        specs = [spec for spec in planned if spec.name in services]
        ports = iter(free_ports(2 * len(SPECS) + 1))
        self.run = run
        self._home = home or run
        self._kv_cache_bytes = kv_cache_bytes
        self._redis_port = next(ports)
        password = secrets.token_urlsafe(32)
        self.redis_url = redis_url or f"redis://:{password}@127.0.0.1:{self._redis_port}/0"
        self.grpc = {s.name: f"127.0.0.1:{next(ports) if own_ports else s.grpc_port}" for s in planned}
        scheme = "https" if Settings.from_environment().certificates else "http"
        self.http = {s.name: f"{scheme}://127.0.0.1:{next(ports) if own_ports else s.http_port}" for s in specs}
        self.children: dict[str, Child] = {}
        self._watch = RedisWatch(self.redis_url)
        self._metrics = Lines(run.metrics)
        self._steps = 0
        self._draining = False
        if not redis_url:
            self.children["redis"] = self._redis(password)
        for spec in specs:
            self.children[spec.name] = self._child(spec, config)

    def serves(self, config: RunConfig) -> bool:
        """Whether the services of this stack, other than the trainer, are those of another run too."""
        planned = {spec.name: spec for spec in processes(config)}
        if planned.keys() != self.grpc.keys():
            return False
        return all(
            self._child(spec, config).environment == self.children[name].environment
            for name, spec in planned.items()
            if name != "trainer"
        )

    def follow(self, config: RunConfig, run: RunDir) -> None:
        """Plans the trainer of another run, which `start` starts; the last run has ended, and `serves` holds."""
        self.run = run
        self._metrics = Lines(run.metrics)
        self._steps = 0
        self._draining = False
        trainer = next(spec for spec in processes(config) if spec.name == "trainer")
        self.children["trainer"] = self._child(trainer, config)

    def start(self) -> None:
        """Starts Redis, waits for it, then starts the services; processes that were started before are left alone.

        Raises:
            Unreachable: the embedded Redis does not start.
        """
        if "redis" in self.children and not self.children["redis"].started:
            self.children["redis"].start()
            self._await_redis()
        for name in self.http:
            if not self.children[name].started:
                self.children[name].start()
        addresses = {"redis": shown(self.redis_url), "grpc": self.grpc, "http": self.http}
        replace_file(self.run.path / "services.json", json.dumps(addresses, indent=2) + "\n")

    def check(self) -> bool:
        """Restarts processes that died; returns True once the trainer has ended its run.

        Raises:
            UserError: a process exited with 2: invalid user input.
            ServiceDown: a process keeps dying.
            Unreachable: Redis has not answered for minutes.
            StorageError: Redis refuses writes, and the run folder, which holds its files, cannot be written.
        """
        trainer = self.children.get("trainer")
        if trainer is not None and trainer.exited and (self._draining or trainer.code == 0):
            return True  # a trainer that is drained may have stopped before it could save anything
        if "redis" in self.children:
            self.children["redis"].check()
        if not self._watch.answers():
            return False
        if "redis" in self.children and self._watch.refuses:
            check_writable(self.run.path)
        if self._watch.was_silent:
            self._restart_after_silence()
        self._forgive()
        for child in self.children.values():
            child.check(last_step=self._draining)
        return False

    def _restart_after_silence(self) -> None:
        """Restarts the processes that ended while Redis did not answer, or since; this does not count against them."""
        for child in self.children.values():
            if child.exited and child.code != 0:
                child.restart()

    def _forgive(self) -> None:
        """Forgets the deaths before a new step, or without a trainer those of a process that has run for long since."""
        steps, now = len(self._metrics.refresh()), time.monotonic()
        for name, child in self.children.items():
            steady = "trainer" not in self.children and child.started and now - child.started[-1] > STEADY_SECONDS
            if name != "redis" and (steps > self._steps or steady):
                child.causes.clear()
        self._steps = max(steps, self._steps)

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
        shutil.rmtree(self._home.path / "redis", ignore_errors=True)

    def _child(self, spec: Spec, config: RunConfig) -> Child:
        is_trainer = spec.name == "trainer"
        command = [sys.executable, *spec.command(*[str(self.run.path)] * is_trainer)]
        variables = environment(spec.settings(config, self._settings(spec.name, config)), spec.name)
        logs = self.run.logs if is_trainer else self._home.logs
        return Child(spec.name, command, variables, logs / f"{spec.name}.log")

    def _settings(self, name: str, config: RunConfig) -> Settings:
        """The user's settings (tokens, certificates, host) with the addresses of this stack."""
        ours = {
            "redis_url": self.redis_url,
            "grpc_port": int(self.grpc[name].rpartition(":")[2]),
            "http_port": int(self.http[name].rpartition(":")[2]),
            "trainer_address": self.grpc["trainer"],
            "verifier_address": self.grpc["verifier"],
            "step_scorers": ",".join(config.step_scorers) if name == "verifier" else "",
            "reward_functions": ",".join(config.reward_functions) if name == "verifier" else "",
        }
        settings = Settings.from_environment(name).model_copy(update=ours)
        planned = settings.kv_cache_memory_bytes or self._kv_cache_bytes
        return settings.model_copy(update={"kv_cache_memory_bytes": planned})

    def _redis(self, password: str) -> Child:
        command = embedded.command(self._home.path / "redis", self._redis_port, password)
        return Child("redis", command, {}, self._home.logs / "redis.log")

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
    """Starts a stack and always stops it; after an interrupt or an error, the trainer does not finish its step."""
    grace = STOP_SECONDS
    try:
        stack.start()
        yield stack
    except BaseException:
        grace = 0.0
        raise
    finally:
        stack.stop(grace)


class KeptServices:
    """The services of several runs, one after another: only the trainer is started anew for each run.

    A run whose services need other settings gets a new stack, and the old one is stopped first.
    """

    def __init__(self, folder: Path, redis_url: str = "") -> None:
        """Starts nothing.

        Args:
            folder: gets the logs of the services and of Redis.
        """
        self._home = RunDir(folder)
        self._redis_url = redis_url
        self._stack: Stack | None = None

    def keeps(self, config: RunConfig) -> bool:
        """Whether the services that run now are those of a run."""
        return self._stack is not None and self._stack.serves(config)

    def stack(self, config: RunConfig, run: RunDir, kv_cache_bytes: int = 0) -> Stack:
        """The stack of the next run, not started if it is a new one; `kv_cache_bytes` as of `Stack`."""
        if self._stack is not None and self._stack.serves(config):
            self._stack.follow(config, run)
            return self._stack
        self.close()
        make_folder(self._home.logs)
        self._stack = Stack(config, run, self._redis_url, home=self._home, kv_cache_bytes=kv_cache_bytes)
        return self._stack

    @contextlib.contextmanager
    def running(self, stack: Stack) -> Iterator[Stack]:
        """Starts what does not run yet; after an interrupt or an error, every process is stopped at once."""
        try:
            stack.start()
            yield stack
        except BaseException:
            self.close(grace=0.0)
            raise

    def close(self, grace: float = STOP_SECONDS) -> None:
        """Stops every process."""
        if self._stack is not None:
            self._stack.stop(grace)
            self._stack = None
