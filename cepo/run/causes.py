r"""The root cause of a process's death, from its log.

An engine that fails writes its own error first, and its parents then write theirs: vLLM's last lines say "Engine core
initialization failed. See root cause above". The cause is therefore the last exception that does not pass on the
failure of another process. The JSON lines of a service report errors that it survived, and are left out:

    (EngineCore pid=7) ERROR 11-30 10:00:00 [core.py:900] ValueError: GPT2LMHeadModel does not support LoRA yet.
    RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {}

    -> "ValueError: GPT2LMHeadModel does not support LoRA yet"
"""

from __future__ import annotations

import re
from pathlib import Path

TAIL_BYTES = 2**20
"""Read from the end of a log."""
_EXCEPTION = re.compile(
    r"(?:[A-Za-z_]\w*\.)*[A-Z]\w*(?:Error|Exception|Exit|Group|Dead|Down|Failed|Unreachable|Fault)\b: \S.*"
)
_PREFIX = re.compile(r"^\s*(?:\([^()]*\)\s*)?(?:(?:ERROR|CRITICAL|FATAL) [\d-]+ [\d:.,]+ (?:\[[^\]]*\] )?)?(?:\|\s*)*")
_PASSED_ON = re.compile(
    r"Engine core initialization failed|See root cause above|WorkerProc initialization failed|EngineDead|EngineDown"
    r"|unhandled errors in a TaskGroup|ExceptionGroup|CancelledError|KeyboardInterrupt|SystemExit"
    r"|EngineCore encountered an issue|EngineCore encountered a fatal error|cancelled"
)
"""Lines by which a process reports that another has failed."""


def root_cause(log: Path, start: int = 0) -> str:
    """The line of the exception that ended a process; empty if its log names none.

    Args:
        start: the size of the log when the process was started; earlier lines are of other processes.
    """
    try:
        with log.open("rb") as file:
            size = file.seek(0, 2)
            file.seek(max(start, size - TAIL_BYTES))
            text = file.read().decode(errors="replace")
    except OSError:
        return ""
    causes = [cause for line in text.splitlines() if (cause := _exception(line)) and not _PASSED_ON.search(cause)]
    return causes[-1] if causes else ""


def same_way(cause: str) -> str:
    """A cause without the numbers and addresses in which two equal failures may differ."""
    return re.sub(r"0x[0-9a-fA-F]+|\d+", "#", cause)


def _exception(line: str) -> str:
    rest = _PREFIX.sub("", line, count=1)
    return rest.strip().rstrip(".") if _EXCEPTION.match(rest) else ""
