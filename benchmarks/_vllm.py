"""Scores the rows of a group with vLLM's `prompt_logprobs` in a separate process: `python -m benchmarks._vllm FOLDER`.

The folder contains the model and `rows.json`. The last line printed is the result as JSON: the seconds of every round
and the log-probs. vLLM does not use its prefix cache for prompt log-probs, so it computes every row in full.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks._shapes import THREADS, Ids
from cepo.net.environment import child_environment

ENVIRONMENT = {
    "OMP_NUM_THREADS": str(THREADS),
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_NO_USAGE_STATS": "1",
}


def prompt_logprobs(model: Any, prompts: Sequence[Ids], responses: Sequence[Ids], rounds: int) -> dict[str, Any]:
    """Runs the process. Returns `seconds` of every round, and `logps`: a list of response log-probs for each row."""
    with TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        rows = [[*prompt, *response] for prompt, response in zip(prompts, responses, strict=True)]
        task = {"rows": rows, "last": [len(response) for response in responses], "rounds": rounds}
        (Path(folder) / "rows.json").write_text(json.dumps(task))
        words = [sys.executable, "-m", "benchmarks._vllm", folder]
        ended = subprocess.run(words, env=child_environment(ENVIRONMENT), stdout=subprocess.PIPE, text=True, check=True)
    result: dict[str, Any] = json.loads(ended.stdout.splitlines()[-1])
    return result


def main(folder: Path) -> None:
    """Measures and prints the result."""
    from vllm import LLM, SamplingParams
    from vllm.v1.executor.uniproc_executor import UniProcExecutor

    task = json.loads((folder / "rows.json").read_text())
    longest = max(map(len, task["rows"])) + 1
    llm = LLM(
        model=str(folder),
        skip_tokenizer_init=True,
        dtype="float32",
        max_model_len=longest,
        max_num_batched_tokens=longest * len(task["rows"]),
        max_num_seqs=len(task["rows"]),
        distributed_executor_backend=UniProcExecutor,
    )
    params = SamplingParams(max_tokens=1, temperature=0.0, prompt_logprobs=0, detokenize=False)
    seconds = []
    for _ in range(task["rounds"] + 1):
        begun = time.perf_counter()
        outputs = llm.generate([{"prompt_token_ids": row} for row in task["rows"]], params, use_tqdm=False)
        seconds.append(time.perf_counter() - begun)
    logps = [
        [place[token].logprob for token, place in zip(row[-last:], output.prompt_logprobs[-last:], strict=True)]
        for row, last, output in zip(task["rows"], task["last"], outputs, strict=True)
    ]
    print(json.dumps({"seconds": seconds[1:], "logps": logps}))  # noqa: T201 read by the benchmark


if __name__ == "__main__":
    main(Path(sys.argv[1]))
