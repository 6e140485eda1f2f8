"""The input of `cepo credit`: a request, a list of requests, JSON Lines of requests, or the rollouts of a run."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any, Literal, NamedTuple

from pydantic import TypeAdapter, ValidationError

from cepo.cli.arguments import read_text
from cepo.credit import METHODS, CreditRequest
from cepo.errors import UserError, first_mistake
from cepo.prompts import images
from cepo.run.rollouts import content

_REQUESTS = TypeAdapter(list[CreditRequest])
_METHOD_KEYS = ("name", "lam", "eps_w", "no_negative", "exclude_self")


class Input(NamedTuple):
    """The requests of a file."""

    requests: list[CreditRequest]
    form: Literal["one", "list", "lines"]
    """The form of the file, which is also that of the replies."""
    places: list[str]
    """Before a mistake of each request: "", "0." in a list, "line 1: " in lines."""
    model: str | None
    """The model of the run that the rollouts are from; None for requests."""


def read(file: Path) -> Input:
    """Reads a file.

    Raises:
        UserError: the file holds no request; names the line or the place in the list, and the field.
    """
    text = content(file).decode() if file.name.endswith(".jsonl.gz") and file.is_file() else read_text(file)
    run = configuration(file.absolute().parent.parent)
    lines = [(number, line) for number, line in enumerate(text.splitlines(), start=1) if line.strip()]
    try:
        if text.lstrip().startswith("["):
            requests = _REQUESTS.validate_json(text)
            return Input(requests, "list", [f"{at}." for at in range(len(requests))], None)
        if len(lines) > 1 and all(_is_object(line) for _, line in lines[:2]):
            requests = [_of_line(file, number, line, run) for number, line in lines]
            return Input(requests, "lines", [f"line {number}: " for number, _ in lines], _model(run, text))
        return Input([_request(text, file, run)], "one", [""], _model(run, text))
    except ValidationError as error:
        raise UserError(f"{file}: {first_mistake(error.errors(), unnamed='the file')}") from error


def with_images(request: CreditRequest, folder: Path) -> CreditRequest:
    """The request with image files as data URIs; paths are relative to the folder of the request's file."""
    uris = []
    for at, image in enumerate(request.images):
        try:
            uris.append(image if image.startswith("data:") else images.data_uri(images.read(image, folder)))
        except UserError as error:
            raise UserError(f"images.{at}: {error}") from error
    return request.model_copy(update={"images": uris})


def _of_line(file: Path, number: int, line: str, run: dict[str, Any]) -> CreditRequest:
    try:
        return _request(line, file, run)
    except ValidationError as error:
        raise UserError(f"{file}, line {number}: {first_mistake(error.errors(), unnamed='the line')}") from error


def _request(text: str, file: Path, run: dict[str, Any]) -> CreditRequest:
    row = _is_object(text)
    if row and "samples" in row and "prompt" in row:
        return CreditRequest.model_validate(of_group(row, file.absolute().parent.parent, run))
    return CreditRequest.model_validate_json(text)


def of_group(row: dict[str, Any], folder: Path, run: dict[str, Any]) -> dict[str, Any]:
    """The request for a group of rollouts/step-NNNNNN.jsonl, with the method of the run if it is one of METHODS."""
    samples: list[dict[str, Any]] = row["samples"]
    responses = [
        {key: sample[key] for key in ("token_ids", "given", "reward") if sample.get(key) is not None}
        for sample in samples
    ]
    sent = {"messages": row["prompt"], "responses": responses, "positive": row.get("answer")}
    if row.get("images"):
        sent["images"] = [str(folder / "images" / sha256) for sha256 in row["images"]]
    algorithm = run.get("algorithm", {})
    if algorithm.get("name") in METHODS:
        sent["method"] = {key: algorithm[key] for key in _METHOD_KEYS if key in algorithm}
    if template := run.get("data", {}).get("template"):
        sent["chat_template_kwargs"] = template
    return {key: value for key, value in sent.items() if value is not None}


def _is_object(text: str) -> dict[str, Any]:
    """The JSON object of a text; empty if the text is anything else."""
    try:
        value = json.loads(text)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


def configuration(run_dir: Path) -> dict[str, Any]:
    """The configuration of the run in a folder; empty if there is none."""
    try:
        return tomllib.loads((run_dir / "config.toml").read_text("utf-8"))
    except (OSError, ValueError):
        return {}


def _model(run: dict[str, Any], text: str) -> str | None:
    is_rollouts = "samples" in _is_object(text.lstrip().partition("\n")[0])
    path = run.get("model", {}).get("path")
    return str(path) if is_rollouts and path else None
