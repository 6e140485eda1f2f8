"""The services. Each is a process of its own, which imports this first."""

import gc

GARBAGE_THRESHOLDS = (50_000, 20, 100)
"""Messages hold no cycles, but long lists of numbers, which a collection walks: at Python's own thresholds the trainer
spent two thirds of the time of reading a group on it, and a fifth of the time of its imports."""
gc.set_threshold(*GARBAGE_THRESHOLDS)
