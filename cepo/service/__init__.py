"""The parts that all services share: the bus, the stage loop, the process chassis, adapters and telemetry.

A service supplies a handler `async (message) -> message`; this room delivers each message at least once and publishes
each result exactly once. It must not depend on the algorithm.
"""
