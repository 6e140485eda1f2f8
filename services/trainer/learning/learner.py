"""The model being trained: a frozen base with a LoRA adapter, its optimiser, and one update per step.

An auxiliary model may add an adapter of its own, and so may a scorer, which uses the base between the learner's passes.
Only the policy's adapter is published.

Sequences whose advantage is zero everywhere have no gradient; they count in the denominators and skip the model. The
old log-probs are the trainer's own, with the weights at the start of the step.
"""

from __future__ import annotations

import json
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
from cepo.algo.diagnostics import engine_metrics
from cepo.algo.methods.distillation import check_support
from cepo.algo.schedules import constant, cosine_with_warmup
from cepo.errors import UserError
from cepo.model.forward import ResponseStates, canary_logp, checkpoint_layers, load_causal_lm
from cepo.model.lora import make_lean
from cepo.model.shared import SharedModel
from cepo.run.config import RunConfig
from cepo.service.adapters import FILES
from services.trainer.learning.context import POLICY, LearnerContext, ReadPatches, no_images
from services.trainer.learning.ranks import ALONE, Ranks, together
from services.trainer.learning.sums import Seen, Sums


class Learner:
    """Owns the weights and the optimiser."""

    def __init__(self, config: RunConfig, patches: ReadPatches = no_images, ranks: Ranks = ALONE) -> None:
        """Loads the base and attaches the adapter.

        Args:
            patches: the pixels of an image of this run.
            ranks: the processes that share the work; each has a learner.

        Raises:
            UserError: the model cannot be loaded, has no module of `lora.targets`, has one in its vision part, or too
                large a vocabulary.
        """
        torch.manual_seed(config.loop.seed)
        torch.use_deterministic_algorithms(config.loop.deterministic)
        self._config = config
        self.ranks = ranks
        base = load_causal_lm(config.model.path, config.model.dtype, "cpu")
        check_support(config.algorithm.asks, base.get_output_embeddings().weight.shape[0])
        lora = LoraConfig(
            r=config.lora.rank,
            lora_alpha=config.lora.alpha,
            target_modules=list(config.lora.targets),
            lora_dropout=0.0,
            task_type="CAUSAL_LM",
        )
        try:
            self.peft = get_peft_model(base, lora)
        except ValueError as error:
            raise UserError(f"lora.targets={list(config.lora.targets)}: {str(error).splitlines()[0]}") from error
        make_lean(self.peft)
        self._model: Any = self.peft.get_base_model()
        self.base = SharedModel(self._model, self.peft, trained_adapter=POLICY)
        if config.optim.gradient_checkpointing:
            checkpoint_layers(self._model)
        bound = (name for name, module in self.peft.named_modules() if isinstance(module, LoraLayer))
        if seeing := [name for name in bound if ".visual." in name]:
            raise UserError(
                f"lora.targets: {seeing[0].rpartition('.')[2]} is in the model's vision part, which stays as it is; "
                "name modules of the language part alone"
            )
        ranks.place(self._model, config.engine.device)
        self.parameters = [p for p in self.peft.parameters() if p.requires_grad]
        optim = config.optim
        self.optimizer = torch.optim.AdamW(self.parameters, lr=optim.lr, weight_decay=optim.weight_decay)
        self.context = LearnerContext(self.base, config, patches, ranks)
        self.auxiliary = config.algorithm.auxiliary_model(self.context)

    @property
    def bound_modules(self) -> int:
        """Modules the adapter changes."""
        with self.base.lock:
            return sum(isinstance(module, LoraLayer) for module in self.peft.modules())

    def adapter(self) -> dict[str, Tensor]:
        """A copy of the adapter's weights by their names in PEFT's format."""
        with self.base.lock:
            return {name: value.detach().clone() for name, value in get_peft_model_state_dict(self.peft).items()}

    def put_on(self, adapter: Mapping[str, Tensor]) -> None:
        """Gives the adapter other weights.

        Raises:
            KeyError, RuntimeError, ValueError: they are those of another adapter.
        """
        with self.base.lock:
            set_peft_model_state_dict(self.peft, dict(adapter))

    @contextmanager
    def wearing(self, adapter: Mapping[str, Tensor]) -> Iterator[None]:
        """The model with another adapter's weights for a while."""
        own = self.adapter()
        self._wear(adapter)
        try:
            yield
        finally:
            self._wear(own)

    @together
    def _wear(self, adapter: Mapping[str, Tensor]) -> None:
        self.put_on(adapter)

    def state_dict(self) -> dict[str, Any]:
        """All that it needs to go on bit for bit, the random numbers included."""
        with self.base.lock:  # whoever else loads an adapter moves the random numbers for a while
            rng = torch.get_rng_state()
        return {
            "adapter": self.adapter(),
            "optimizer": self.optimizer.state_dict(),
            "auxiliary": self.auxiliary.state_dict(),
            "rng": rng,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes up a saved state.

        Raises:
            KeyError, RuntimeError, ValueError: it is that of another learner.
        """
        self.put_on(state["adapter"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.auxiliary.load_state_dict(state["auxiliary"])
        with self.base.lock:
            torch.set_rng_state(state["rng"])
        self.ranks.lead("load_state_dict", state)  # after it was found to fit

    @together
    def canary(self, canary_ids: Sequence[int], *, base: bool = False) -> float:
        """Log-prob of the canary sequence under the adapter, or under the base alone."""
        with self.base.lock, self.peft.disable_adapter() if base else nullcontext():
            return canary_logp(self._model, canary_ids)

    def adapter_files(self) -> dict[str, bytes]:
        """The adapter in PEFT's format; the same weights give the same bytes."""
        config = self.peft.peft_config["default"].to_dict()
        plain = {key: sorted(value) if isinstance(value, set) else value for key, value in config.items()}
        plain["inference_mode"] = True
        text = json.dumps(plain, indent=2, sort_keys=True, default=str)
        weights = {name: value.cpu().contiguous() for name, value in sorted(self.adapter().items())}
        return dict(zip(FILES, (text.encode(), save(weights, metadata={"format": "pt"})), strict=True))

    def learning_rate(self, step: int) -> float:
        """Of a step, which counts from 0."""
        optim = self._config.optim
        if optim.schedule == "constant":
            return optim.lr * constant(1.0, step)
        return optim.lr * cosine_with_warmup(optim.warmup_steps, self._config.loop.steps, step)

    @together
    def learn(self, batch: TrainBatch, step: int) -> tuple[Tensor, Metrics]:
        """One step of the policy and its auxiliary model.

        Returns:
            adv_BT, and the step's metrics.
        """
        algorithm = self._config.algorithm
        with self.base.lock:
            batch = self.auxiliary.prepare(batch, step)
            advantages = algorithm.advantages(batch, step)
            metrics = advantages.metrics | self.update(batch, advantages.adv_BT, algorithm, step)
            return advantages.adv_BT, metrics | self.auxiliary.update(batch, step)

    def update(self, batch: TrainBatch, adv_BT: Tensor, algorithm: Algorithm, step: int) -> Metrics:
        """The optimiser updates of one step.

        Returns:
            Metrics of the step: loss, gradient norm, clip fractions, the gap to the engine's log-probs, tokens,
            seconds, and what the algorithm measures with the trained log-probs.
        """
        begun = time.perf_counter()
        rate = self.learning_rate(step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        minibatches = self.context.minibatches(batch)
        has_gradient_B = algorithm.has_gradient_B(batch, adv_BT) & algorithm.learns_at(step)
        old = algorithm.logp_old_BT(batch)
        if old is None and len(minibatches) > 1:
            old = self._old_logps(batch, has_gradient_B)
        old_seconds = time.perf_counter() - begun
        sums, norms = Sums(), []
        seen = Seen(*(torch.zeros_like(batch.mask_BT) for _ in range(3)))
        for rows in minibatches:
            norms.append(self._one_update(rows, batch, adv_BT, has_gradient_B, old, algorithm, sums, seen))
        sums = Sums.total(self.ranks.gathered(sums))
        self.context.all_reduce_sum([seen.logp_BT, seen.old_BT, seen.sampled_BT])
        sampled, demonstrated = max(1, sums.sampled), max(1, sums.demonstrated)
        return {
            "loss/policy": sums.loss / len(minibatches),
            "grad_norm": sum(norms) / len(norms),
            "learning_rate": rate,
            **engine_metrics(seen.old_BT, batch.rollout_logp_BT, seen.sampled_BT),
            "clip/ppo_low": 0.0,
            "clip/ppo_high": 0.0,
            **{key: value / sampled for key, value in sums.token_sums.items()},
            **{key: value / demonstrated for key, value in sums.demonstration_sums.items()},
            "tokens/trained": float(sums.sampled + sums.demonstrated),
            **algorithm.diagnostics(batch, adv_BT, seen.logp_BT, step),
            "time/old_seconds": old_seconds,
        }

    def _one_update(
        self,
        rows: list[int],
        batch: TrainBatch,
        adv_BT: Tensor,
        has_gradient_B: Tensor,
        old: Tensor | None,
        algorithm: Algorithm,
        sums: Sums,
        seen: Seen,
    ) -> float:
        minibatch = batch.rows(rows)
        self.optimizer.zero_grad(set_to_none=True)
        chosen = [row for row in rows if has_gradient_B[row]]
        if not chosen:
            return 0.0  # nothing to learn from: not even weight decay
        for part in self.context.microbatches(batch, chosen, whole_groups=algorithm.whole_groups):
            micro = batch.rows(part).to(self._device)
            student = self._student(micro)
            width = micro.mask_BT.shape[1]
            old_BT = student.logp_BT.detach() if old is None else old[part, :width].to(self._device)
            output = algorithm.loss(student, old_BT, micro, adv_BT[part, :width].to(self._device), minibatch)
            output.loss.backward()
            sampled_BT = micro.mask_BT * ~micro.demonstration_B[:, None]
            sampled = int(sampled_BT.sum())
            sums.add(Sums.of(output, sampled, int(micro.mask_BT.sum()) - sampled))
            seen.note(part, student.logp_BT, old_BT, sampled_BT)
        self.context.all_reduce_gradients(self.parameters)
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, self._config.optim.max_grad_norm)
        self.optimizer.step()
        return float(norm)

    @property
    def _device(self) -> torch.device:
        return self.parameters[0].device

    def _student(self, batch: TrainBatch) -> ResponseStates:
        return self.context.states(batch, self._config.sampling.temperature)

    @torch.no_grad()
    def _old_logps(self, batch: TrainBatch, has_gradient_B: Tensor) -> Tensor:
        """[B, T] under the present weights; 0 for sequences that do not learn."""
        old_BT = torch.zeros_like(batch.mask_BT)
        for part in self.context.microbatches(batch, has_gradient_B.nonzero().flatten().tolist()):
            logp_BT = self._student(batch.rows(part)).logp_BT
            old_BT[part, : logp_BT.shape[1]] = logp_BT.cpu()
        self.context.all_reduce_sum([old_BT])
        return old_BT
