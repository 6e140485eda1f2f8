"""A frozen base model with LoRA adapters beside each other, for one user at a time."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from cepo.model.vision import FeatureCache


class Base:
    """One copy of the base: a scorer's alone, or that of a learner who lends it.

    Whoever runs the model, switches its adapters, walks over its modules or reads the RNG holds `turn`.
    """

    def __init__(self, model: Any, peft: Any = None, own: str = "") -> None:
        """Takes a model as it is.

        Args:
            model: a transformers causal LM.
            peft: the PeftModel around it; None until a first adapter is there.
            own: the adapter that its owner trains and finds active; empty: nobody trains here.
        """
        self.model = model
        self.peft = peft
        self.turn = threading.RLock()
        self.features = FeatureCache(model)
        self._own = own

    @contextmanager
    def lent(self) -> Iterator[None]:
        """The model for somebody else than its owner, who finds it as it was: active adapter, gradients, modes, RNG.

        PEFT freezes what it makes inactive; loading an adapter draws random weights first and puts all modules in
        evaluation mode.
        """
        if not self._own:
            with self.turn:
                yield
            return
        device = self.model.device
        with self.turn, torch.random.fork_rng([device] if device.type == "cuda" else []):
            trained = [parameter for parameter in self.peft.parameters() if parameter.requires_grad]
            training = [module for module in self.peft.modules() if module.training]
            try:
                yield
            finally:
                self.peft.base_model.enable_adapter_layers()
                self.peft.set_adapter(self._own)
                for parameter in trained:
                    parameter.requires_grad_(True)
                for module in training:
                    module.training = True
