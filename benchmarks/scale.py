"""Groups per second with 1 to 64 simulated rollout workers, against linear scaling, and the CPU time per group.

A worker processes four groups at once for two seconds, like an engine that samples 16,000 tokens per second. Redis,
verifier, teacher and trainer run the production code without engines. `limits` is the number of groups per second at
which Redis and the trainer would each use a whole core.
"""

from __future__ import annotations

import asyncio
import time
from typing import Any

import grpc

from benchmarks import _report
from benchmarks._simulation import Cost, Shape, Workers, collect, redis_server, running
from cepo.messages.groups import PolicyRef, Stage
from cepo.net.connections import GRPC_OPTIONS
from cepo.net.settings import Settings
from cepo.pb.cepo.v1 import services_pb2, services_pb2_grpc
from cepo.service.adapters import CHUNK_BYTES, FILES, fetch_adapter

AIM = 0.9
SLOTS, SECONDS = 4, 2.0
PER_PROCESS = 16
"""Workers per process, to save memory."""
ADAPTER_BYTES = 64 * 2**20
"""The adapter of rank 16 on every linear layer of a model with 1.7 billion parameters, in float32."""


def measure(count: int, rounds: int, shape: Shape) -> Cost:
    """The cost of `rounds` groups for each slot of `count` workers."""
    sizes = [min(PER_PROCESS, count - at) for at in range(0, count, PER_PROCESS)]
    fleet = [Workers(Stage.ROLLOUT, shape, size, SLOTS, SECONDS) for size in sizes]
    fleet += [Workers(Stage.VERIFY, shape, slots=16), Workers(Stage.TEACH, shape, slots=16)]
    with redis_server() as url, running(url, fleet):
        asyncio.run(collect(url, shape.tasks("warm", 2 * count)))
        return asyncio.run(collect(url, shape.tasks("measured", rounds * SLOTS * count)))


async def fan_out(engines: int) -> float:
    """Megabytes per second of adapters that one trainer process streams to several engines at once."""

    class Trainer(services_pb2_grpc.TrainerServiceServicer):
        async def FetchPolicy(self, request: Any, context: Any) -> Any:
            piece = bytes(CHUNK_BYTES)
            yield services_pb2.PolicyChunk(file=FILES[0], data=b"{}")
            for _ in range(ADAPTER_BYTES // CHUNK_BYTES):
                yield services_pb2.PolicyChunk(file=FILES[1], data=piece)

    server = grpc.aio.server(options=GRPC_OPTIONS)
    services_pb2_grpc.add_TrainerServiceServicer_to_server(Trainer(), server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    policy, begun = PolicyRef(version=1, sha256="0" * 64), time.perf_counter()
    settings = Settings(trainer_address=f"127.0.0.1:{port}")
    await asyncio.gather(*(fetch_adapter(settings, policy) for _ in range(engines)))
    seconds = time.perf_counter() - begun
    await server.stop(None)
    return engines * ADAPTER_BYTES / 1e6 / seconds


def main() -> None:
    """Measures, prints the result and writes it to benchmarks/results/."""
    options = _report.arguments(__doc__, "fewer numbers of workers; under a minute").parse_args()
    counts, rounds = ((1, 8, 64), 2) if options.quick else ((1, 2, 4, 8, 16, 32, 64), 12)
    shape = Shape(tokens=1024)
    costs = {count: measure(count, rounds, shape) for count in counts}
    rates = {count: rounds * SLOTS * count / cost.seconds for count, cost in costs.items()}
    most = counts[-1]
    groups, cost = rounds * SLOTS * most, costs[most]
    redis, trainer = cost.redis_cpu_seconds / groups, cost.trainer_cpu_seconds / groups
    _report.write(
        "scale",
        ours={str(count): round(rate, 2) for count, rate in rates.items()},
        alternative={str(count): round(rates[1] * count, 2) for count in counts},
        ratio=rates[most] / (rates[1] * most),
        aim=AIM,
        unit="groups per second by number of workers; the alternative is linear",
        samples=shape.samples,
        tokens=shape.tokens,
        rounds=rounds,
        redis_bytes_per_group=round(cost.redis_bytes / groups),
        cpu_milliseconds_per_group={"redis": round(1000 * redis, 3), "trainer": round(1000 * trainer, 3)},
        limits={"redis_groups_per_second": round(1 / redis), "trainer_groups_per_second": round(1 / trainer)},
        adapter_megabytes_per_second=round(asyncio.run(fan_out(8))),
    )


if __name__ == "__main__":
    main()
