"""The line of a log that names what ended a process."""

from __future__ import annotations

from pathlib import Path

import pytest

from cepo.run.causes import root_cause, same_way

VLLM = """\
{"time": "2026-11-30T11:36:48.058Z", "level": "INFO", "service": "rollout", "message": "Triton is installed"}
(EngineCore pid=23245) ERROR 11-30 11:37:02 [core.py:1510] EngineCore failed to start.
(EngineCore pid=23245) ERROR 11-30 11:37:02 [core.py:1510]     raise ValueError(f"{name} does not support LoRA yet.")
(EngineCore pid=23245) ERROR 11-30 11:37:02 [core.py:1510] ValueError: GPT2LMHeadModel does not support LoRA yet.
Traceback (most recent call last):
    raise ValueError(f"{name} does not support LoRA yet.")
ValueError: GPT2LMHeadModel does not support LoRA yet.
Traceback (most recent call last):
    raise RuntimeError(
RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {}
"""
DEAD = """\
(EngineCore pid=9) ERROR 11-30 11:37:02 [core.py:900] EngineCore encountered a fatal error.
(EngineCore pid=9) ERROR 11-30 11:37:02 [core.py:900] IndexError: index out of range in self
vllm.v1.engine.exceptions.EngineDeadError: EngineCore encountered an issue. See stack trace (above) for the root cause.
  + Exception Group Traceback (most recent call last):
  | ExceptionGroup: unhandled errors in a TaskGroup (1 sub-exception)
    | cepo.errors.EngineDown: vLLM's engine process has stopped
"""
KILLED = "cepo.errors.EngineDown: vLLM's engine process has stopped\n"
OURS = """\
{"level": "ERROR", "message": "delivery 1 of 5 failed", "error": "Traceback\\nPolicyError: adapter v3 was evicted"}
  | ExceptionGroup: unhandled errors in a TaskGroup (1 sub-exception)
    | torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB.
"""


@pytest.mark.parametrize(
    ("log", "cause"),
    [
        (VLLM, "ValueError: GPT2LMHeadModel does not support LoRA yet"),
        (DEAD, "IndexError: index out of range in self"),
        (KILLED, ""),
        (OURS, "torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2.00 GiB"),
        ("Killed\n", ""),
        ("a line that is not an Error: of Python\nworked\n", ""),
    ],
)
def test_the_cause_is_the_engines_own_error_and_not_what_passed_it_on(tmp_path: Path, log: str, cause: str) -> None:
    path = tmp_path / "rollout.log"
    path.write_text(log)
    assert root_cause(path) == cause


def test_only_what_a_process_wrote_itself_counts(tmp_path: Path) -> None:
    path = tmp_path / "rollout.log"
    assert root_cause(path) == ""
    path.write_text("ValueError: of the process before\n")
    assert root_cause(path, start=path.stat().st_size) == ""


def test_two_deaths_are_the_same_but_for_addresses_and_numbers() -> None:
    first, second = "OSError: 0x7f12 at 17:02 in pid 4", "OSError: 0x8a33 at 17:05 in pid 9"
    assert same_way(first) == same_way(second) != same_way("OSError: other")
