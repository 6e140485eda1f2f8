"""The model being trained: a frozen base with a LoRA adapter, its optimiser, and one update per step.

Sequences whose advantage is zero everywhere have no gradient; they count in the denominators and skip the model. The
old log-probs are the trainer's own, with the weights at the start of the step.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict
from peft.tuners.lora import LoraLayer
from safetensors.torch import save
from torch import Tensor

from cepo.adapters import FILES
from cepo.algo.base import Algorithm, Metrics
from cepo.algo.batch import TrainBatch
from cepo.algo.schedules import constant, cosine_with_warmup
from cepo.contracts import ImageRef
from cepo.errors import UserError
from cepo.forward import ResponseStates, canary_logp, load_causal_lm, response_states
from cepo.pixels import Patches
from cepo.runconfig import RunConfig


def no_images(image: ImageRef) -> Patches:
    """The images of a run without any."""
    raise LookupError(image.sha256)


@dataclass
class Sums:
    """What an update adds up over its micro-batches."""

    loss: float = 0.0
    tokens: int = 0
    gap: float = 0.0
    token_sums: dict[str, float] | None = None

    def add(self, loss: float, tokens: int, gap: float, token_sums: Metrics) -> None:
        self.loss += loss
        self.tokens += tokens
        self.gap += gap
        known = self.token_sums or {}
        self.token_sums = {key: known.get(key, 0.0) + value for key, value in token_sums.items()}


class Learner:
    """Owns the weights and the optimiser."""

    def __init__(self, config: RunConfig, patches: Callable[[ImageRef], Patches] = no_images) -> None:
        """Loads the base and attaches the adapter.

        Args:
            patches: the pixels of an image of this run.

        Raises:
            UserError: the model cannot be loaded, has no module of `lora.targets`, or has one in its vision part.
        """
        self._patches = patches
        torch.manual_seed(config.loop.seed)
        torch.use_deterministic_algorithms(config.loop.deterministic)
        self._config = config
        base = load_causal_lm(config.model.path, config.model.dtype, config.engine.device)
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
        self._model: Any = self.peft.get_base_model()
        bound = (name for name, module in self.peft.named_modules() if isinstance(module, LoraLayer))
        if seeing := [name for name in bound if ".visual." in name]:
            raise UserError(
                f"lora.targets: {seeing[0].rpartition('.')[2]} is in the model's vision part, which stays as it is; "
                "name modules of the language part alone"
            )
        self.parameters = [p for p in self.peft.parameters() if p.requires_grad]
        optim = config.optim
        self.optimizer = torch.optim.AdamW(self.parameters, lr=optim.lr, weight_decay=optim.weight_decay)

    @property
    def bound_modules(self) -> int:
        """Modules the adapter changes."""
        return sum(isinstance(module, LoraLayer) for module in self.peft.modules())

    def canary(self, canary_ids: Sequence[int], *, base: bool = False) -> float:
        """Log-prob of the canary sequence under the adapter, or under the base alone."""
        if not base:
            return canary_logp(self._model, canary_ids)
        with self.peft.disable_adapter():
            return canary_logp(self._model, canary_ids)

    def adapter_files(self) -> dict[str, bytes]:
        """The adapter in PEFT's format; the same weights give the same bytes."""
        config = self.peft.peft_config["default"].to_dict()
        plain = {key: sorted(value) if isinstance(value, set) else value for key, value in config.items()}
        plain["inference_mode"] = True
        text = json.dumps(plain, indent=2, sort_keys=True, default=str)
        weights = {k: v.detach().cpu().contiguous() for k, v in sorted(get_peft_model_state_dict(self.peft).items())}
        return dict(zip(FILES, (text.encode(), save(weights, metadata={"format": "pt"})), strict=True))

    def learning_rate(self, step: int) -> float:
        """Of a step, which counts from 0."""
        optim = self._config.optim
        if optim.schedule == "constant":
            return optim.lr * constant(1.0, step)
        return optim.lr * cosine_with_warmup(optim.warmup_steps, self._config.loop.steps, step)

    def update(self, batch: TrainBatch, adv_BT: Tensor, algorithm: Algorithm, step: int) -> Metrics:
        """The optimiser updates of one step.

        Returns:
            Metrics of the step: loss, gradient norm, clip fractions, log-prob gap to the engine, tokens, seconds.
        """
        begun = time.perf_counter()
        rate = self.learning_rate(step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        minibatches = self._minibatches(batch)
        learns_B = algorithm.learns_B(batch, adv_BT)
        old = algorithm.old_logp_BT(batch)
        if old is None and len(minibatches) > 1:
            old = self._old_logps(batch, learns_B)
        sums, norms = Sums(), []
        for rows in minibatches:
            norms.append(self._one_update(rows, batch, adv_BT, learns_B, old, algorithm, sums))
        tokens = max(1, sums.tokens)
        return {
            "loss/policy": sums.loss / len(minibatches),
            "grad_norm": sum(norms) / len(norms),
            "learning_rate": rate,
            "rollout/logp_gap": sums.gap / tokens,
            "clip/ppo_low": 0.0,
            "clip/ppo_high": 0.0,
            **{key: value / tokens for key, value in (sums.token_sums or {}).items()},
            "tokens/trained": float(sums.tokens),
            "time/train_seconds": time.perf_counter() - begun,
        }

    def _one_update(
        self,
        rows: list[int],
        batch: TrainBatch,
        adv_BT: Tensor,
        learns_B: Tensor,
        old: Tensor | None,
        algorithm: Algorithm,
        sums: Sums,
    ) -> float:
        whole = batch.rows(rows)
        self.optimizer.zero_grad(set_to_none=True)
        trained = False
        for part in self._microbatches(batch, [row for row in rows if learns_B[row]]):
            micro = batch.rows(part).to(self._device)
            student = self._student(micro)
            width = micro.mask_BT.shape[1]
            old_BT = student.logp_BT.detach() if old is None else old[part, :width].to(self._device)
            output = algorithm.loss(student, old_BT, micro, adv_BT[part, :width].to(self._device), whole)
            output.loss.backward()
            sampled_BT = micro.mask_BT * ~micro.demonstration_B[:, None]
            gap = float(((old_BT - micro.rollout_logp_BT).abs() * sampled_BT).sum())
            sums.add(float(output.loss.detach()), int(micro.mask_BT.sum()), gap, output.token_sums)
            trained = True
        if not trained:
            return 0.0  # nothing to learn from: not even weight decay
        norm = torch.nn.utils.clip_grad_norm_(self.parameters, self._config.optim.max_grad_norm)
        self.optimizer.step()
        return float(norm)

    @property
    def _device(self) -> torch.device:
        return self.parameters[0].device

    def _student(self, batch: TrainBatch) -> ResponseStates:
        images = [[self._patches(image) for image in row] for row in batch.images]
        temperature = self._config.sampling.temperature
        return response_states(self._model, batch.prompt_ids, batch.response_ids, temperature, images)

    @torch.no_grad()
    def _old_logps(self, batch: TrainBatch, learns_B: Tensor) -> Tensor:
        """[B, T] under the present weights; 0 for sequences that do not learn."""
        old_BT = torch.zeros_like(batch.mask_BT)
        for part in self._microbatches(batch, learns_B.nonzero().flatten().tolist()):
            logp_BT = self._student(batch.rows(part)).logp_BT
            old_BT[part, : logp_BT.shape[1]] = logp_BT.cpu()
        return old_BT

    def _minibatches(self, batch: TrainBatch) -> list[list[int]]:
        """Whole groups, in order, in equal numbers."""
        groups = batch.group_B.unique()
        return [
            torch.isin(batch.group_B, part).nonzero().flatten().tolist()
            for part in groups.tensor_split(self._config.optim.minibatches)
            if len(part)
        ]

    def _microbatches(self, batch: TrainBatch, rows: Sequence[int]) -> Iterator[list[int]]:
        """Sequences of like length together, at most `tokens_per_microbatch` padded tokens, at least one sequence."""
        length = {row: len(batch.prompt_ids[row]) + len(batch.response_ids[row]) for row in rows}
        part: list[int] = []
        for row in sorted(rows, key=lambda row: (length[row], row)):
            if part and (len(part) + 1) * length[row] > self._config.optim.tokens_per_microbatch:
                yield part
                part = []
            part.append(row)
        if part:
            yield part
