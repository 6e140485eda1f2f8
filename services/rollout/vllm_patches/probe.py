"""Methods that the rollout service calls in vLLM's worker process, by `collective_rpc`.

Written against vLLM 0.32, whose public interface does not tell which layers took an adapter's weights. Without this
module an adapter whose names match no layer would be sampled with as if it were the base model.
"""

from __future__ import annotations

from typing import Any

import torch


class AdapterProbe:
    """vLLM's `worker_extension_cls`: mixed into the worker's class."""

    model_runner: Any

    def cepo_prepare_cpu(self, patches: bool) -> None:
        """Prepares the worker for the CPU.

        vLLM compiles one function even in eager mode, the rank of the sampled token. That needs a C++ compiler, and two
        seconds at every start, so compilation is switched off.

        Args:
            patches: install this project's LoRA kernels.
        """
        from services.rollout.vllm_patches import cpu_lora

        if patches:
            cpu_lora.install()
        torch.compiler.set_stance("force_eager")

    def cepo_bound_modules(self, lora_id: int) -> int:
        """The number of the adapter's modules that a layer took; a fused layer counts once for each slice."""
        manager = self.model_runner.lora_manager._adapter_manager
        adapter = manager.get_adapter(lora_id)
        bound = 0
        for name in manager.modules:
            weights = manager._get_lora_layer_weights(adapter, name) if adapter else None
            if weights:
                slices = weights.lora_a if isinstance(weights.lora_a, list) else [weights.lora_a]
                bound += sum(each is not None for each in slices)
        return bound
