"""`cepo credit FILE.json`: the reply of `POST /v1/credit`, computed in this process."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import TypeAdapter, ValidationError

import cepo.tiny
from cepo.cli.arguments import read_text
from cepo.credit import METHODS, CreditReply, CreditRequest, Method, Variant
from cepo.errors import StorageError, UserError, first_mistake
from cepo.messages.groups import BASE_POLICY, PolicyRef, RolloutGroup, ScoredGroup
from cepo.net.files import replace_file
from cepo.net.settings import Settings
from cepo.prompts import images
from cepo.service import adapters
from cepo.service.adapters import AdapterCache, Engine
from cepo.service.image_cache import no_images

_REQUESTS = TypeAdapter(list[CreditRequest])
_REPLIES: TypeAdapter[CreditReply | list[CreditReply]] = TypeAdapter(CreditReply | list[CreditReply])


def credit(
    file: Annotated[
        Path,
        typer.Argument(
            metavar="FILE.json", help="A request of POST /v1/credit, or a list of them; images may be file names."
        ),
    ],
    *,
    model: Annotated[
        str, typer.Option("--model", help="A Hugging Face name or a model folder.", show_default="the tiny model")
    ] = str(cepo.tiny.path()),
    adapter: Annotated[
        Path | None, typer.Option("--adapter", help="The folder of a LoRA adapter, such as RUN_DIR/adapters/v000020.")
    ] = None,
    html: Annotated[
        Path | None, typer.Option("--html", metavar="OUT", help="Also write the heat map as one HTML file.")
    ] = None,
    compare: Annotated[
        str | None, typer.Option("--compare", metavar="METHODS", help=f"Methods to compare: {','.join(METHODS)}.")
    ] = None,
) -> None:
    """Prints the reply as one line of JSON.

    Raises:
        UserError: names the option or the field that does not fit.
    """
    requests, many = _read(file)
    policy, files = _adapter(adapter)
    folder = file.absolute().parent
    requests = [_with_options(_with_images(request, folder), policy, compare) for request in requests]
    if html is not None and many:
        raise UserError(f"--html shows one request, and {file} holds a list; give one object")
    replies = asyncio.run(_scored(requests, many, model, policy, files))
    if html is not None:
        from services.teacher.page import standalone_page

        try:
            replace_file(html, standalone_page(requests[0], replies[0]))
        except StorageError as error:
            raise UserError(f"--html {error}") from error
        print(f"heat map written to {html}", file=sys.stderr)
    print(_REPLIES.dump_json(replies if many else replies[0]).decode())


def _read(file: Path) -> tuple[list[CreditRequest], bool]:
    """The requests of a file, and whether it holds a list."""
    text = read_text(file)
    try:
        if text.lstrip().startswith("["):
            return _REQUESTS.validate_json(text), True
        return [CreditRequest.model_validate_json(text)], False
    except ValidationError as error:
        raise UserError(f"{file}: {first_mistake(error.errors(), unnamed='the file')}") from error


def _with_images(request: CreditRequest, folder: Path) -> CreditRequest:
    """The request with image files as data URIs; paths are relative to the folder of the request's file."""
    uris = []
    for at, image in enumerate(request.images):
        try:
            uris.append(image if image.startswith("data:") else images.data_uri(images.read(image, folder)))
        except UserError as error:
            raise UserError(f"images.{at}: {error}") from error
    return request.model_copy(update={"images": uris})


def _adapter(folder: Path | None) -> tuple[PolicyRef, dict[str, bytes]]:
    if folder is None:
        return BASE_POLICY, {}
    try:
        files = adapters.read(folder)
    except OSError as error:
        raise UserError(f"--adapter {folder}: no {' and '.join(adapters.FILES)} there") from error
    return PolicyRef(version=1, sha256=adapters.digest(files)), files


def _with_options(request: CreditRequest, policy: PolicyRef, compare: str | None) -> CreditRequest:
    """The request with the adapter and the methods of the command line."""
    changes: dict[str, Any] = {}
    if policy != BASE_POLICY:
        changes["policy"] = policy
    if compare is not None:
        methods = [_method(request.method, name.strip()) for name in compare.split(",")]
        changes |= {"method": methods[0], "compare": [Variant(method=method) for method in methods[1:]]}
    return request.model_copy(update=changes)


def _method(method: Method, name: str) -> Method:
    if name not in METHODS:
        raise UserError(f"--compare: {name!r} is no method; choose from {','.join(METHODS)}")
    given = {key: getattr(method, key) for key in method.model_fields_set}
    return Method.model_validate(given | {"name": name})


async def _scored(
    requests: list[CreditRequest], many: bool, model: str, policy: PolicyRef, files: dict[str, bytes]
) -> list[CreditReply]:
    import tempfile

    from transformers import AutoConfig
    from transformers.utils import logging

    from cepo.prompts.renderer import Renderer
    from cepo.teaching.engine import TransformersScorer
    from services.teacher.credit import TokenCredit
    from services.teacher.images import GivenImages
    from services.verifier.handler import Verifier
    from services.verifier.pool import GraderPool

    logging.disable_progress_bar()
    renderer = Renderer(model)
    settings = Settings(model=model, dtype="float32", device=_device())

    async def fetch(wanted: PolicyRef) -> dict[str, bytes]:
        if wanted != policy:
            raise UserError(f"policy: {wanted.name} is not loaded; give its folder with --adapter")
        return files

    async def grade(group: RolloutGroup) -> ScoredGroup:
        async with GraderPool(workers=1) as pool:
            return await Verifier(pool).verify(group)

    given = GivenImages(no_images)
    with tempfile.TemporaryDirectory() as folder:
        scorer = TransformersScorer(settings, renderer, AdapterCache(Path(folder), fetch, keep=2), given.read)
        try:
            await _load(scorer, policy)
            longest = AutoConfig.from_pretrained(model).get_text_config().max_position_embeddings
            credit = TokenCredit(scorer, renderer, longest, grade, given)
            return await credit.each(requests) if many else [await credit(requests[0])]
        finally:
            scorer.close()


async def _load(engine: Engine, policy: PolicyRef) -> None:
    from safetensors import SafetensorError

    try:
        await engine.load(policy)
    except (SafetensorError, KeyError, RuntimeError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise UserError(f"--adapter: not a LoRA adapter of this model ({type(error).__name__}: {reason})") from error


def _device() -> Any:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"
