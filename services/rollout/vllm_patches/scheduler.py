"""vLLM's scheduler with responses that leave the engine's process whole, not a token at a time.

Every token of every sequence is else a message of its own to the serving process, log-probs included, which for a small
model takes as long as sampling it. Whoever reads a response only once it is complete loses nothing.
"""

from __future__ import annotations

from typing import Any

import msgspec
import numpy as np
from vllm.sampling_params import RequestOutputKind
from vllm.v1.core.sched.scheduler import Scheduler
from vllm.v1.engine import EngineCoreOutput
from vllm.v1.outputs import LogprobsLists


class WholeResponses(Scheduler):
    """Holds the tokens of a request back until it ends, where its output is final only and no text ends it."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._held: dict[str, list[EngineCoreOutput]] = {}

    def add_request(self, request: Any) -> None:
        """As vLLM's."""
        super().add_request(request)
        params = request.sampling_params
        if params is None or params.output_kind != RequestOutputKind.FINAL_ONLY or request.resumable:
            return
        if not params.stop and params.prompt_logprobs is None:
            self._held[request.request_id] = []

    def finish_requests(self, request_ids: Any, finished_status: Any) -> Any:
        """As vLLM's: requests that are given up."""
        ended = super().finish_requests(request_ids, finished_status)
        self._held = {name: parts for name, parts in self._held.items() if name in self.requests}
        return ended

    def update_from_output(self, scheduler_output: Any, model_runner_output: Any) -> Any:
        """As vLLM's, without what is held."""
        found = super().update_from_output(scheduler_output, model_runner_output)
        for of_client in found.values():
            of_client.outputs = [whole for part in of_client.outputs if (whole := self._whole(part)) is not None]
        return found

    def _whole(self, part: EngineCoreOutput) -> EngineCoreOutput | None:
        """What leaves now: the part of a request that is not held, or all parts once the last is there."""
        parts = self._held.get(part.request_id)
        if parts is None:
            return part
        parts.append(part)
        return joined(self._held.pop(part.request_id)) if part.finished else None


def joined(parts: list[EngineCoreOutput]) -> EngineCoreOutput:
    """The parts of one response as if it had come at once."""
    logprobs = None
    if parts[0].new_logprobs is not None:
        columns = zip(*(part.new_logprobs[:3] for part in parts if part.new_logprobs is not None), strict=True)
        logprobs = LogprobsLists(*map(np.concatenate, columns))
    return msgspec.structs.replace(
        parts[-1],
        new_token_ids=[token for part in parts for token in part.new_token_ids],
        new_logprobs=logprobs,
        prefill_stats=parts[0].prefill_stats,
    )
