"""What the rollout worker process can be asked about the adapters it holds."""

from __future__ import annotations

from typing import Any

import torch


class AdapterProbe:
    """Mixed into the engine's worker."""

    model_runner: Any

    def cepo_prepare_cpu(self) -> None:
        """Takes this project's CPU kernels for the adapters, and compiles none.

        vLLM compiles one function even where all else is eager, the count of tokens that are likelier than the one
        taken: it asks for a C++ compiler, and for two seconds at every start.
        """
        from services.rollout.vllm_patches import cpu_lora

        cpu_lora.install()
        torch.compiler.set_stance("force_eager")

    def cepo_bound_modules(self, lora_id: int) -> int:
        """How many of the adapter's modules found a layer; a fused layer counts once for each part."""
        manager = self.model_runner.lora_manager._adapter_manager
        adapter = manager.get_adapter(lora_id)
        bound = 0
        for name in manager.modules:
            weights = manager._get_lora_layer_weights(adapter, name) if adapter else None
            if weights:
                parts = weights.lora_a if isinstance(weights.lora_a, list) else [weights.lora_a]
                bound += sum(part is not None for part in parts)
        return bound
