"""The Redis of the soak: it can be killed, stalled and filled, its disk is small, and its clock can be wrong."""

from __future__ import annotations

import contextlib
import os
import resource
import shutil
import signal
import struct
import subprocess
import time
from pathlib import Path
from typing import Any

from redis import Redis
from redis.backoff import ConstantBackoff
from redis.exceptions import RedisError
from redis.retry import Retry

from cepo.net.connections import free_ports
from cepo.run import embedded

PASSWORD = "soak"
CLOCK = """
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/time.h>
#include <time.h>
static double offset(void) {
    static volatile double *shared;
    if (!shared) shared = mmap(0, 8, PROT_READ, MAP_SHARED, open(getenv("SOAK_CLOCK"), O_RDONLY), 0);
    return *shared;
}
int gettimeofday(struct timeval *now, void *zone) {
    static int (*real)(struct timeval *, void *);
    if (!real) real = dlsym(RTLD_NEXT, "gettimeofday");
    int code = real(now, zone);
    now->tv_sec += (time_t) offset();
    return code;
}
int clock_gettime(clockid_t clock, struct timespec *now) {
    static int (*real)(clockid_t, struct timespec *);
    if (!real) real = dlsym(RTLD_NEXT, "clock_gettime");
    int code = real(clock, now);
    if (clock == CLOCK_REALTIME || clock == CLOCK_REALTIME_COARSE) now->tv_sec += (time_t) offset();
    return code;
}
time_t time(time_t *at) {
    struct timeval now;
    gettimeofday(&now, 0);
    if (at) *at = now.tv_sec;
    return now.tv_sec;
}
"""
"""Put in front of the C library: wall clocks are wrong by the seconds in a file, monotonic clocks are right."""


class Server:
    """The embedded Redis of the project with an append-only file, as deployed."""

    def __init__(self, folder: Path, clock: Path, disk_bytes: int) -> None:
        self._data, self._disk_bytes = folder / "redis", disk_bytes
        self._data.mkdir()
        self.disk = "tmpfs" if self._mount() else "RLIMIT_FSIZE"
        """How the disk gets full: a small tmpfs where this process may mount one, otherwise a limit of file sizes."""
        (port,) = free_ports(1)
        self.url = f"redis://:{PASSWORD}@127.0.0.1:{port}/0"
        self._command = embedded.command(self._data / "data", port, PASSWORD)
        self._clock = clock
        self._environment = self._shim(folder)
        self.clock = "processes and Redis" if self._environment else "processes"
        """Whose clocks are stepped; that of Redis needs a C compiler."""
        self._process: subprocess.Popen[bytes] | None = None
        self.client = Redis.from_url(self.url, retry=Retry(ConstantBackoff(0.02), 3000), socket_timeout=10)

    def start(self) -> None:
        """Starts the server and waits until it answers."""
        self._process = subprocess.Popen(
            self._command, env=self._environment, stdout=subprocess.DEVNULL, restore_signals=False
        )  # SIGXFSZ stays ignored, so that a file that may not grow is an error and not a signal
        self.client.ping()

    def stop(self) -> None:
        """Ends the server and removes its data."""
        self._kill()
        if self.disk == "tmpfs":
            subprocess.run(["umount", str(self._data)], check=False, capture_output=True)

    def crash(self, cut: int, seconds: float) -> None:
        """Kills the server, cuts the end of its append-only file as a power cut would, and starts it again."""
        self._kill()
        for file in self._data.glob("data/appendonlydir/*.incr.aof"):
            os.truncate(file, max(0, file.stat().st_size - cut))
        time.sleep(seconds)
        self.start()

    def stall(self, seconds: float) -> None:
        """The server is alive and answers nothing for a while."""
        self._process.send_signal(signal.SIGSTOP)
        time.sleep(seconds)
        self._process.send_signal(signal.SIGCONT)

    def fill_memory(self, seconds: float) -> None:
        """Lets the server reach its `maxmemory` for a while."""
        self.client.config_set("maxmemory", max(1, self.memory() - 1))
        time.sleep(seconds)
        self.client.config_set("maxmemory", 0)

    def fill_disk(self, seconds: float) -> None:
        """Lets the disk of the append-only file be full for a while."""
        self._limit(full=True)
        time.sleep(seconds)
        self._limit(full=False)

    def drop_connections(self) -> None:
        """Closes the connections of all processes."""
        self.client.client_kill_filter(_type="normal", skipme=True)

    def memory(self) -> int:
        """Bytes that the server uses."""
        return int(self.client.info("memory")["used_memory"])

    def _kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def _mount(self) -> bool:
        command = ["mount", "-t", "tmpfs", "-o", f"size={self._disk_bytes}", "tmpfs", str(self._data)]
        with contextlib.suppress(OSError):
            return subprocess.run(command, check=False, capture_output=True).returncode == 0
        return False

    def _limit(self, *, full: bool) -> None:
        if self.disk == "tmpfs":
            ballast = self._data / "ballast"
            if not full:
                ballast.unlink()
                return
            with ballast.open("wb", buffering=0) as out, contextlib.suppress(OSError):
                os.posix_fallocate(out.fileno(), 0, shutil.disk_usage(self._data).free - 2**20)
                out.seek(0, os.SEEK_END)
                while True:  # the server writes meanwhile
                    out.write(bytes(4096))
            return
        largest = max(file.stat().st_size for file in self._data.glob("data/appendonlydir/*.incr.aof"))
        hard = resource.RLIM_INFINITY
        resource.prlimit(self._process.pid, resource.RLIMIT_FSIZE, (largest if full else hard, hard))

    def _shim(self, folder: Path) -> dict[str, str]:
        source, library = folder / "clock.c", folder / "clock.so"
        source.write_text(CLOCK)
        with contextlib.suppress(OSError):
            if subprocess.run(["cc", "-shared", "-fPIC", "-o", library, source, "-ldl"], check=False).returncode == 0:
                return {"LD_PRELOAD": str(library), "SOAK_CLOCK": str(self._clock)}
        return {}


def set_clock(file: Path, seconds: float) -> None:
    """Makes the wall clocks of all processes wrong by this many seconds."""
    with file.open("r+b") as out:
        out.write(struct.pack("d", seconds))


def ask(client: Any, seconds: float, call: Any) -> Any:
    """The result of a call to a Redis that may refuse for a while."""
    deadline = time.monotonic() + seconds
    while True:
        try:
            return call(client)
        except RedisError:
            if time.monotonic() > deadline:
                raise
            time.sleep(0.05)
