"""Loads adapters with vLLM's public API alone and writes the prompt's log-probs under each of them to a JSON file.

The engine and its worker run in this process. By default each is a process of its own, which imports vLLM again.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path


def main() -> None:
    job = json.loads(sys.argv[1])
    os.environ.update(VLLM_CPU_KVCACHE_SPACE="1", VLLM_CPU_OMP_THREADS_BIND="nobind", OMP_NUM_THREADS="1")
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    from vllm import LLM, SamplingParams
    from vllm.lora.request import LoRARequest
    from vllm.v1.executor.uniproc_executor import UniProcExecutor

    sizes = {"max_lora_rank": 8, "max_model_len": 128, "max_num_seqs": 4}
    llm = LLM(job["model"], dtype="float32", enable_lora=True, distributed_executor_backend=UniProcExecutor, **sizes)
    params = SamplingParams(max_tokens=1, prompt_logprobs=0)
    prompt = {"prompt_token_ids": job["prompt"]}
    logps = []
    for number, folder in enumerate(job["adapters"], 1):
        output = llm.generate(prompt, params, lora_request=LoRARequest(f"a{number}", number, folder), use_tqdm=False)
        rows = output[0].prompt_logprobs[1:]
        logps.append([row[token].logprob for token, row in zip(job["prompt"][1:], rows, strict=True)])
    Path(job["out"]).write_text(json.dumps(logps))


if __name__ == "__main__":
    main()
    os._exit(0)  # the result is written; on a normal exit vLLM's threads can abort the interpreter
