"""Fast test doubles of a run's parts: a bus in memory, a toy rollout engine and a toy teacher engine.

Each one satisfies the protocol of the real part (`Bus`, `Generator`, `Scorer`), so handlers, stage loops and whole
runs work on them without Redis, a GPU or a model.
"""

from cepo.testing.memory_bus import MemoryBus
from cepo.testing.toys import GenerateCall, ToyEngine, ToyGenerator, ToyScorer

__all__ = ["GenerateCall", "MemoryBus", "ToyEngine", "ToyGenerator", "ToyScorer"]
