"""`cepo credit FILE.json`: what `POST /v1/credit` answers, without a service."""

from __future__ import annotations

import argparse
import asyncio
import sys
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

import cepo.tiny
from cepo.cli.arguments import text_of
from cepo.credit import METHODS, CreditReply, CreditRequest, Method, Variant
from cepo.errors import UserError
from cepo.messages.groups import BASE_POLICY, PolicyRef, RolloutGroup, ScoredGroup
from cepo.net.rest import first_mistake
from cepo.net.settings import Settings
from cepo.prompts import images
from cepo.service import adapters
from cepo.service.adapters import AdapterCache, Engine
from cepo.service.image_cache import no_images

_REQUESTS = TypeAdapter(list[CreditRequest])
_REPLIES: TypeAdapter[CreditReply | list[CreditReply]] = TypeAdapter(CreditReply | list[CreditReply])


def add_parser(commands: Any) -> None:
    parser = commands.add_parser("credit", help="the credit of every token of given responses")
    parser.add_argument("file", type=Path, help="JSON: a request of POST /v1/credit, or a list; images may be files")
    parser.add_argument("--model", default=str(cepo.tiny.path()), help="Hugging Face name or folder; default: tiny")
    parser.add_argument("--adapter", type=Path, help="a LoRA adapter's folder, as in RUN_DIR/adapters/v000020")
    parser.add_argument("--html", type=Path, metavar="OUT", help="also write the heat map as one HTML file")
    parser.add_argument("--compare", metavar="METHODS", help=f"methods to set side by side: {','.join(METHODS)}")
    parser.set_defaults(run=run)


def run(options: argparse.Namespace) -> int:
    """Prints the reply, one line of JSON."""
    requests, many = _read(options.file)
    policy, files = _adapter(options.adapter)
    folder = options.file.absolute().parent
    asked = [_asked(_pictured(request, folder), policy, options.compare) for request in requests]
    if options.html is not None and many:
        raise UserError(f"--html shows one request, and {options.file} holds a list; give one object")
    replies = asyncio.run(_scored(asked, many, options.model, policy, files))
    if options.html is not None:
        from services.teacher.page import standalone_page

        try:
            options.html.write_text(standalone_page(asked[0], replies[0]), encoding="utf-8")
        except OSError as error:
            raise UserError(f"--html {options.html} cannot be written: {error.strerror}") from error
        print(f"heat map written to {options.html}", file=sys.stderr)
    print(_REPLIES.dump_json(replies if many else replies[0]).decode())
    return 0


def _read(file: Path) -> tuple[list[CreditRequest], bool]:
    """The requests, and whether the file holds a list of them."""
    text = text_of(file)
    try:
        if text.lstrip().startswith("["):
            return _REQUESTS.validate_json(text), True
        return [CreditRequest.model_validate_json(text)], False
    except ValidationError as error:
        raise UserError(f"{file}: {first_mistake(error.errors(), unnamed='the file')}") from error


def _pictured(request: CreditRequest, folder: Path) -> CreditRequest:
    """The request with images that it names as files read; paths are relative to the request's."""
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


def _asked(request: CreditRequest, policy: PolicyRef, compare: str | None) -> CreditRequest:
    """The request with what the command line changes."""
    changes: dict[str, Any] = {}
    if policy != BASE_POLICY:
        changes["policy"] = policy
    if compare is not None:
        methods = [_method(request.method, name.strip()) for name in compare.split(",")]
        changes |= {"method": methods[0], "compare": [Variant(method=method) for method in methods[1:]]}
    return request.model_copy(update=changes)


def _method(method: Method, name: str) -> Method:
    if name not in METHODS:
        raise UserError(f"--compare: {name!r} is no method; give some of {','.join(METHODS)}")
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

    async def fetch(asked: PolicyRef) -> dict[str, bytes]:
        if asked != policy:
            raise UserError(f"policy: {asked.name} is not at hand; the command line has --adapter")
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
