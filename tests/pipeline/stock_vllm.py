"""Loads adapters in vLLM as anybody would and writes the prompt's log-probs under each to a JSON file."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path


def main() -> None:
    job = json.loads(sys.argv[1])
    os.environ.update(VLLM_CPU_KVCACHE_SPACE="1", VLLM_CPU_OMP_THREADS_BIND="nobind", OMP_NUM_THREADS="1")
    from vllm import LLM, SamplingParams
    from vllm.lora.request import LoRARequest

    llm = LLM(model=job["model"], dtype="float32", enable_lora=True, max_lora_rank=8, max_model_len=128, max_num_seqs=4)
    params = SamplingParams(max_tokens=1, prompt_logprobs=0)
    prompt = {"prompt_token_ids": job["prompt"]}
    found = []
    for number, folder in enumerate(job["adapters"], 1):
        output = llm.generate(prompt, params, lora_request=LoRARequest(f"a{number}", number, folder), use_tqdm=False)
        rows = output[0].prompt_logprobs[1:]
        found.append([row[token].logprob for token, row in zip(job["prompt"][1:], rows, strict=True)])
    Path(job["out"]).write_text(json.dumps(found))


if __name__ == "__main__":
    main()
    os._exit(0)  # the work is written; vLLM's own threads can abort an interpreter that ends by itself
