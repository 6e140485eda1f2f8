"""The fixtures that all tests share: free ports and a running Redis."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.helpers.processes import RedisServer, unused_port


@pytest.fixture
def free_port() -> Callable[[], int]:
    """Returns loopback ports that are not in use."""
    return unused_port


@pytest.fixture
def redis_server(tmp_path: Path) -> Iterator[RedisServer]:
    """A running Redis."""
    with RedisServer(tmp_path) as server:
        yield server
