"""Process reward models behind HTTP: each reasoning step of a response gets a score.

    POST URL   {"question": "...", "steps": ["...", "..."]}   ->   200   {"scores": [0.9, 0.1]}

The steps joined together are the response. The reply holds one finite number for each step. A setting of the process
(CEPO_STEP_SCORERS) lists the URLs, so no message can make the verifier call another one. If a scorer fails, the sample
fails and the run continues.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence
from typing import Annotated

import httpx
from pydantic import BaseModel, Field, ValidationError

from cepo.errors import UserError
from cepo.messages.groups import Completion, Outcome, Reward, RolloutGroup, Verdict
from cepo.prompts.steps import steps
from cepo.service.hooks import one_line

_log = logging.getLogger(__name__)
DEADLINE_SECONDS = 30.0
"""For one response, retries included."""
CONNECT_RETRIES = 3
"""Only failed connection attempts are retried, not error replies."""
MAX_REQUESTS = 64
"""Requests that are open at the same time."""


class Scores(BaseModel):
    """The reply of a scorer."""

    scores: tuple[Annotated[float, Field(allow_inf_nan=False)], ...]


class StepScorers:
    """Calls the step scorers that this process was started with."""

    def __init__(self, addresses: Sequence[str], deadline_seconds: float = DEADLINE_SECONDS) -> None:
        """Opens no connection yet."""
        self._addresses = tuple(addresses)
        self._deadline_seconds = deadline_seconds
        self._slots = asyncio.Semaphore(MAX_REQUESTS)

    def check_allowed(self, rule: Reward) -> None:
        """Checks that this process was started with the scorer of a rule.

        Raises:
            UserError: names the scorer that is missing.
        """
        if rule.scorer and rule.scorer not in self._addresses:
            raise UserError(
                f"step scorer {rule.scorer} is not one this verifier calls; start it with "
                f"CEPO_STEP_SCORERS={rule.scorer}"
            )

    async def scored(self, group: RolloutGroup, verdicts: Sequence[Verdict]) -> tuple[Verdict, ...]:
        """Adds step scores to the verdicts if the task names a scorer; its failure marks a verdict failed."""
        if not group.task.reward.scorer:
            return tuple(verdicts)
        transport = httpx.AsyncHTTPTransport(retries=CONNECT_RETRIES)
        async with httpx.AsyncClient(transport=transport, timeout=None) as client:  # the deadline covers each response
            pairs = zip(group.completions, verdicts, strict=True)
            return tuple(await asyncio.gather(*(self._one(client, group, c, v) for c, v in pairs)))

    async def _one(
        self, client: httpx.AsyncClient, group: RolloutGroup, completion: Completion, verdict: Verdict
    ) -> Verdict:
        if verdict.failed or not completion.text.strip():
            return verdict
        task = group.task
        parts = steps(completion.text, task.step_delimiter)
        try:
            async with self._slots, asyncio.timeout(self._deadline_seconds):
                body = {"question": task.messages[-1].content, "steps": parts}
                reply = await client.post(task.reward.scorer, json=body)
                reply.raise_for_status()
                scores = Scores.model_validate_json(reply.content).scores
        except TimeoutError:
            return _failed(verdict, Outcome.TIMEOUT, f"took longer than {self._deadline_seconds:g} s")
        except httpx.HTTPStatusError as error:
            return _failed(verdict, Outcome.GRADER_ERROR, f"answered {error.response.status_code}")
        except httpx.HTTPError as error:
            return _failed(verdict, Outcome.GRADER_ERROR, f"is not reached: {one_line(error)}")
        except ValidationError as error:
            return _failed(verdict, Outcome.GRADER_ERROR, f"answered no scores: {error.errors()[0]['msg']}")
        if len(scores) != len(parts):
            return _failed(verdict, Outcome.GRADER_ERROR, f"answered {len(scores)} scores for {len(parts)} steps")
        return verdict.model_copy(update={"step_rewards": scores})


def _failed(verdict: Verdict, outcome: Outcome, what: str) -> Verdict:
    reason = f"the step scorer {what}"
    _log.warning("%s", reason)
    return verdict.model_copy(update={"outcome": outcome, "reason": reason, "accuracy": 0.0, "reward": 0.0})
