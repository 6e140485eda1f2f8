"""Trained tokens per second, forward and backward, against a plain padded PEFT loop over the same group.

For each padded micro-batch, the loop computes all logits, the log-probs of the response, the loss and the gradients.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor
from torch.nn.functional import cross_entropy

from benchmarks import _report
from benchmarks._gpu import PRIME_RL, SHAPES, VOCABULARY, compared, described, random_model, report
from benchmarks._shapes import (
    RESPONSE,
    ROUNDS,
    SAMPLES,
    THREADS,
    Group,
    case,
    random_group,
    random_qwen3,
)
from cepo.model.forward import response_logps
from cepo.model.linear import FastLinear
from cepo.run.sections import LINEAR_LAYERS

AIM = 2.0
SIZES = (32000, 152000)
MICROBATCH = 4
"""Sequences per micro-batch of the loop, limited by the logits of 152k words and their gradients."""
TOLERANCE = 1e-5


def with_adapter(base: Any) -> Any:
    """A frozen model with a LoRA adapter of rank 16 on every linear layer, whose matrices are all non-zero."""
    lora = LoraConfig(r=16, lora_alpha=32, target_modules=list(LINEAR_LAYERS), task_type="CAUSAL_LM")
    model = get_peft_model(base, lora)
    for parameter in trained(model):
        torch.nn.init.normal_(parameter.data, std=0.02)
    return model


def trained(model: Any) -> list[Any]:
    """The parameters of the adapter."""
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def padded(model: Any, group: Group, weight_BT: Tensor) -> None:
    """Accumulates the gradients of the weighted log-probs over padded micro-batches."""
    prompts, responses = group.rows("plain")
    ids_BS = torch.tensor([p + r for p, r in zip(prompts, responses, strict=True)], device=weight_BT.device)
    for part_BS, part_BT in zip(ids_BS.split(MICROBATCH), weight_BT.split(MICROBATCH), strict=True):
        logits_BSV = model(input_ids=part_BS, attention_mask=torch.ones_like(part_BS), use_cache=False).logits
        logits_NV = logits_BSV[:, -RESPONSE - 1 : -1].flatten(0, 1)
        logp_N = -cross_entropy(logits_NV, part_BS[:, -RESPONSE:].flatten(), reduction="none")
        (logp_N * part_BT.flatten()).mean().mul(len(part_BS) / SAMPLES).backward()


def on_onednn(model: Any, group: Group, weight_BT: Tensor) -> None:
    """The loop with oneDNN, like ours, for matrix products. Isolates the gain of the tree and the tiles."""
    with FastLinear():
        padded(model, group, weight_BT)


def shared(model: Any, group: Group, weight_BT: Tensor) -> None:
    """Accumulates the same gradients by CEPO."""
    logp_BT = response_logps(model.get_base_model(), *group.rows("plain"), 1.0)
    (logp_BT * weight_BT).mean().backward()


def gradient(model: Any, work: Callable[[], None]) -> Tensor:
    """All gradients after `work`, flattened to one vector."""
    model.zero_grad()
    work()
    return torch.cat([parameter.grad.flatten() for parameter in trained(model)])


def measure(vocabulary: int, rounds: int) -> dict[str, Any]:
    """Compares both for one vocabulary size."""
    model, group = with_adapter(random_qwen3(vocabulary)), random_group(vocabulary)
    weight_BT = torch.randn(SAMPLES, RESPONSE)
    works = {"ours": lambda: shared(model, group, weight_BT), "alternative": lambda: padded(model, group, weight_BT)}
    works["alternative_with_our_products"] = lambda: on_onednn(model, group, weight_BT)
    figures = case({name: partial(gradient, model, work) for name, work in works.items()}, rounds, TOLERANCE)
    for name in works:
        figures[name]["tokens_per_second"] = round(SAMPLES * RESPONSE / figures[name]["seconds"], 1)
    return {"vocabulary": vocabulary, **figures}


def on_gpu(shape: str) -> dict[str, Any]:
    """Compares both on a model of a real size, with their share of the device's peak rate."""
    model, group = with_adapter(random_model(shape)), random_group(VOCABULARY[shape])
    weight_BT = torch.randn(SAMPLES, RESPONSE, device=model.device)
    works = {"ours": lambda: shared(model, group, weight_BT), "alternative": lambda: padded(model, group, weight_BT)}
    gradients = {name: partial(gradient, model, work) for name, work in works.items()}
    result = compared(gradients, model.get_base_model().config, group, "plain", backward=True)
    return result | {"prime_rl": PRIME_RL.get(shape)}


def main() -> None:
    """Measures, prints the result and writes it to benchmarks/results/."""
    options = _report.arguments(__doc__, "one vocabulary, three rounds; under a minute", SHAPES).parse_args()
    torch.set_num_threads(THREADS)
    if options.gpu:
        report("learner", options.gpu, on_gpu(options.gpu), AIM)
        return
    sizes = SIZES[:1] if options.quick else SIZES
    cases = [measure(vocabulary, 3 if options.quick else ROUNDS) for vocabulary in sizes]
    worst = min(cases, key=lambda one: one["ratio"])
    _report.write(
        "learner",
        ours=worst["ours"],
        alternative=worst["alternative"],
        ratio=worst["ratio"],
        aim=AIM,
        cases=cases,
        device=described(),
    )


if __name__ == "__main__":
    main()
