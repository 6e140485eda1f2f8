"""Memory that a forward and backward pass takes above the weights, counted by the learner's own modules.

The pass runs on the meta device, which has shapes and no memory: it needs no GPU and no weights. A count is the peak of
the bytes of live storages. Kernels' workspaces and the fragmentation of the allocator are not counted.

Example: Qwen3-1.7B in bfloat16 with LoRA of rank 16 takes 43 GiB for 16,384 tokens, and 4 GiB with gradient
checkpointing.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_iter

from cepo.model.forward import auto_class, checkpoint_layers, response_states
from cepo.model.head import target_logps
from cepo.model.lora import make_lean

RESPONSE = 512
"""Tokens of a response in the counted group: the shape of the tree hardly changes the count."""


class LiveBytes(TorchDispatchMode):
    """Context that follows the bytes of the storages that operators make within it: `now` and their `peak`."""

    def __init__(self, outside: Any) -> None:
        """
        Args:
            outside: a module whose parameters and buffers do not count.
        """
        super().__init__()
        tensors = [*outside.parameters(), *outside.buffers()]
        self._known = {tensor.untyped_storage()._cdata: None for tensor in tensors}
        self.now = self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in tree_iter(result):
            if isinstance(tensor, torch.Tensor):
                self._follow(tensor.untyped_storage())
        return result

    def _follow(self, storage: torch.UntypedStorage) -> None:
        key = storage._cdata
        if key not in self._known:
            size = storage.nbytes()
            self._known[key] = None
            weakref.finalize(storage, self._freed, key, size)
            self.now += size
            self.peak = max(self.peak, self.now)

    def _freed(self, key: int, size: int) -> None:
        self._known.pop(key, None)
        self.now -= size


def pass_bytes(
    config: Any,
    dtype: str,
    targets: Sequence[str],
    rank: int,
    tokens: int,
    *,
    training: bool = True,
    checkpointing: bool = False,
    device: str = "meta",
) -> int:
    """Peak bytes above the weights of one pass over a group of `tokens` distinct tokens.

    Args:
        config: a transformers configuration.
        dtype: of the base model, such as "bfloat16".
        targets: the layers with an adapter.
        rank: of the adapter.
        training: forward and backward with gradients of the adapter; otherwise a scoring pass.
        checkpointing: gradient checkpointing.
        device: "meta"; "cpu" counts the same pass on real tensors.
    """
    with torch.random.fork_rng([]), torch.device(device):
        model: Any = auto_class(config).from_config(config, dtype=getattr(torch, dtype)).eval().requires_grad_(False)
        peft = get_peft_model(model, LoraConfig(r=rank, target_modules=list(targets)))
    make_lean(peft)
    if checkpointing:
        checkpoint_layers(model)
    prompts, responses = counted_group(tokens, len(model.get_input_embeddings().weight))
    with torch.set_grad_enabled(training), LiveBytes(peft) as live:
        states = response_states(model, prompts, responses, 1.0)
        logp_N = target_logps(states.hidden_ND, states.target_N, model.get_output_embeddings().weight, 1.0)
        if training:
            logp_N.sum().backward()
    return live.peak


def counted_group(tokens: int, words: int) -> tuple[list[list[int]], list[list[int]]]:
    """Prompts and responses with `tokens` distinct tokens: a shared prompt of a fifth, at most 512, and responses."""
    shared = min(RESPONSE, tokens // 5)
    left = tokens - shared
    responses: list[list[int]] = []
    while left > 0:
        size = min(RESPONSE, left)
        responses.append([(len(responses) + place) % words for place in range(size + 1)])  # the last predicts nothing
        left -= size
    return [[words - 1] * shared] * len(responses), responses
