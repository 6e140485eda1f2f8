"""`cepo credit FILE.json`: the reply of `POST /v1/credit`, computed in this process."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from pydantic import TypeAdapter
from rich.console import Console

import cepo.tiny
from cepo.cli import credit_files, credit_view
from cepo.credit import MAX_TOKENS, METHODS, CreditReply, CreditRequest, Method, Variant
from cepo.errors import StorageError, UserError
from cepo.messages.groups import BASE_POLICY, PolicyRef, RolloutGroup, ScoredGroup
from cepo.net.files import replace_file
from cepo.net.settings import Settings
from cepo.service import adapters
from cepo.service.adapters import AdapterCache, Engine
from cepo.service.image_cache import no_images

if TYPE_CHECKING:
    from cepo.prompts.renderer import Renderer
    from services.teacher.credit import TokenCredit

_REPLIES = TypeAdapter(list[CreditReply])


def credit(
    file: Annotated[
        Path,
        typer.Argument(
            metavar="FILE",
            help="A request of POST /v1/credit, a list, JSON Lines, or rollouts/step-NNNNNN.jsonl of a run; - is "
            "standard input. Images may be file names.",
        ),
    ],
    *,
    model: Annotated[
        str | None,
        typer.Option(
            "--model", help="A Hugging Face name or a model folder.", show_default="the run's, or the tiny model"
        ),
    ] = None,
    adapter: Annotated[
        Path | None, typer.Option("--adapter", help="The folder of a LoRA adapter, such as RUN_DIR/adapters/v000020.")
    ] = None,
    html: Annotated[
        Path | None, typer.Option("--html", metavar="OUT", help="Also write the heat map as one HTML file.")
    ] = None,
    compare: Annotated[
        str | None, typer.Option("--compare", metavar="METHODS", help=f"Methods to compare: {','.join(METHODS)}.")
    ] = None,
    json: Annotated[bool, typer.Option("--json", help="Print JSON on a terminal too, as in a pipe.")] = False,
) -> None:
    """Prints the responses in colour on a terminal, and JSON otherwise: JSON Lines for JSON Lines.

    Raises:
        UserError: names the option or the field that does not fit.
    """
    given = credit_files.read(file)
    policy, files = _adapter(adapter)
    folder = file.absolute().parent
    requests = [_with_options(credit_files.with_images(request, folder), policy, compare) for request in given.requests]
    if html is not None and given.form != "one":
        raise UserError(f"--html shows one request, and {file} holds a list; give one object")
    seen = sys.stdout.isatty() and not json
    if seen:
        requests = [credit_view.with_rlsd(request) for request in requests]
    name = model or given.model or str(cepo.tiny.path())

    in_order = scored(requests, given.places, name, policy, files)
    replies = asyncio.run(_each(in_order, given.places, seen=seen, lines=given.form == "lines"))
    if html is not None:
        _write_page(html, requests[0], replies[0])
    if not seen and given.form != "lines":
        print((_REPLIES.dump_json(replies) if given.form == "list" else replies[0].model_dump_json().encode()).decode())


async def _each(
    in_order: AsyncIterator[CreditReply], places: list[str], *, seen: bool, lines: bool
) -> list[CreditReply]:
    """The replies; each is printed as soon as it is there, if a person sees it or if it has a line of its own."""
    replies: list[CreditReply] = []
    async for reply in in_order:
        if seen:
            place = places[len(replies)].rstrip(".: ")
            credit_view.show(reply, Console(highlight=False, markup=False), place)
        elif lines:
            print(reply.model_dump_json(), flush=True)
        replies.append(reply)
    return replies


def _write_page(html: Path, request: CreditRequest, reply: CreditReply) -> None:
    from services.teacher.page import standalone_page

    try:
        replace_file(html, standalone_page(request, reply))
    except StorageError as error:
        raise UserError(f"--html {error}") from error
    print(f"heat map written to {html}", file=sys.stderr)


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


async def scored(
    requests: list[CreditRequest], places: list[str], model: str, policy: PolicyRef, files: dict[str, bytes]
) -> AsyncIterator[CreditReply]:
    """Yields the replies in order. The graders start while the libraries of the model are imported."""
    from cepo.prompts.renderer import Renderer
    from services.teacher.grading import needs_grading
    from services.verifier.handler import Verifier
    from services.verifier.pool import GraderPool

    async def grade(group: RolloutGroup) -> ScoredGroup:
        await starting
        return await Verifier(pool).verify(group)

    async with contextlib.AsyncExitStack() as stack:
        with _word(f"loading {Path(model).name}"):
            renderer = Renderer(model)
            pool = GraderPool(workers=1)
            stack.callback(pool.close)
            is_graded = any(needs_grading(request, grade) for request in requests)
            starting = asyncio.create_task(pool.start() if is_graded else asyncio.sleep(0))
            stack.push_async_callback(asyncio.wait, [starting])  # a process that is about to start is closed too
            await asyncio.sleep(0)  # lets the task start the process
            score = await _scorer(stack, model, renderer, policy, files, grade)
        for at, request in enumerate(requests):
            try:
                with _word(f"scoring request {at + 1} of {len(requests)}"):
                    reply = await score(request)
            except UserError as error:
                raise UserError(f"{places[at]}{error}") from error
            yield reply


async def _scorer(
    stack: contextlib.AsyncExitStack,
    model: str,
    renderer: Renderer,
    policy: PolicyRef,
    files: dict[str, bytes],
    grade: Callable[[RolloutGroup], Awaitable[ScoredGroup]],
) -> TokenCredit:
    """The function behind `POST /v1/credit`, with the model loaded; the stack closes what it uses."""
    import tempfile

    from transformers import AutoConfig

    from cepo.model.rope import positions
    from cepo.teaching.engine import TransformersScorer
    from services.teacher.credit import TokenCredit
    from services.teacher.images import GivenImages

    async def fetch(wanted: PolicyRef) -> dict[str, bytes]:
        if wanted != policy:
            raise UserError(f"policy: {wanted.name} is not loaded; give its folder with --adapter")
        return files

    settings = Settings(model=model, dtype="float32", device=_device())
    given = GivenImages(no_images)
    folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
    scorer = TransformersScorer(settings, renderer, AdapterCache(folder, fetch, keep=2), given.read)
    stack.callback(scorer.close)
    await _load(scorer, policy)
    longest = positions(AutoConfig.from_pretrained(model)) or MAX_TOKENS
    return TokenCredit(scorer, renderer, longest, grade, given)


@contextlib.contextmanager
def _word(text: str) -> Iterator[None]:
    """Shows on a terminal what the command does; nothing is written elsewhere."""
    if not sys.stderr.isatty():
        yield
        return
    with Console(stderr=True).status(text):
        yield


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
