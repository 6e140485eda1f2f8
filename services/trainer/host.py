"""What the learner lends a companion: adapters of its own on the frozen base, and the step's pieces."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from cepo.algo.batch import TrainBatch
from cepo.contracts import ImageRef
from cepo.forward import ResponseStates, response_states
from cepo.pixels import Patches
from cepo.runconfig import RunConfig
from services.trainer.ranks import Ranks
from services.trainer.splits import microbatches, minibatches, share

POLICY = "default"
"""The adapter that is published."""

ReadPatches = Callable[[ImageRef], Patches]
"""The pixels of an image of the run."""


def no_images(image: ImageRef) -> Patches:
    """The images of a run without any."""
    raise LookupError(image.sha256)


class Host:
    """Reads the base under other adapters than the policy's; in between, the policy's is the active one."""

    def __init__(self, peft: Any, config: RunConfig, patches: ReadPatches, ranks: Ranks) -> None:
        self._peft = peft
        self._model: Any = peft.get_base_model()
        self._config = config
        self._patches = patches
        self._ranks = ranks
        self._weights: dict[str, list[nn.Parameter]] = {}

    @property
    def seed(self) -> int:
        return self._config.loop.seed

    @property
    def hidden_size(self) -> int:
        return int(self._model.get_output_embeddings().weight.shape[1])

    @property
    def max_grad_norm(self) -> float:
        return self._config.optim.max_grad_norm

    def attach(self, adapter: str) -> Sequence[nn.Parameter]:
        self._peft.add_adapter(adapter, self._peft.peft_config[POLICY])
        self._weights[adapter] = [p for name, p in self._peft.named_parameters() if f".{adapter}." in name]
        return self._weights[adapter]

    def read(self, adapter: str, head: nn.Module, batch: TrainBatch) -> Tensor:
        with self._active(adapter):
            states = self.states(batch, 1.0)
        return replace(states, head=head).per_token(lambda found_N, _: found_N)

    def states(self, batch: TrainBatch, temperature: float) -> ResponseStates:
        """The response tokens of a batch under the active adapter."""
        images = [[self._patches(image) for image in row] for row in batch.images]
        return response_states(self._model, batch.prompt_ids, batch.response_ids, temperature, images)

    def minibatches(self, batch: TrainBatch) -> list[list[int]]:
        return minibatches(batch, self._config.optim.minibatches)

    def microbatches(
        self, batch: TrainBatch, rows: Sequence[int], *, whole_groups: bool = False
    ) -> Iterator[list[int]]:
        """Rows of every pass of this rank; one that has fewer passes than another takes empty ones for them."""
        tokens = self._config.optim.tokens_per_microbatch
        own = share(batch, rows, self._ranks.rank, self._ranks.size)
        parts = list(microbatches(batch, own, tokens, whole_groups=whole_groups))
        most = self._ranks.most(len(parts))
        yield from parts
        for _ in range(len(parts), most):
            self._pass_nothing()

    def add_up(self, tensors: Sequence[Tensor]) -> None:
        self._ranks.add_up(tensors)

    def add_up_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        self._ranks.add_up_gradients(parameters)

    def _pass_nothing(self) -> None:
        """A pass for the other ranks' sake, which need this one's part of each layer: one token, no gradient."""
        nothing = 0.0 * response_states(self._model, [[0]], [[0]], 1.0).hidden_ND.sum()
        if nothing.requires_grad:
            nothing.backward()

    @contextmanager
    def _active(self, adapter: str) -> Iterator[None]:
        """Switches adapters; PEFT freezes what it makes inactive, and backward is yet to come."""
        self._peft.set_adapter(adapter)
        try:
            yield
        finally:
            self._peft.set_adapter(POLICY)
            for parameter in self._weights[adapter]:
                parameter.requires_grad_(True)
