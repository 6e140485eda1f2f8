"""The trees by which engines get versions: two copies from the trainer, two from each engine."""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import replace

import pytest

from cepo.messages.groups import PolicyRequest
from services.trainer import fanout as module
from services.trainer.fanout import FOLLOWERS, NEAR_FOLLOWERS, Fanout, Peer
from tests.helpers.factories import POLICY


def engines(count: int, machines: int = 0) -> list[Peer]:
    """Engines on a number of machines; by default each on its own."""
    return [Peer(f"10.0.{i // 250}.{i % 250}:7052", "rollout", str(i % (machines or count))) for i in range(count)]


def spread(fanout: Fanout, asking: list[Peer]) -> dict[Peer, Peer | None]:
    return {engine: fanout.holder(engine) for engine in asking}


def depth(sources: dict[Peer, Peer | None], engine: Peer) -> int:
    holder = sources[engine]
    return 1 if holder is None else 1 + depth(sources, holder)


def test_a_thousand_engines_take_two_copies_from_the_trainer_and_two_from_any_engine() -> None:
    sources = spread(Fanout(), engines(1000))
    copies = Counter(sources.values())
    assert copies.pop(None) == FOLLOWERS
    assert max(copies.values()) == FOLLOWERS
    assert max(depth(sources, engine) for engine in sources) == 9


def test_up_to_two_engines_get_the_bytes_from_the_trainer() -> None:
    assert set(spread(Fanout(), engines(2)).values()) == {None}


@pytest.mark.parametrize("seed", range(3))
def test_a_version_crosses_the_network_to_a_machine_once(seed: int) -> None:
    asking = engines(400, machines=50)
    random.Random(seed).shuffle(asking)
    sources = spread(Fanout(), asking)
    crossings = Counter(
        engine.machine for engine, holder in sources.items() if holder is None or holder.machine != engine.machine
    )
    assert set(crossings) == {str(machine) for machine in range(50)}
    assert sum(crossings.values()) <= 50 + FOLLOWERS - 1  # the trainer's two copies may go to one machine
    assert max(Counter(sources.values()).values()) <= FOLLOWERS + NEAR_FOLLOWERS


def test_an_engine_that_asks_again_stays_where_it_is() -> None:
    fanout, asking = Fanout(), engines(30)
    assert spread(fanout, asking) == spread(fanout, asking)


def test_an_engine_whose_holder_failed_gets_the_bytes_and_no_other_is_sent_there() -> None:
    fanout, (first, second, third, *others) = Fanout(), engines(12)
    assert [fanout.holder(each) for each in (first, second, third)] == [None, None, first]
    assert fanout.holder(third, failed=first.address) is None
    assert first not in spread(fanout, others).values()
    assert fanout.holder(third) is None  # in place of the first
    assert fanout.holder(first) not in (None, third)  # it works again, and is served like a new engine


@pytest.mark.parametrize("seed", range(5))
def test_no_engine_waits_for_itself_whatever_fails(seed: int) -> None:
    fanout, asking, chance = Fanout(), engines(40, machines=20), random.Random(seed)
    edges = spread(fanout, asking)
    for _ in range(2000):
        engine = chance.choice(asking)
        failed = holder.address if (holder := edges[engine]) and chance.random() < 0.5 else ""
        edges[engine] = fanout.holder(engine, failed)
        above, steps = edges[engine], 0
        while above is not None:
            above, steps = edges[above], steps + 1
            assert steps <= len(asking), "a cycle"
    spread(fanout, asking)
    settled = spread(fanout, asking)
    assert Counter(settled.values())[None] == FOLLOWERS


def test_engines_that_have_not_asked_for_long_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    fanout, now = Fanout(), 0.0
    monkeypatch.setattr("time.monotonic", lambda: now + 1e9)
    spread(fanout, engines(100))
    now = 2 * module.FORGET_SECONDS
    assert fanout.holder(engines(100)[50]) is None
    assert len(fanout._nodes) == 1


def test_each_service_has_a_tree_because_it_needs_versions_of_its_own() -> None:
    fanout = Fanout()
    rollout = engines(5)
    teachers = [Peer(each.address.replace("7052", "7053"), "teacher", each.machine) for each in rollout]
    sources = spread(fanout, [engine for pair in zip(rollout, teachers, strict=True) for engine in pair])
    assert all(holder is None or holder.service == engine.service for engine, holder in sources.items())
    assert Counter(sources.values())[None] == 2 * FOLLOWERS


def test_an_engine_is_known_by_the_address_of_its_connection_and_the_port_that_it_names() -> None:
    request = PolicyRequest(**POLICY.model_dump(), port=7052, service="rollout", machine="node-3")
    known = Peer("10.0.0.7:7052", "rollout", "node-3")
    assert Peer.of(request, "ipv4:10.0.0.7:40312", "node-1") == known
    assert Peer.of(request, "ipv6:%5Bfd00::7%5D:40312", "node-1") == replace(known, address="[fd00::7]:7052")
    assert Peer.of(request, "ipv6:%5B::1%5D:9", "node-3") == replace(known, address="[::1]:7052", local=True)
    assert Peer.of(request, "ipv4:127.0.0.6:40312", "node-1") is None  # a proxy on the trainer's side
    assert Peer.of(request, "unix:/tmp/socket", "node-1") is None
    assert Peer.of(PolicyRequest(**POLICY.model_dump()), "ipv4:10.0.0.7:40312", "node-1") is None


def test_an_engine_on_another_machine_is_not_sent_to_a_loopback_address() -> None:
    fanout = Fanout()
    local = [Peer(f"127.0.0.1:{port}", "rollout", "here", local=True) for port in (1, 2, 3)]
    assert list(spread(fanout, local).values()) == [None, None, local[0]]
    assert set(spread(fanout, engines(2)).values()) == {None}


def test_an_engine_that_sends_nothing_on_gets_the_bytes() -> None:
    fanout = Fanout()
    spread(fanout, engines(9))
    assert fanout.holder(None) is None
