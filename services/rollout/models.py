"""The policies of a run as models that clients name: each resident version, the newest of them, and the base."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from fastapi import FastAPI
from fastapi.responses import JSONResponse
from pydantic import BaseModel

from cepo.messages.groups import BASE_POLICY

NEWEST = "policy"
"""Stands for the newest version; for the base until there is one."""


class ServedModel(BaseModel):
    """One entry of OpenAI's list."""

    id: str
    object: str = "model"
    created: int = 0
    owned_by: str = "cepo"
    root: str
    """The policy it is, or the base model's name."""
    parent: str | None = None
    max_model_len: int


class ModelList(BaseModel):
    """What `GET /v1/models` answers."""

    object: str = "list"
    data: list[ServedModel]


@dataclass(frozen=True)
class Policies(Mapping[str, Any]):
    """What the names stand for: the adapters in the engine, followed as they come and go.

    A view, so that a request by the stable name carries the version's own name into the engine, whose prefix cache
    tells weights apart by name.
    """

    resident: Mapping[str, Any]
    """Adapters by policy name, in the order they were loaded."""

    @property
    def newest(self) -> str | None:
        """The highest version; of two with one number the one loaded last."""
        return max(reversed(list(self.resident)), key=lambda name: name.partition("-")[0], default=None)

    def __getitem__(self, name: str) -> Any:
        return self.resident[self.newest or name if name == NEWEST else name]

    def __iter__(self) -> Iterator[str]:
        yield from self.resident
        if self.resident:
            yield NEWEST

    def __len__(self) -> int:
        return len(self.resident) + bool(self.resident)


def add_models(app: FastAPI, policies: Policies, model: str, max_model_len: int) -> None:
    """Adds `GET /v1/models` and `GET /v1/models/{name}`.

    Args:
        model: Hugging Face name or folder of the base.
    """

    def served() -> dict[str, ServedModel]:
        base = ServedModel(id=BASE_POLICY.name, root=model, max_model_len=max_model_len)
        newest = policies.newest or BASE_POLICY.name
        versions = [(NEWEST, newest), *((name, name) for name in sorted(policies.resident, reverse=True))]
        adapted = [
            ServedModel(id=name, root=root, parent=base.id, max_model_len=max_model_len) for name, root in versions
        ]
        return {entry.id: entry for entry in (*adapted, base)}

    @app.get("/v1/models", tags=["openai"])
    async def list_models() -> ModelList:
        """The policies that can be named now: `policy` is the newest, `base` the model without an adapter."""
        return ModelList(data=list(served().values()))

    @app.get("/v1/models/{name:path}", tags=["openai"], response_model=ServedModel, responses={404: {}})
    async def get_model(name: str) -> ServedModel | JSONResponse:
        """One of them."""
        found = served().get(BASE_POLICY.name if name == model else name)
        return found or not_served(name, served())


def not_served(name: str, served: Mapping[str, ServedModel]) -> JSONResponse:
    """404 in OpenAI's format."""
    message = f"The model `{name}` is not served; served now: {', '.join(served)}"
    error = {"message": message, "type": "NotFoundError", "param": "model", "code": 404}
    return JSONResponse({"error": error}, 404)
