"""What every service process is made of: the bus, the stage loop, the process chassis, adapters and telemetry.

A service supplies a handler `async (message) -> message`; this room delivers its messages exactly once. It must not
know which algorithm runs.
"""
