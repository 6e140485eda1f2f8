"""A supervised process: started, restarted when it dies, and given up when a restart does not help."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from dataclasses import dataclass, field
from pathlib import Path

from cepo.errors import CepoError, UserError
from cepo.net.environment import child_environment
from cepo.net.files import check_writable, open_log
from cepo.net.processes import die_with_parent
from cepo.run.causes import root_cause, same_way
from cepo.run.lock import IN_USE

MAX_RESTARTS = 5
"""Restarts allowed within RESTART_WINDOW_SECONDS; more means a fault that a restart does not fix."""
RESTART_WINDOW_SECONDS = 120.0


class ServiceDown(CepoError, RuntimeError):
    """A process keeps dying; the message holds the cause, or the last lines of its log."""


@dataclass
class Child:
    """One supervised process."""

    name: str
    command: list[str]
    environment: dict[str, str]
    log: Path
    process: subprocess.Popen[bytes] | None = None
    started: list[float] = field(default_factory=list)
    causes: list[str] = field(default_factory=list)
    """The errors of its deaths since the last step; a process that was killed has none."""
    _log_start: int = 0

    def start(self) -> None:
        now = time.monotonic()
        self.started = [at for at in self.started if now - at < RESTART_WINDOW_SECONDS] + [now]
        self._log_start = self.log.stat().st_size if self.log.is_file() else 0
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
    def code(self) -> int | None:
        """The exit code; None while the process runs, or before it is started."""
        return None if self.process is None else self.process.poll()

    @property
    def exited(self) -> bool:
        return self.code is not None

    def check(self, *, last_step: bool = False) -> int | None:
        """Restarts the process if it died; returns None while it runs and 0 once it has ended normally.

        Args:
            last_step: whether the run ends after the current step, which a process that fails once will not finish.

        Raises:
            UserError: the process exited with 2 or 3: invalid user input, or a run folder in use.
            StorageError: the process died, and the run folder cannot be written.
            ServiceDown: the process keeps dying.
        """
        code = self.code
        if code is None or code == 0:
            return code
        check_writable(self.log.parent)  # on a full disk no process can log why it died
        if code in (2, IN_USE):
            raise UserError(self.last_lines(1).removeprefix(f"cepo {self.name}: "))
        cause = root_cause(self.log, self._log_start) if code > 0 else ""
        if cause and last_step:
            raise ServiceDown(
                f"{self.name} died (exit {code}), so the step cannot be finished: {cause}; see {self.log}"
            )
        if cause and same_way(cause) in map(same_way, self.causes):
            raise ServiceDown(f"{self.name} died twice in the same way (exit {code}): {cause}; see {self.log}")
        if len(self.started) > MAX_RESTARTS:
            raise ServiceDown(
                f"{self.name} died {len(self.started)} times (exit {code}); {self.log} ends:\n{self.last_lines(8)}"
            )
        self.causes += [cause] * bool(cause)
        self.restart()
        return None

    def restart(self) -> None:
        """Starts the process again after it has ended, in whatever way."""
        self._end_session()  # an engine's own children must not outlive it
        self.start()

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
