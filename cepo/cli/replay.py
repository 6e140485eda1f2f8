"""`cepo replay RUN_DIR`: scores the responses to the same held-out problems at several policy versions."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from cepo.cli.credit_files import configuration, of_group, with_images
from cepo.credit import CreditReply, CreditRequest, ResponseCredit
from cepo.errors import UserError
from cepo.messages.groups import BASE_POLICY
from cepo.net.files import replace_file
from cepo.run.lines import Row
from cepo.run.replay import REPLAY, recorded, replay as read_replay, replay_versions
from cepo.run.rollouts import Rollouts


def replay(
    run_dir: Annotated[Path, typer.Argument(metavar="RUN_DIR", help="The folder of a run.")],
    *,
    html: Annotated[
        Path | None, typer.Option("--html", metavar="OUT", help="Also write the replay as one HTML file.")
    ] = None,
    model: Annotated[
        str | None, typer.Option("--model", help="The model that scores.", show_default="the run's base model")
    ] = None,
) -> None:
    """Writes RUN_DIR/replay.json, which the dashboard shows.

    Raises:
        UserError: the run has no held-out responses, or they cannot be scored.
    """
    from cepo.cli.credit import scored

    problems = recorded(Rollouts(run_dir / "rollouts"))
    if not problems:
        raise UserError(
            f"{run_dir} has no held-out responses: a replay needs data.eval, and telemetry.rollouts_per_step above 0"
        )
    config = configuration(run_dir)
    requests = [with_images(_request(groups, run_dir, config), run_dir) for groups in problems.values()]
    name = model or str(config.get("model", {}).get("path", ""))
    places = [f"problem {name}: " for name in problems]

    async def replies() -> list[CreditReply]:
        return [reply async for reply in scored(requests, places, name, BASE_POLICY, {})]

    rows = [
        _scored_problem(*problem, reply)
        for problem, reply in zip(problems.items(), asyncio.run(replies()), strict=True)
    ]
    method = requests[0].method.name.upper()
    replace_file(run_dir / REPLAY, json.dumps({"method": method, "problems": rows}))
    versions = ", ".join(f"v{version}" for version in replay_versions(Rollouts(run_dir / "rollouts")))
    print(f"{len(rows)} held-out problems at {versions}: {run_dir / REPLAY}, shown by the dashboard")
    if html is not None:
        from cepo.dashboard.page import replay_page

        replace_file(html, replay_page(run_dir.resolve().name, read_replay(run_dir)))
        print(f"replay written to {html}")


def _request(groups: Sequence[tuple[int, Row]], run_dir: Path, config: dict[str, Any]) -> CreditRequest:
    """A request whose responses are those of the versions, so that they are contrasted with the same wrong answer."""
    samples = [group["samples"][0] for _, group in groups]
    return CreditRequest.model_validate(of_group({**groups[-1][1], "samples": samples}, run_dir, config))


def _scored_problem(name: str, groups: Sequence[tuple[int, Row]], reply: CreditReply) -> Row:
    responses = []
    for (version, group), response in zip(groups, reply.responses, strict=True):
        responses.append({"version": version, "text": group["samples"][0]["text"], **_credit(response)})
    return {
        "name": name,
        "negative": next((r.negative.answer for r in reply.responses if r.negative.answer), ""),
        "responses": responses,
    }


def _credit(response: ResponseCredit) -> Row:
    return {
        "advantage": response.advantage,
        "credit": [round(token.advantage, 6) for token in response.tokens],
        "delta": [round(token.delta, 6) for token in response.tokens],
        "tokens": [token.text for token in response.tokens],
    }
