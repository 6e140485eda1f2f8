"""The passes of a learner over its frozen base: adapters, minibatches, micro-batches and collectives."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor, nn

from cepo.algo.batch import TrainBatch
from cepo.messages.groups import ImageRef
from cepo.model.forward import ResponseStates, response_states
from cepo.model.shared import SharedModel
from cepo.prompts.pixels import Patches
from cepo.run.config import RunConfig
from services.trainer.learning.ranks import Ranks
from services.trainer.learning.splits import microbatches, minibatches, share

POLICY = "default"
"""The adapter that is published."""

ReadPatches = Callable[[ImageRef], Patches]
"""The pixels of an image of the run."""


def no_images(image: ImageRef) -> Patches:
    """The images of a run without any."""
    raise LookupError(image.sha256)


class LearnerContext:
    """The `AuxiliaryContext` of a run; the learner itself uses its passes too.

    Outside `using_adapter` the policy's adapter is the active one.
    """

    def __init__(self, base: SharedModel, config: RunConfig, patches: ReadPatches, ranks: Ranks) -> None:
        self._peft, self._model, self._features = base.peft, base.model, base.features
        self._config = config
        self._patches = patches
        self._ranks = ranks

    @property
    def seed(self) -> int:
        return self._config.loop.seed

    @property
    def hidden_size(self) -> int:
        return int(self._model.get_output_embeddings().weight.shape[1])

    @property
    def max_grad_norm(self) -> float:
        return self._config.optim.max_grad_norm

    def add_adapter(self, adapter: str) -> Sequence[nn.Parameter]:
        self._peft.add_adapter(adapter, self._peft.peft_config[POLICY])
        return [p for name, p in self._peft.named_parameters() if f".{adapter}." in name]

    @contextmanager
    def using_adapter(self, adapter: str) -> Iterator[None]:
        self._peft.set_adapter(adapter)  # it freezes the others, which keep what gradient they have
        try:
            yield
        finally:
            self._peft.set_adapter(POLICY)

    def apply_head(self, head: nn.Module, batch: TrainBatch) -> Tensor:
        return replace(self.states(batch, 1.0), head=head).per_token(lambda found_N, _: found_N)

    def logp(self, batch: TrainBatch) -> Tensor:
        return self.states(batch, 1.0).logp_BT

    @torch.no_grad()
    def blended_logp(self, shares: Mapping[str, float], batch: TrainBatch) -> Tensor:
        """The head is linear: the logits of a blend of states are that blend of logits, and it is met once."""
        blend_ND = torch.zeros(())
        for adapter, part in shares.items():
            with self.using_adapter(adapter):
                states = self.states(batch, 1.0)
            blend_ND = blend_ND + part * states.hidden_ND.float()
        return replace(states, hidden_ND=blend_ND.to(states.hidden_ND.dtype)).logp_BT

    def states(self, batch: TrainBatch, temperature: float) -> ResponseStates:
        """The response tokens of a batch under the active adapter."""
        images = [[self._features.of(image, self._patches) for image in row] for row in batch.images]
        return response_states(self._model, batch.prompt_ids, batch.response_ids, temperature, images)

    def minibatches(self, batch: TrainBatch) -> list[list[int]]:
        return minibatches(batch, self._config.optim.minibatches)

    def microbatches(
        self, batch: TrainBatch, rows: Sequence[int], *, whole_groups: bool = False, passes: int = 1
    ) -> Iterator[list[int]]:
        """Rows of every part of this rank; one that has fewer than another makes empty passes for them."""
        tokens = self._config.optim.tokens_per_microbatch
        own = share(batch, rows, self._ranks.rank, self._ranks.size)
        parts = list(microbatches(batch, own, tokens, whole_groups=whole_groups))
        most = self._ranks.all_reduce_max(len(parts))
        yield from parts
        for _ in range(passes * (most - len(parts))):
            self._pass_nothing()

    def all_reduce_sum(self, tensors: Sequence[Tensor]) -> None:
        self._ranks.all_reduce_sum(tensors)

    def all_reduce_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        self._ranks.all_reduce_gradients(parameters)

    def _pass_nothing(self) -> None:
        """A pass for the other ranks' sake, which need this one's part of each layer: one token, no gradient."""
        nothing = 0.0 * response_states(self._model, [[0]], [[0]], 1.0).hidden_ND.sum()
        if nothing.requires_grad:
            nothing.backward()
