"""Seconds and peak memory to score a group under its hints, against a padded forward pass with all logits.

The alternative is the code path of EasyR1, the base of the paper's code, without padding removal
(`verl/workers/actor/dp_actor.py`, `log_probs_from_logits`): one padded batch per context, logits of every position
divided by the temperature, cross-entropy on the response.
"""

from __future__ import annotations

import statistics
from itertools import chain
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from benchmarks import _report
from benchmarks._gpu import SHAPES, VOCABULARY, compared, described, random_model, report
from benchmarks._shapes import (
    ROUNDS,
    THREADS,
    TINY,
    TINY_LENGTHS,
    TINY_WORDS,
    Group,
    case,
    random_group,
    random_qwen3,
    side_by_side,
)
from benchmarks._vllm import prompt_logprobs
from cepo.model.forward import response_logps
from cepo.model.linear import FastLinear

TEMPERATURE = 1.0
SPEED_AIM, MEMORY_AIM = 3.0, 0.25
TOLERANCE = 1e-4
CONTEXTS = {"r+ r-": ("r+", "r-"), "plain r+ r-": ("plain", "r+", "r-")}
SMALL_GROUPS, ALIKE = 8, 15
"""Number of groups in a pass, and length of the prefix that all responses of a small group share."""
CASES = [(32000, "r+ r-"), (32000, "plain r+ r-"), (152000, "r+ r-")]


@torch.no_grad()
def padded(model: Any, group: Group, contexts: tuple[str, ...]) -> Tensor:
    """Log-probs [contexts x samples, response] by the alternative."""
    logps = []
    for context in contexts:
        prompts, responses = group.rows(context)
        ids_BS = torch.tensor([p + r for p, r in zip(prompts, responses, strict=True)], device=model.device)
        logits_BSV = model(input_ids=ids_BS, attention_mask=torch.ones_like(ids_BS), use_cache=False).logits
        logits_BSV.div_(TEMPERATURE)
        length = len(responses[0])
        logits_BTV = logits_BSV[:, -length - 1 : -1]
        logits_NV = logits_BTV.contiguous().view(-1, logits_BTV.shape[-1])
        logps.append(-cross_entropy(logits_NV, ids_BS[:, -length:].flatten(), reduction="none").view(-1, length))
    return torch.cat(logps)


def on_onednn(model: Any, group: Group, contexts: tuple[str, ...]) -> Tensor:
    """The alternative with oneDNN, like ours, for matrix products. Isolates the gain of the tree and the tiles."""
    with FastLinear():
        return padded(model, group, contexts)


@torch.no_grad()
def shared(model: Any, group: Group, contexts: tuple[str, ...]) -> Tensor:
    """Log-probs [contexts x samples, response] by CEPO."""
    return response_logps(model, *group.rows(*contexts), TEMPERATURE)


def measure(vocabulary: int, names: str, rounds: int) -> dict[str, Any]:
    """Compares both for one vocabulary size and set of contexts."""
    model, group, contexts = random_qwen3(vocabulary), random_group(vocabulary), CONTEXTS[names]
    works = {"ours": lambda: shared(model, group, contexts), "alternative": lambda: padded(model, group, contexts)}
    if (vocabulary, names) == CASES[0]:
        works["alternative_with_our_products"] = lambda: on_onednn(model, group, contexts)
    return {"vocabulary": vocabulary, "contexts": names, **case(works, rounds, TOLERANCE)}


def against_vllm(ours: float, rounds: int) -> dict[str, Any]:
    """Seconds of the first case with vLLM's `prompt_logprobs`, and their ratio to `ours`, measured minutes before."""
    vocabulary, names = CASES[0]
    model, group, contexts = random_qwen3(vocabulary), random_group(vocabulary), CONTEXTS[names]
    result = prompt_logprobs(model, *group.rows(*contexts), rounds)
    gap = float((shared(model, group, contexts) - torch.tensor(result["logps"])).abs().max())
    if gap > TOLERANCE:
        raise SystemExit(f"vLLM's log-probs differ by {gap}")
    seconds = statistics.median(result["seconds"])
    return {"seconds": round(seconds, 3), "ratio": round(seconds / ours, 2), "largest_difference": gap}


def small_group(seed: int) -> Group:
    """A group for the tiny model, whose responses share a prefix of ALIKE tokens."""
    group = random_group(TINY_WORDS, TINY_LENGTHS, seed)
    return Group(group.contexts, [group.responses[0][:ALIKE] + response[ALIKE:] for response in group.responses])


def small(rounds: int, threads: int) -> dict[str, Any]:
    """Seconds for several groups of the tiny model: in one pass, one by one, and one by one by the alternative."""
    torch.set_num_threads(threads)
    model = random_qwen3(TINY_WORDS, TINY)
    groups = [small_group(seed) for seed in range(SMALL_GROUPS)]
    contexts = CONTEXTS["r+ r-"]

    @torch.no_grad()
    def in_one_pass() -> Tensor:
        prompts, responses = zip(*(group.rows(*contexts) for group in groups), strict=True)
        return response_logps(model, list(chain(*prompts)), list(chain(*responses)), TEMPERATURE)

    works = {
        "in_one_pass": in_one_pass,
        "one_by_one": lambda: torch.cat([shared(model, group, contexts) for group in groups]),
        "alternative": lambda: torch.cat([padded(model, group, contexts) for group in groups]),
    }
    figures, gap = side_by_side(works, rounds)
    torch.set_num_threads(THREADS)
    if gap > TOLERANCE:
        raise SystemExit(f"log-probs differ by {gap}")
    return {"groups": SMALL_GROUPS, "threads": threads} | {name: one["seconds"] for name, one in figures.items()}


def on_gpu(shape: str) -> dict[str, Any]:
    """Compares both on a model of a real size, with their share of the device's peak rate."""
    model, group, contexts = random_model(shape), random_group(VOCABULARY[shape]), CONTEXTS["r+ r-"]
    works = {"ours": lambda: shared(model, group, contexts), "alternative": lambda: padded(model, group, contexts)}
    return compared(works, model.config, group, *contexts)


def main() -> None:
    """Measures, prints the result and writes it to benchmarks/results/."""
    options = _report.arguments(__doc__, "one case, three rounds; under a minute", SHAPES).parse_args()
    torch.set_num_threads(THREADS)
    if options.gpu:
        report("score", options.gpu, on_gpu(options.gpu), SPEED_AIM)
        return
    cases = [measure(*of, 3 if options.quick else ROUNDS) for of in (CASES[:1] if options.quick else CASES)]
    worst = min(cases, key=lambda one: one["ratio"])
    _report.write(
        "score",
        ours=worst["ours"],
        alternative=worst["alternative"],
        ratio=worst["ratio"],
        aim=SPEED_AIM,
        besides=all(one["memory_ratio"] <= MEMORY_AIM for one in cases),
        memory_aim=MEMORY_AIM,
        cases=cases,
        vllm_prompt_logprobs=None if options.quick else against_vllm(cases[0]["ours"]["seconds"], ROUNDS),
        small=[small(10 * ROUNDS, threads) for threads in (1, THREADS)],
        device=described(),
    )


if __name__ == "__main__":
    main()
