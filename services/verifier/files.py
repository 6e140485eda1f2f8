"""Verdicts for JSON lines, with the same rows as REST, without a service."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Iterator

from pydantic import ValidationError

from cepo.answers.kinds import check_reference
from cepo.errors import UserError, first_mistake
from services.verifier.pool import DEADLINE_SECONDS, GraderPool
from services.verifier.rows import Reply, Request

_CHUNK = 256


def verify_lines(
    lines: Iterable[str], *, workers: int = 2, deadline_seconds: float = DEADLINE_SECONDS
) -> Iterator[str]:
    """Yields one JSON line, without a line end, for each line that is not blank, in order.

    All lines are checked before the first verdict.

    Raises:
        UserError: a line is not a valid request; names the line and the field.
    """
    requests = [_request(number, line) for number, line in enumerate(lines, start=1) if line.strip()]
    return _verdicts(requests, workers, deadline_seconds)


def _verdicts(requests: list[Request], workers: int, deadline_seconds: float) -> Iterator[str]:
    with asyncio.Runner() as runner:
        pool = GraderPool(workers, deadline_seconds)
        runner.run(pool.start())
        try:
            for start in range(0, len(requests), _CHUNK):
                items = [request.item() for request in requests[start : start + _CHUNK]]
                for verdict in runner.run(pool.grade(items)):
                    yield Reply.of(verdict).model_dump_json()
        finally:
            pool.close()


def _request(number: int, line: str) -> Request:
    try:
        request = Request.model_validate_json(line)
    except ValidationError as error:
        mistake = first_mistake(error.errors(), unnamed="the line")
        raise UserError(
            f"line {number}: {mistake}; expected a JSON object of response, answer, kind, question"
        ) from error
    try:
        check_reference(request.answer, request.kind)
    except UserError as error:
        raise UserError(f"line {number}: {error}") from error
    return request
