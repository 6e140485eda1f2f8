"""The passes of a learner over its frozen base: adapters, minibatches, micro-batches and collectives."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor, nn

from cepo.algo.batch import TrainBatch
from cepo.messages.groups import ImageRef
from cepo.model.attention import takes_trees
from cepo.model.forward import ResponseStates, response_states
from cepo.model.shared import SharedModel
from cepo.prompts.pixels import Patches
from cepo.run.config import RunConfig
from services.trainer.learning.ranks import Ranks
from services.trainer.learning.splits import microbatches, minibatches, share

POLICY = "default"
"""The adapter that is published."""

ReadPatches = Callable[[ImageRef], Patches]
"""Reads the pixels of an image of the run."""


def no_images(image: ImageRef) -> Patches:
    """The reader of a run without images: every image is unknown."""
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
        return replace(self.states(batch, 1.0), head=head).per_token(lambda values_N, _: values_N)

    def logp(self, batch: TrainBatch) -> Tensor:
        return self.states(batch, 1.0).logp_BT

    @torch.no_grad()
    def blended_logp(self, shares: Mapping[str, float], batch: TrainBatch) -> Tensor:
        """Blends the hidden states and applies the head once: it is linear, so the logits are blended equally."""
        blend_ND = torch.zeros(())
        for adapter, share_of_adapter in shares.items():
            with self.using_adapter(adapter):
                states = self.states(batch, 1.0)
            blend_ND = blend_ND + share_of_adapter * states.hidden_ND.float()
        return replace(states, hidden_ND=blend_ND.to(states.hidden_ND.dtype)).logp_BT

    def states(self, batch: TrainBatch, temperature: float) -> ResponseStates:
        """The hidden states that predict the response tokens of a batch, under the active adapter."""
        images = [[self._features.of(image, self._patches) for image in row] for row in batch.images]
        return response_states(self._model, batch.prompt_ids, batch.response_ids, temperature, images, batch.given)

    def minibatches(self, batch: TrainBatch) -> list[list[int]]:
        return minibatches(batch, self._config.optim.minibatches)

    def microbatches(
        self, batch: TrainBatch, rows: Sequence[int], *, whole_groups: bool = False, passes: int = 1
    ) -> Iterator[list[int]]:
        """The micro-batches of this rank's share of the rows.

        A rank with fewer micro-batches than another makes empty passes afterwards, so that collectives stay in sync.

        Args:
            whole_groups: no group is split.
            passes: the forward passes that the caller makes for each micro-batch.
        """
        tokens = self._config.optim.tokens_per_microbatch
        own_rows = share(batch, rows, self._ranks.rank, self._ranks.size)
        padded = not takes_trees(self._model)
        own = list(microbatches(batch, own_rows, tokens, whole_groups=whole_groups, padded=padded))
        most = self._ranks.all_reduce_max(len(own))
        yield from own
        for _ in range(passes * (most - len(own))):
            self._empty_pass()

    def all_reduce_sum(self, tensors: Sequence[Tensor]) -> None:
        self._ranks.all_reduce_sum(tensors)

    def all_reduce_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        self._ranks.all_reduce_gradients(parameters)

    def _empty_pass(self) -> None:
        """A pass over one token, without effect on gradients: the other ranks need this one's shard of each layer."""
        zero = 0.0 * response_states(self._model, [[0]], [[0]], 1.0).hidden_ND.sum()
        if zero.requires_grad:
            zero.backward()
