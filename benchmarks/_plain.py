"""Trains with GRPO in a plain loop of transformers and PEFT: `python _plain.py TASK.json`.

`train.py` writes the task. The last line printed is the result as JSON. The script imports nothing of the project. It
is the straightforward implementation: samples from `generate`, log-probs of padded micro-batches with all their logits,
gradient checkpointing, AdamW.

Legend: B sequences, S tokens of prompt and response, T tokens of the response.
"""

from __future__ import annotations

import json
import resource
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM, AutoTokenizer

SAMPLED_TOGETHER = 128
"""Sequences per call of `generate`, which keeps the keys and values of all of them until the longest ends."""
MICROBATCH = 4
"""Sequences per micro-batch, limited by the logits of 151,936 words and their gradients."""
FIGURES = ("step_seconds", "rollout_seconds", "train_seconds", "response_tokens")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def load(task: SimpleNamespace) -> Any:
    """The model with a new LoRA adapter."""
    dtype = torch.bfloat16 if DEVICE == "cuda" else torch.float32
    base = AutoModelForCausalLM.from_pretrained(task.model, dtype=dtype).to(DEVICE)
    base.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    lora = LoraConfig(r=task.rank, lora_alpha=task.alpha, target_modules=task.targets, task_type="CAUSAL_LM")
    return get_peft_model(base, lora)


@torch.no_grad()
def sampled(model: Any, ids_BS: Tensor, mask_BS: Tensor, max_tokens: int) -> Tensor:
    """Samples responses [B, T], padded on the right."""
    model.eval()
    parts = []
    for part_BS, seen_BS in zip(ids_BS.split(SAMPLED_TOGETHER), mask_BS.split(SAMPLED_TOGETHER), strict=True):
        whole_BS = model.generate(
            input_ids=part_BS, attention_mask=seen_BS, max_new_tokens=max_tokens, do_sample=True, top_k=0, top_p=1.0
        )
        padding = max_tokens - (whole_BS.shape[1] - part_BS.shape[1])
        pad = model.generation_config.pad_token_id
        parts.append(torch.nn.functional.pad(whole_BS[:, part_BS.shape[1] :], (0, padding), value=pad))
    return torch.cat(parts)


def logps(model: Any, ids_BS: Tensor, mask_BS: Tensor, length: int) -> Tensor:
    """Log-probs [B, T] of the last `length` tokens."""
    logits_BSV = model(input_ids=ids_BS, attention_mask=mask_BS, use_cache=False).logits
    logits_NV = logits_BSV[:, -length - 1 : -1].flatten(0, 1).float()
    return -cross_entropy(logits_NV, ids_BS[:, -length:].flatten(), reduction="none").view(-1, length)


def update(model: Any, optimizer: Any, ids_BS: Tensor, mask_BS: Tensor, said_BT: Tensor, adv_B: Tensor) -> None:
    """One optimizer step on the GRPO objective, a mean over tokens. Clipping never applies: the ratio is 1."""
    model.train()
    optimizer.zero_grad()
    rows = (tensor.split(MICROBATCH) for tensor in (ids_BS, mask_BS, said_BT, adv_B))
    for part_BS, seen_BS, part_BT, part_B in zip(*rows, strict=True):
        logp_BT = logps(model, part_BS, seen_BS, said_BT.shape[1])
        ratio_BT = (logp_BT - logp_BT.detach()).exp()
        (-(part_B[:, None] * ratio_BT * part_BT).sum() / said_BT.sum()).backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    optimizer.step()


def digits(text: str) -> float:
    """The share of digits in a response."""
    return sum(letter.isdigit() for letter in text) / max(1, len(text))


def step(model: Any, optimizer: Any, tokenizer: Any, task: SimpleNamespace, rows: list[Any]) -> tuple[float, ...]:
    """Samples, grades and trains on one batch. Returns the FIGURES of the step."""
    begun = now()
    turns = [row["prompt"] for row in rows for _ in range(task.samples)]
    options = {"padding": True, "return_tensors": "pt", "return_dict": True, "add_generation_prompt": True}
    prompts = tokenizer.apply_chat_template(turns, **options).to(DEVICE)
    said_BT = sampled(model, prompts["input_ids"], prompts["attention_mask"], task.max_tokens)
    rolled_out = now()
    end_BT = said_BT == tokenizer.eos_token_id
    mask_BT = (end_BT.cumsum(1) - end_BT.long() == 0).long()
    texts = tokenizer.batch_decode(said_BT * mask_BT, skip_special_tokens=True)
    reward_GN = torch.tensor([digits(text) for text in texts], device=DEVICE).view(len(rows), task.samples)
    adv_GN = (reward_GN - reward_GN.mean(1, keepdim=True)) / (reward_GN.std(1, keepdim=True) + 1e-4)
    ids_BS = torch.cat([prompts["input_ids"], said_BT], dim=1)
    mask_BS = torch.cat([prompts["attention_mask"], mask_BT], dim=1)
    learning = now()
    update(model, optimizer, ids_BS, mask_BS, mask_BT, adv_GN.flatten())
    ended = now()
    return ended - begun, rolled_out - begun, ended - learning, float(mask_BT.sum(1).float().mean())


def now() -> float:
    """The time in seconds, after the GPU has finished its queued work."""
    if DEVICE == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter()


def peak_mebibytes() -> float:
    """Peak GPU memory that PyTorch has reserved, or peak resident memory on the CPU, in MiB."""
    if DEVICE == "cuda":
        return torch.cuda.max_memory_reserved() / 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def main() -> None:
    """Trains; prints the figures of every step but the first, which warms up."""
    task = SimpleNamespace(**json.loads(Path(sys.argv[1]).read_text()))
    torch.set_num_threads(task.threads)
    torch.manual_seed(task.seed)
    tokenizer = AutoTokenizer.from_pretrained(task.model, padding_side="left")
    model = load(task)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=task.lr, weight_decay=0.0)
    rows = [task.rows[at : at + task.prompts] for at in range(0, len(task.rows), task.prompts)]
    results = [step(model, optimizer, tokenizer, task, part) for part in rows]
    figures = dict(zip(FIGURES, zip(*results[1:], strict=True), strict=True))
    print(json.dumps(figures | {"mebibytes_trainer": [peak_mebibytes()]}))  # noqa: T201 read by the benchmark


if __name__ == "__main__":
    main()
