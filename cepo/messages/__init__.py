"""The messages that services exchange, and their bytes on the wire.

Tasks, groups, verdicts and evidence are frozen pydantic models that nest, so that a later stage cannot receive a
half-filled earlier one. Add a field here and in `proto/`; no module here may import torch or open a connection.
"""
