"""The OpenAI models API: each resident policy version, the newest version, and the base model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from fastapi import FastAPI
from fastapi.responses import JSONResponse
from pydantic import BaseModel

from cepo.messages.groups import BASE_POLICY

NEWEST = "policy"
"""The model name of the newest version, or of the base model until there is a version."""


class ServedModel(BaseModel):
    """One model, in OpenAI's format."""

    id: str
    object: str = "model"
    created: int = 0
    owned_by: str = "cepo"
    root: str
    """The policy that the name stands for, or the base model's name."""
    parent: str | None = None
    max_model_len: int


class ModelList(BaseModel):
    """The reply of `GET /v1/models`."""

    object: str = "list"
    data: list[ServedModel]


@dataclass(frozen=True)
class Policies(Mapping[str, Any]):
    """A live view of the engine's adapters by name, including the name `policy` for the newest.

    A request for `policy` reaches the engine under the name of the version, because the engine's prefix cache tells
    weights apart by name.
    """

    resident: Mapping[str, Any]
    """Adapters by policy name, in the order in which they were loaded."""

    @property
    def newest(self) -> str | None:
        """The highest version; of two with the same number, the one loaded last."""
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
        """The policies served now: `policy` is the newest version, `base` the model without an adapter."""
        return ModelList(data=list(served().values()))

    @app.get("/v1/models/{name:path}", tags=["openai"], response_model=ServedModel, responses={404: {}})
    async def get_model(name: str) -> ServedModel | JSONResponse:
        """One of the policies served now."""
        entry = served().get(BASE_POLICY.name if name == model else name)
        return entry or not_served(name, served())


def not_served(name: str, served: Mapping[str, ServedModel]) -> JSONResponse:
    """A 404 response in OpenAI's format."""
    message = f"The model `{name}` is not served; available models: {', '.join(served)}"
    error = {"message": message, "type": "NotFoundError", "param": "model", "code": 404}
    return JSONResponse({"error": error}, 404)
