"""`cepo credit FILE.json`: the reply of `POST /v1/credit`, computed in this process."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import TypeAdapter
from rich.console import Console

import cepo.tiny
from cepo.cli import credit_files, credit_view
from cepo.cli.scoring import read_adapter, scoring, word
from cepo.credit import METHODS, CreditReply, CreditRequest, Method, Variant
from cepo.credit.decisive import with_rlsd
from cepo.errors import StorageError, UserError
from cepo.messages.groups import BASE_POLICY, PolicyRef
from cepo.net.files import replace_file

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
        Path | None,
        typer.Option("--html", metavar="OUT", help="Also write the heat maps of all groups as one HTML file."),
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
    policy, files = read_adapter(adapter, "--adapter ")
    folder = file.absolute().parent
    requests = [_with_options(credit_files.with_images(request, folder), policy, compare) for request in given.requests]
    seen = sys.stdout.isatty() and not json
    if seen:
        requests = [with_rlsd(request) for request in requests]
    name = model or given.model or str(cepo.tiny.path())

    in_order = scored(requests, given.places, name, policy, files)
    replies = asyncio.run(_each(in_order, given.places, seen=seen, lines=given.form == "lines"))
    if html is not None:
        _write_page(html, list(zip(requests, replies, strict=True)))
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


def _write_page(html: Path, scored: Sequence[tuple[CreditRequest, CreditReply]]) -> None:
    from services.teacher.page import standalone_list

    try:
        replace_file(html, standalone_list(scored))
    except StorageError as error:
        raise UserError(f"--html {error}") from error
    print(f"heat map written to {html}", file=sys.stderr)


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
    """Yields the replies in order."""
    from services.teacher.grading import needs_grading

    async with scoring(
        model, policy, files, lambda grade: any(needs_grading(each, grade) for each in requests)
    ) as score:
        for at, request in enumerate(requests):
            try:
                with word(f"scoring request {at + 1} of {len(requests)}"):
                    reply = await score(request)
            except UserError as error:
                raise UserError(f"{places[at]}{error}") from error
            yield reply
