"""An agent on the OpenAI SDK trains the tiny model: real vLLM, Redis, gRPC and processes."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from cepo import tiny
from cepo.messages.hints import INSTRUCTION
from tests.helpers.agent import solve
from tests.pipeline.support import SLOW_SECONDS, command, rows, started, wait_until

pytestmark = [pytest.mark.slow, pytest.mark.nightly, pytest.mark.timeout(600)]

PROMPTS, SAMPLES, STEPS = 4, 4, 2
SETTINGS = (
    "data.source=groups",
    "data.eval=",
    f"loop.steps={STEPS}",
    f"sampling.prompts={PROMPTS}",
    f"sampling.samples={SAMPLES}",
    "sampling.max_tokens=100",
    "engine.max_num_seqs=32",
)


async def train(url: str) -> list[dict[str, Any]]:
    """Lets an agent solve the problems of every step, and returns what its sessions were told at their end."""
    lines = (tiny.path().parent / "data" / "train.jsonl").read_text().splitlines()
    problems = [json.loads(line) for line in lines[: PROMPTS * STEPS]]
    questions = [f"{row['question']}\n{INSTRUCTION}" for row in problems]
    replies: list[dict[str, Any]] = []
    async with openai.AsyncOpenAI(base_url=f"{url}/v1", api_key="none", timeout=300) as client:
        for step in range(STEPS):
            solving = [
                solve(client, f"{at}-{i}", f"task-{at}", questions[at], problems[at]["answer"])
                for at in range(step * PROMPTS, (step + 1) * PROMPTS)
                for i in range(SAMPLES)
            ]
            replies += await asyncio.gather(*solving)
    return replies


def test_an_agent_on_the_openai_sdk_trains_the_tiny_model(tmp_path: Path) -> None:
    run_dir = tmp_path / "run"

    def ready() -> bool:
        try:
            url = json.loads((run_dir / "services.json").read_text())["http"]["rollout"]
            return httpx.get(f"{url}/readyz", timeout=SLOW_SECONDS).status_code == 200
        except (OSError, httpx.HTTPError):
            return False

    with started(command(run_dir, settings=SETTINGS)) as process:
        wait_until(ready, process)
        url = json.loads((run_dir / "services.json").read_text())["http"]["rollout"]
        replies = asyncio.run(train(url))
        metrics = httpx.get(f"{url}/metrics", timeout=SLOW_SECONDS).text
        printed, _ = process.communicate()
    assert process.returncode == 0, printed
    assert {reply["step"] for reply in replies} == {None, *range(STEPS)}
    assert "cepo_session_splits_total" in metrics
    trained = rows(run_dir)
    assert [row["policy_version"] for row in trained] == list(range(STEPS))
    for row in trained:
        assert row["groups/failed"] == 0
        assert row["length/turns"] > 1
        assert row["tokens/given"] > 0
        assert row["tokens/trained"] > 0
        assert row["rollout/logp_gap"] < 1e-3
