"""A frozen base model with several LoRA adapters, shared by its users one at a time."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from cepo.model.vision import FeatureCache


class SharedModel:
    """One copy of the base model, used by a scorer alone or by a learner and a colocated scorer.

    Hold `lock` to run the model, switch its adapters, walk over its modules or read the random number generator.
    """

    def __init__(self, model: Any, peft: Any = None, trained_adapter: str = "") -> None:
        """Wraps a loaded model without changing it.

        Args:
            model: a transformers causal LM.
            peft: the PeftModel around it; None until the first adapter is loaded.
            trained_adapter: the adapter that the learner trains and expects to be active; empty without a learner.
        """
        self.model = model
        self.peft = peft
        self.lock = threading.RLock()
        self.features = FeatureCache(model)
        self._trained_adapter = trained_adapter

    @contextmanager
    def exclusive(self) -> Iterator[None]:
        """Holds the lock for a scorer, and restores the learner's state at the end.

        The state is the active adapter, `requires_grad`, the training mode of each module and the random number
        generators. PEFT freezes the adapters it deactivates; loading an adapter draws random weights and puts every
        module in evaluation mode.
        """
        if not self._trained_adapter:
            with self.lock:
                yield
            return
        device = self.model.device
        with self.lock, torch.random.fork_rng([device] if device.type == "cuda" else []):
            trained = [parameter for parameter in self.peft.parameters() if parameter.requires_grad]
            training = [module for module in self.peft.modules() if module.training]
            try:
                yield
            finally:
                self.peft.base_model.enable_adapter_layers()
                self.peft.set_adapter(self._trained_adapter)
                for parameter in trained:
                    parameter.requires_grad_(True)
                for module in training:
                    module.training = True
