"""The engine's arguments on the CPU, and the error of a dead engine process.

Written against vLLM 0.32, which has both in modules of its engine (`vllm.v1`) without exporting them. Without the
arguments vLLM starts worker processes, which poll each other without pause and for a second after the last token.
"""

from __future__ import annotations

from typing import Any

from vllm.v1.engine.exceptions import EngineDeadError
from vllm.v1.executor.uniproc_executor import UniProcExecutor

from services.rollout.vllm_patches.scheduler import WholeResponses

__all__ = ["EngineDeadError", "cpu_arguments"]


def cpu_arguments(*, whole_responses: bool) -> dict[str, Any]:
    """Arguments of AsyncEngineArgs that keep the worker in the engine's process.

    Args:
        whole_responses: take the scheduler that sends each response in one message.
    """
    arguments: dict[str, Any] = {
        # the class and not its name: vLLM changes "uni" to "mp" because of the thread settings that the launcher makes
        "distributed_executor_backend": UniProcExecutor,
        # a worker in the engine's process computes before it answers, so there is nothing to schedule ahead of
        "async_scheduling": False,
    }
    return arguments | ({"scheduler_cls": WholeResponses} if whole_responses else {})
