"""The model being trained: a frozen base with a LoRA adapter, its optimizer, and one update per step.

An auxiliary model may add adapters of its own beside the policy's, and a colocated scorer may use the base between the
calls of the learner. Only the policy's adapter is published.

Shapes: B sequences, T response tokens (padded).
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict, set_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from safetensors.torch import save
from torch import Tensor

from cepo.algo.base import Algorithm, Metrics
from cepo.algo.batch import TrainBatch
from cepo.algo.methods.distillation import check_support
from cepo.algo.schedules import constant, cosine_with_warmup
from cepo.errors import UserError
from cepo.model.forward import ResponseStates, canary_logps, checkpoint_layers, load_causal_lm
from cepo.model.lora import make_lean
from cepo.model.probe import prove
from cepo.model.shared import SharedModel
from cepo.model.transfer import on_cpu
from cepo.run.config import RunConfig
from cepo.service.adapters import FILES
from services.trainer.learning.context import POLICY, LearnerContext, ReadPatches, no_images
from services.trainer.learning.ranks import SINGLE, Ranks, collective
from services.trainer.learning.update import PolicyUpdate


class Learner:
    """Owns the weights and the optimizer.

    With several ranks, each process has a learner. Rank 0 calls the methods marked `@collective`, and the other ranks
    then call the same method with the same arguments.
    """

    def __init__(self, config: RunConfig, patches: ReadPatches = no_images, ranks: Ranks = SINGLE) -> None:
        """Loads the base and attaches the adapter.

        Args:
            patches: reads the pixels of an image of this run.
            ranks: the processes that share the work.

        Raises:
            UserError: the model cannot be loaded, has no module of `lora.targets`, has one of them in its vision part,
                has too large a vocabulary for the evidence that the algorithm asks for, or is of a family for which
                this project's forward pass is wrong.
        """
        torch.manual_seed(config.loop.seed)
        torch.use_deterministic_algorithms(config.loop.deterministic)
        self._config = config
        self.ranks = ranks
        base = load_causal_lm(config.model.path, config.model.dtype, "cpu", config.model.max_length)
        vocabulary = base.get_output_embeddings().weight.shape[0]
        check_support(config.algorithm.asks, vocabulary, config.sampling.group_tokens)
        self.peft = _with_adapter(base, config)
        self._model: Any = self.peft.get_base_model()
        self.base = SharedModel(self._model, self.peft, trained_adapter=POLICY)
        if config.optim.gradient_checkpointing:
            checkpoint_layers(self._model)
        ranks.shard(self._model, config.engine.device)
        self.parameters = [p for p in self.peft.parameters() if p.requires_grad]
        prove(self._model, config.model.path, self.parameters)
        optim = config.optim
        self.optimizer = torch.optim.AdamW(self.parameters, lr=optim.lr, weight_decay=optim.weight_decay)
        self.context = LearnerContext(self.base, config, patches, ranks)
        self.auxiliary = config.algorithm.auxiliary_model(self.context)
        self.skipped_in_a_row = 0
        """Updates without an optimizer step, because their gradient was not finite, since the last one with a step."""

    @property
    def layers(self) -> int:
        """The number of decoder layers."""
        return int(self._model.config.get_text_config().num_hidden_layers)

    @property
    def bound_modules(self) -> int:
        """The number of modules that the adapter changes."""
        with self.base.lock:
            return sum(isinstance(module, LoraLayer) for module in self.peft.modules())

    def adapter(self) -> dict[str, Tensor]:
        """A copy of the adapter's weights on the CPU, by their names in PEFT's format."""
        with self.base.lock:
            weights: dict[str, Tensor] = on_cpu(get_peft_model_state_dict(self.peft))
        return weights

    def load_adapter(self, adapter: Mapping[str, Tensor]) -> None:
        """Replaces the adapter's weights in this process.

        Raises:
            KeyError, RuntimeError, ValueError: the weights have other names or shapes.
        """
        with self.base.lock:
            set_peft_model_state_dict(self.peft, dict(adapter))

    @contextmanager
    def using_adapter(self, adapter: Mapping[str, Tensor]) -> Iterator[None]:
        """Replaces the adapter's weights within the context, on every rank."""
        trained = self.adapter()
        self._load_adapter_everywhere(adapter)
        try:
            yield
        finally:
            self._load_adapter_everywhere(trained)

    @collective
    def _load_adapter_everywhere(self, adapter: Mapping[str, Tensor]) -> None:
        self.load_adapter(adapter)

    def state_dict(self) -> dict[str, Any]:
        """The state from which the learner resumes bit for bit, including the RNG state. Its tensors are on the CPU."""
        with self.base.lock:  # a scorer that loads an adapter draws random numbers, and restores the RNG state after
            rng = torch.get_rng_state()
        return {
            "adapter": self.adapter(),
            "optimizer": on_cpu(self.optimizer.state_dict()),
            "auxiliary": on_cpu(self.auxiliary.state_dict()),
            "rng": rng,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Loads a saved state, on every rank.

        Raises:
            KeyError, RuntimeError, ValueError: the state has another adapter or auxiliary model.
        """
        self.load_adapter(state["adapter"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.auxiliary.load_state_dict(state["auxiliary"])
        with self.base.lock:
            torch.set_rng_state(state["rng"])
        self.ranks.broadcast_call("load_state_dict", state)  # only now: a state that does not fit raises on rank 0

    @collective
    def canary(self, canary_ids: Sequence[int], *, base: bool = False) -> tuple[float, ...]:
        """The log-probs of the canary's scored tokens under the adapter, or under the base without it."""
        with self.base.lock, self.peft.disable_adapter() if base else nullcontext():
            return canary_logps(self._model, canary_ids)

    def adapter_files(self) -> dict[str, bytes]:
        """The adapter's files in PEFT's format, by name; equal weights give equal bytes."""
        config = self.peft.peft_config[POLICY].to_dict()
        plain = {key: sorted(value) if isinstance(value, set) else value for key, value in config.items()}
        plain["inference_mode"] = True
        text = json.dumps(plain, indent=2, sort_keys=True, default=str)
        weights = {name: value.contiguous() for name, value in sorted(self.adapter().items())}
        return dict(zip(FILES, (text.encode(), save(weights, metadata={"format": "pt"})), strict=True))

    def learning_rate(self, step: int) -> float:
        """The learning rate of a step; steps count from 0."""
        optim = self._config.optim
        if optim.schedule == "constant":
            return optim.lr * constant(1.0, step)
        return optim.lr * cosine_with_warmup(optim.warmup_steps, self._config.loop.steps, step)

    @collective
    def learn(self, batch: TrainBatch, step: int) -> tuple[Tensor, Metrics]:
        """Trains the policy and the auxiliary model on the batch of a step.

        Returns:
            The advantages that the loss followed, [B, T], and the step's metrics.
        """
        algorithm = self._config.algorithm
        with self.base.lock:
            batch = self.auxiliary.prepare(batch, step)
            advantages = algorithm.advantages(batch, step)
            update, measured = self._updated(batch, advantages.adv_BT, algorithm, step)
            metrics = advantages.metrics | measured
            skipped = self.auxiliary.skipped
            metrics |= self.auxiliary.update(batch, step)
            metrics["updates/skipped"] += self.auxiliary.skipped - skipped
            return algorithm.trained_advantages(batch, advantages.adv_BT, update.tokens.logp_BT, step), metrics

    def update(self, batch: TrainBatch, adv_BT: Tensor, algorithm: Algorithm, step: int) -> Metrics:
        """Updates the policy, one optimizer step per mini-batch.

        Returns:
            Metrics of the step: loss, gradient norm, learning rate, clip fractions, the gap to the engine's log-probs,
            trained tokens, seconds, and the algorithm's diagnostics at the trained log-probs.
        """
        return self._updated(batch, adv_BT, algorithm, step)[1]

    def _updated(
        self, batch: TrainBatch, adv_BT: Tensor, algorithm: Algorithm, step: int
    ) -> tuple[PolicyUpdate, Metrics]:
        """Updates the policy. Returns the update, with its tokens summed over all ranks, and its metrics."""
        started = time.perf_counter()
        rate = self.learning_rate(step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        minibatches = self.context.minibatches(batch)
        has_gradient_B = algorithm.has_gradient_B(batch, adv_BT) & algorithm.learns_at(step)
        logp_old_BT = algorithm.logp_old_BT(batch)
        if logp_old_BT is None and len(minibatches) > 1:
            logp_old_BT = self._logp_old_BT(batch, has_gradient_B)
        old_seconds = time.perf_counter() - started
        update = PolicyUpdate(algorithm, batch, adv_BT, has_gradient_B, logp_old_BT)
        for rows in minibatches:
            self._train_minibatch(update, rows)
        metrics = update.metrics(self.ranks, step)
        return update, {**metrics, "learning_rate": rate, "time/old_seconds": old_seconds}

    def _train_minibatch(self, update: PolicyUpdate, rows: list[int]) -> None:
        """Takes one optimizer step on rows of the batch, and records the norm of the gradient before clipping.

        Sequences whose advantage is zero everywhere have no gradient: they count in the loss's denominators and skip
        the model. If all do, nothing changes, the weight decay included, and the norm is 0. A gradient that is not
        finite takes no step either: one NaN would make every weight NaN.
        """
        minibatch = update.batch.rows(rows)
        self.optimizer.zero_grad(set_to_none=True)
        trained = [row for row in rows if update.has_gradient_B[row]]
        if not trained:
            update.grad_norms.append(0.0)
            return
        for micro_rows in self.context.microbatches(update.batch, trained, whole_groups=update.algorithm.whole_groups):
            micro = update.batch.rows(micro_rows).to(self.parameters[0].device)
            update.backward(micro_rows, micro, self._student(micro), minibatch)
        self.context.all_reduce_gradients(self.parameters)
        norm = float(torch.nn.utils.clip_grad_norm_(self.parameters, self._config.optim.max_grad_norm))
        if not math.isfinite(norm):
            update.skipped += 1
            self.skipped_in_a_row += 1
            return
        self.optimizer.step()
        update.grad_norms.append(norm)
        self.skipped_in_a_row = 0

    def _student(self, batch: TrainBatch) -> ResponseStates:
        return self.context.states(batch, self._config.sampling.temperature)

    @torch.no_grad()
    def _logp_old_BT(self, batch: TrainBatch, has_gradient_B: Tensor) -> Tensor:
        """[B, T] log-probs under the current weights; 0 for sequences without a gradient."""
        logp_old_BT = torch.zeros_like(batch.mask_BT)
        for rows in self.context.microbatches(batch, has_gradient_B.nonzero().flatten().tolist()):
            logp_BT = self._student(batch.rows(rows)).logp_BT
            logp_old_BT[rows, : logp_BT.shape[1]] = logp_BT.cpu()
        self.context.all_reduce_sum([logp_old_BT])
        return logp_old_BT


def _with_adapter(base: Any, config: RunConfig) -> Any:
    """The PeftModel around a base, with a new adapter that leaves its outputs unchanged.

    Raises:
        UserError: `lora.targets` names no module of the model, or one in its vision part.
    """
    targets = list(config.lora.targets)
    lora = LoraConfig(
        r=config.lora.rank,
        lora_alpha=config.lora.alpha,
        target_modules=targets,
        lora_dropout=0.0,
        task_type="CAUSAL_LM",
    )
    try:
        peft = get_peft_model(base, lora)
    except ValueError as error:
        raise UserError(f"lora.targets={targets}: {str(error).splitlines()[0]}") from error
    make_lean(peft)
    bound = (name for name, module in peft.named_modules() if isinstance(module, LoraLayer))
    if in_vision := [name for name in bound if ".visual." in name]:
        raise UserError(
            f"lora.targets: {in_vision[0].rpartition('.')[2]} is in the model's vision part, which is not trained; "
            "name modules of the language part only"
        )
    return peft
