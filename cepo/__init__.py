"""CEPO trains language and vision-language models with a credit for every token (arXiv:2605.19436).

The top of this package holds what users import: `credit` (the models of `POST /v1/credit`; `cepo.credit(...)` scores in
this process), `client` (the HTTP client for it), `testing` (toy engines and an in-memory bus), `errors`, `names`, and
`healthcheck`, which containers run. Everything else is in a room, a subpackage with one subject; `docs/architecture.md`
shows the rooms from bottom to top.
"""

from __future__ import annotations

from typing import Any


def __getattr__(name: str) -> Any:
    """Imports `cepo.credit` when it is first used, so that `import cepo` stays fast."""
    if name == "credit":
        from importlib import import_module

        return import_module("cepo.credit")
    raise AttributeError(f"module 'cepo' has no attribute {name!r}")
