"""vLLM's scheduler with responses that leave the engine's process in one message instead of a message per token.

Written against vLLM 0.32, which sends every token of every sequence to the serving process, with its log-probs, even if
the request asks for the final output only. For a small model that takes as long as sampling. Without this module
sampling is slower; the responses are the same.
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
    """Holds back the tokens of a request until it ends.

    Applies to requests whose output is FINAL_ONLY. Requests with stop strings are excluded, because the serving process
    has to see each token to find them, and so are requests with prompt log-probs.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._held: dict[str, list[EngineCoreOutput]] = {}

    def add_request(self, request: Any) -> None:
        """Adds a request, and notes whether its tokens are held back."""
        super().add_request(request)
        params = request.sampling_params
        if params is None or params.output_kind != RequestOutputKind.FINAL_ONLY or request.resumable:
            return
        if not params.stop and params.prompt_logprobs is None:
            self._held[request.request_id] = []

    def finish_requests(self, request_ids: Any, finished_status: Any) -> Any:
        """Aborts requests, and drops their held tokens."""
        ended = super().finish_requests(request_ids, finished_status)
        self._held = {name: outputs for name, outputs in self._held.items() if name in self.requests}
        return ended

    def update_from_output(self, scheduler_output: Any, model_runner_output: Any) -> Any:
        """The outputs of a step for each client, without those that are held back."""
        by_client = super().update_from_output(scheduler_output, model_runner_output)
        for client in by_client.values():
            client.outputs = [ready for output in client.outputs if (ready := self._ready(output)) is not None]
        return by_client

    def _ready(self, output: EngineCoreOutput) -> EngineCoreOutput | None:
        """The output to send now: of a request that is not held back, or the joined ones once the last has come."""
        held = self._held.get(output.request_id)
        if held is None:
            return output
        held.append(output)
        return joined(self._held.pop(output.request_id)) if output.finished else None


def joined(outputs: list[EngineCoreOutput]) -> EngineCoreOutput:
    """Joins the outputs of one request: the tokens and log-probs of all, everything else of the last."""
    logprobs = None
    if outputs[0].new_logprobs is not None:
        columns = zip(*(output.new_logprobs[:3] for output in outputs if output.new_logprobs is not None), strict=True)
        logprobs = LogprobsLists(*map(np.concatenate, columns))
    return msgspec.structs.replace(
        outputs[-1],
        new_token_ids=[token for output in outputs for token in output.new_token_ids],
        new_logprobs=logprobs,
        prefill_stats=outputs[0].prefill_stats,
    )
