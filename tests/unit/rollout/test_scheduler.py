"""A response that was held back equals its outputs put together."""

from __future__ import annotations

import numpy as np
from vllm.v1.engine import EngineCoreOutput, FinishReason
from vllm.v1.outputs import LogprobsLists

from services.rollout.vllm_patches.scheduler import joined


def part(*tokens: int, logprobs: bool = True, finish: FinishReason | None = None) -> EngineCoreOutput:
    column = np.array(tokens)
    lists = LogprobsLists(column[:, None], -column[:, None] / 8, column + 1) if logprobs else None
    stop = None if finish is None else 9
    return EngineCoreOutput("r1", list(tokens), new_logprobs=lists, finish_reason=finish, stop_reason=stop)


def test_parts_are_joined_in_order() -> None:
    whole = joined([part(3), part(4, 5), part(6, finish=FinishReason.STOP)])
    assert (whole.request_id, whole.new_token_ids) == ("r1", [3, 4, 5, 6])
    assert (whole.finish_reason, whole.stop_reason) == (FinishReason.STOP, 9)
    assert whole.new_logprobs is not None
    assert whole.new_logprobs.logprob_token_ids.tolist() == [[3], [4], [5], [6]]
    assert whole.new_logprobs.logprobs.tolist() == [[-3 / 8], [-4 / 8], [-5 / 8], [-6 / 8]]
    assert whole.new_logprobs.sampled_token_ranks.tolist() == [4, 5, 6, 7]


def test_what_has_no_logprobs_gets_none() -> None:
    whole = joined([part(3, logprobs=False), part(4, logprobs=False, finish=FinishReason.LENGTH)])
    assert (whole.new_token_ids, whole.new_logprobs, whole.finish_reason) == ([3, 4], None, FinishReason.LENGTH)
