"""Seconds until 1,000 engines have a new adapter, against four times one transfer, and what the trainer sends.

Engines send the adapter on while they receive it. First 1,000 engines fetch a small adapter over real sockets of this
machine, from the trainer alone and as a tree. Then the same code places 1,000 engines with networks of their own, and
the times follow from rates measured here: one transfer of 67 MB, one answer of the trainer, one hop of a chunk.
"""

from __future__ import annotations

import asyncio
import statistics
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

from benchmarks import _report
from benchmarks._fanout import VERSION, Rates, Spread, Trainer, serving, simulated, spread
from cepo.messages.groups import PolicyRef, PolicyRequest
from cepo.net.settings import Settings
from cepo.pb.cepo.v1 import services_pb2_grpc
from cepo.service.adapters import from_trainer
from services.trainer.fanout import Fanout, Peer

ENGINES = 1000
ADAPTER_BYTES = 64 * 2**20
"""The adapter of rank 16 on every linear layer of a model with 1.7 billion parameters, in float32."""
SMALL_BYTES = 2**18
"""The adapter of the engines that share this machine."""
PROCESSES = 4
AIM = 4.0
"""The last engine has the adapter within this many times one transfer."""
MOST_COPIES = 8
PER_MACHINE = 8
CHAIN = 12
"""Engines in a row, to measure one hop."""


class Chain(Fanout):
    """Each engine follows the one that asked before."""

    def __init__(self) -> None:
        super().__init__()
        self._holders: dict[Peer | None, Peer | None] = {}

    def holder(self, engine: Peer | None, failed: str = "") -> Peer | None:
        """The engine that asked before."""
        return self._holders.setdefault(engine, next(reversed(self._holders), None))


async def ask_seconds(count: int = 300) -> float:
    """The trainer's time for one request that it answers with a holder, with the caller's part of it."""
    fanout, policy = Fanout(), PolicyRef(version=VERSION, sha256="0" * 64)
    for number in range(ENGINES):
        fanout.holder(Peer(f"127.0.0.1:{number + 1}", machine=str(number), local=True))
    trainer, add = Trainer(Path(), fanout), services_pb2_grpc.add_TrainerServiceServicer_to_server
    async with serving(lambda server: add(trainer, server)) as address:
        settings, busy = Settings(trainer_address=address), time.process_time()
        for port in range(ENGINES + 1, ENGINES + 1 + count):
            async for chunk in from_trainer(
                settings, PolicyRequest(**policy.model_dump(), port=port, machine=settings.machine_name)
            ):
                assert chunk.HasField("holder")
        return (time.process_time() - busy) / count


def figures(result: Spread) -> dict[str, Any]:
    """The numbers of a spreading."""
    return {
        "copies_from_trainer": result.copies,
        "megabytes_from_trainer": round(result.sent_bytes / 1e6, 1),
        "seconds_to_the_median": round(statistics.median(result.seconds), 3),
        "seconds_to_the_last": round(result.seconds[-1], 3),
    }


async def measured_rates() -> Rates:
    """The rates of this machine."""
    transfers = await spread(1, 1, ADAPTER_BYTES, tree=True, versions=5)
    chained = await spread(CHAIN, 1, 1, tree=True, versions=5, fanout=Chain())
    return Rates(
        bytes_per_second=ADAPTER_BYTES / min(each.seconds[-1] for each in transfers),
        ask_seconds=await ask_seconds(),
        hop_seconds=min(each.seconds[-1] for each in chained[1:]) / CHAIN,
    )


def main() -> None:
    """Measures, prints the result and writes it to benchmarks/results/."""
    options = _report.arguments(__doc__, "64 engines on real sockets; half a minute").parse_args()
    engines = 64 if options.quick else ENGINES
    rates = asyncio.run(measured_rates())
    real = {
        name: [figures(each) for each in asyncio.run(spread(engines, PROCESSES, SMALL_BYTES, tree=tree, versions=2))]
        for name, tree in (("trainer alone", False), ("tree", True))
    }
    own = [Peer(f"10.0.{i // 250}.{i % 250}:7052", machine=str(i)) for i in range(ENGINES)]
    shared = [Peer(each.address, machine=str(i // PER_MACHINE)) for i, each in enumerate(own)]
    at_once = replace(rates, ask_seconds=0.0)
    tree = simulated(own, ADAPTER_BYTES, at_once, tree=True)
    transfer = ADAPTER_BYTES / rates.bytes_per_second
    _report.write(
        "adapters",
        ours={"seconds_to_the_last": round(tree.seconds[-1], 3)},
        alternative={"seconds_of_four_transfers": round(AIM * transfer, 3)},
        ratio=AIM * transfer / tree.seconds[-1],
        aim=1.0,
        besides=tree.copies <= MOST_COPIES and real["tree"][1]["copies_from_trainer"] <= MOST_COPIES,
        rates={
            "transfer_megabytes_per_second": round(rates.bytes_per_second / 1e6),
            "ask_milliseconds": round(1000 * rates.ask_seconds, 3),
            "hop_milliseconds": round(1000 * rates.hop_seconds, 3),
        },
        simulated_engines=ENGINES,
        adapter_megabytes=round(ADAPTER_BYTES / 1e6, 1),
        simulated={
            "trainer alone": figures(simulated(own, ADAPTER_BYTES, at_once, tree=False)),
            "tree": figures(tree),
            "tree, the first version": figures(simulated(own, ADAPTER_BYTES, rates, tree=True)),
            f"tree, {PER_MACHINE} engines per machine": figures(simulated(shared, ADAPTER_BYTES, at_once, tree=True)),
        },
        real_engines=engines,
        real_adapter_kilobytes=SMALL_BYTES // 1024,
        real_versions=real,
    )


if __name__ == "__main__":
    main()
