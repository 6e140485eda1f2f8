"""Where engines get adapters: from the trainer, or from an engine that asked earlier.

The trainer sends each version to two engines of a service. Every later engine is sent to the earliest one that has
fewer than two followers, so the engines form a tree, and each sends two copies while it receives its own. Engines of
one machine follow one another, so that a version crosses the network to a machine once:

    trainer -> a, b;  a -> c, d;  b -> e, f;  c -> g, h;  ...

An engine stays with its holder, and asks again after a failure or ten minutes. The trainer therefore answers few
requests, and a version spreads without it.
"""

from __future__ import annotations

import time
import urllib.parse
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass
from ipaddress import ip_address
from itertools import chain
from pathlib import Path
from typing import Self

from cepo.messages.groups import PolicyRequest
from cepo.net.settings import Settings
from cepo.pb.cepo.v1 import services_pb2
from cepo.service import adapters
from cepo.service.relay import STAY_SECONDS

FOLLOWERS = 2
"""With more, the rate of a holder is divided further: 1,000 engines take longer (`python -m benchmarks.adapters`)."""
NEAR_FOLLOWERS = 1
"""Followers of an engine on its own machine, in addition to those on others."""
FORGET_SECONDS = 2.5 * STAY_SECONDS
"""An engine that has not asked for this long has ended, or fetches nothing."""


@dataclass(frozen=True)
class Peer:
    """An engine that asks for a version and sends it on."""

    address: str
    service: str = ""
    machine: str = ""
    local: bool = False
    """Whether the address is loopback, which leads only engines of the trainer's machine here."""

    @classmethod
    def of(cls, request: PolicyRequest, peer: str, machine: str) -> Self | None:
        """The engine that made a request; None if it sends nothing on, or if other engines cannot reach it.

        Args:
            peer: the address of the caller as gRPC gives it, such as "ipv4:10.0.0.7:40312" or "ipv6:%5B::1%5D:40312".
            machine: the machine of the trainer. An engine of another one with a loopback address is behind a proxy.
        """
        kind, _, place = urllib.parse.unquote(peer).partition(":")
        if not request.port or kind not in ("ipv4", "ipv6"):
            return None
        host = place.rpartition(":")[0]
        local = ip_address(host.strip("[]")).is_loopback
        if local and request.machine != machine:
            return None
        return cls(f"{host}:{request.port}", request.service, request.machine, local)


@dataclass
class _Node:
    engine: Peer
    holder: str = ""
    """The address of the engine that it follows; empty if the trainer sends it every version."""
    asked_at: float = 0.0
    failed: bool = False
    """Whether a follower reported it since it asked."""

    def is_near(self, other: _Node) -> bool:
        return self.engine.machine == other.engine.machine

    def is_alike(self, other: _Node) -> bool:
        """Whether both need the same versions and reach each other."""
        return (self.engine.service, self.engine.local) == (other.engine.service, other.engine.local)


class Fanout:
    """The trees of the engines, one for each service."""

    def __init__(self, near_followers: int = NEAR_FOLLOWERS) -> None:
        self._near_followers = near_followers
        self._forget_at = 0.0
        self._machine = Settings.from_environment("trainer").machine_name
        self._nodes: dict[str, _Node] = {}
        """By address, in the order in which they asked."""

    def holder(self, engine: Peer | None, failed: str = "") -> Peer | None:
        """The engine that sends versions to another engine; None: the trainer does.

        Args:
            engine: the engine that asks; None if it sends nothing on.
            failed: the address of the holder that it was sent to before. This time the trainer sends the bytes.
        """
        now = time.monotonic()
        if now > self._forget_at:
            self._nodes = {a: node for a, node in self._nodes.items() if node.asked_at > now - FORGET_SECONDS}
            self._forget_at = now + STAY_SECONDS / 10
        if failed in self._nodes:
            self._nodes[failed].failed = True
        if engine is None:
            return None
        node = self._nodes.setdefault(engine.address, _Node(engine))
        node.engine, node.asked_at, node.failed = engine, now, False
        above = self._nodes.get(node.holder)
        if failed:
            above = None
        elif above is None or above.failed:
            above = self._place(node)
        node.holder = above.engine.address if above else ""
        return above.engine if above else None

    async def stream(self, asked: PolicyRequest, peer: str, folder: Path) -> AsyncIterator[services_pb2.PolicyChunk]:
        """The reply to FetchPolicy: the name of a holder, or the files of a version in chunks.

        Args:
            peer: the address of the caller, as gRPC gives it.
            folder: the folder of the version.
        """
        if holder := self.holder(Peer.of(asked, peer, self._machine), asked.failed):
            named = services_pb2.Holder(address=holder.address, service=holder.service)
            yield services_pb2.PolicyChunk(holder=named)
            return
        for chunk in adapters.chunks(folder):
            yield chunk

    def _place(self, node: _Node) -> _Node | None:
        """The earliest node, first of its machine, that may have one more follower and does not wait for this one."""
        alike = [each for each in self._nodes.values() if each is not node and each.is_alike(node) and not each.failed]
        if sum(not each.holder for each in alike) < FOLLOWERS:
            return None
        pairs = ((each, self._nodes.get(each.holder)) for each in alike)
        taken = Counter((each.holder, each.is_near(above)) for each, above in pairs if above)

        def free(each: _Node) -> bool:
            near = each.is_near(node)
            return taken[each.engine.address, near] < (self._near_followers if near else FOLLOWERS)

        near_first = chain(filter(node.is_near, alike), alike)
        return next((each for each in near_first if free(each) and not self._follows(each, node.engine.address)), None)

    def _follows(self, node: _Node | None, address: str) -> bool:
        """Whether a node gets its versions from an engine, directly or through others."""
        while node is not None and node.holder:
            if node.holder == address:
                return True
            node = self._nodes.get(node.holder)
        return False
