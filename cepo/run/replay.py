"""The replay of a run: the responses to the same held-out problems at several policy versions.

Every evaluation asks the same held-out problems, so a replay needs no further sampling: rollouts/ has the responses.
`cepo replay` scores them and writes replay.json, which adds the credit of every token:

    {"method": "CEPO", "versions": [0, 10, 20], "problems": [{"name": "3", "question": "23 + 45 - 17 = ?",
     "answer": "51", "negative": "41", "responses": [{"version": 0, "outcome": "wrong", "reason": "differs from 51",
     "text": "...", "tokens": ["23", ...], "advantage": -1.2, "credit": [-1.2, ...], "delta": [0.0, ...]}, ...]}]}
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

from cepo.run.lines import Row
from cepo.run.rollouts import Rollouts

MAX_VERSIONS = 24
MAX_PROBLEMS = 16
MAX_READ = 256
"""Held-out groups of a version that are read, from the first on."""
REPLAY = "replay.json"
"""The file in the run folder."""


def replay_versions(rollouts: Rollouts) -> list[int]:
    """At most MAX_VERSIONS of the versions that were evaluated, evenly spaced, with the first and the last."""
    versions = [file.number for file in rollouts.files() if file.source == "held-out"]
    if len(versions) <= MAX_VERSIONS:
        return versions
    return [versions[round(at * (len(versions) - 1) / (MAX_VERSIONS - 1))] for at in range(MAX_VERSIONS)]


def recorded(rollouts: Rollouts) -> dict[str, list[tuple[int, Row]]]:
    """The groups of the problems to show, by problem: version and group, in order.

    Problems that the policy learned to solve come first, then others whose outcome changes.
    """
    groups: dict[str, list[tuple[int, Row]]] = {}
    for version in replay_versions(rollouts):
        for group in rollouts.groups("held-out", version, 0, MAX_READ):
            if group.get("samples"):
                groups.setdefault(str(group["group"]).rpartition("/")[2], []).append((version, group))
    whole = {name: each for name, each in groups.items() if len(each) > 1} or groups
    chosen = sorted(whole, key=lambda name: _interest([group for _, group in whole[name]]))[:MAX_PROBLEMS]
    return {name: whole[name] for name in chosen}


def _interest(groups: Sequence[Row]) -> tuple[int, int]:
    """A sort key: the kind of problem, then how often its outcome changes; rarely comes first if it is learned."""
    right = [group["samples"][0].get("outcome") == "correct" for group in groups]
    changes = sum(before != after for before, after in pairwise(right))
    kind = 0 if right[-1] and not right[0] else 1 if changes else 2 if not right[0] else 3
    return kind, changes if kind == 0 else -changes


def replay(folder: Path) -> Row:
    """The replay of a run folder; responses have credit if replay.json has scored them."""
    problems = recorded(Rollouts(folder / "rollouts"))
    scored = _scored(folder / REPLAY)
    method = scored.get("method", "")
    known = {problem["name"]: problem for problem in scored.get("problems", [])}
    shown = [_problem(name, groups, known.get(name, {})) for name, groups in problems.items()]
    versions = sorted({response["version"] for problem in shown for response in problem["responses"]})
    return {"method": method, "versions": versions, "problems": shown}


def _scored(file: Path) -> Row:
    try:
        row = json.loads(file.read_bytes())
    except (OSError, ValueError):
        return {}
    return row if isinstance(row, dict) else {}


def _problem(name: str, groups: Sequence[tuple[int, Row]], scored: Mapping[str, Any]) -> Row:
    credits = {response["version"]: response for response in scored.get("responses", [])}
    responses = []
    for version, group in groups:
        sample = group["samples"][0]
        plain = {key: sample.get(key) for key in ("outcome", "extracted", "reason", "text", "tokens")}
        credit = credits.get(version, {})
        if credit.get("text") != sample.get("text"):
            credit = {}
        responses.append({"version": version, **plain, **credit})
    last = groups[-1][1]
    question = "\n\n".join(str(message.get("content", "")) for message in last.get("prompt", []))
    about = {"name": name, "question": question, "answer": last.get("answer", ""), "images": last.get("images", [])}
    return {**about, "negative": scored.get("negative", ""), "responses": responses}
