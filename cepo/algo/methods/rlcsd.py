"""RLCSD (arXiv:2606.11709): a bounded contrast of right and wrong hints is added to the advantage of some tokens."""

from __future__ import annotations

from typing import Literal, Self

import torch
from pydantic import Field, model_validator
from torch import Tensor

from cepo.algo.base import Advantages
from cepo.algo.batch import TrainBatch
from cepo.algo.core import Credit, masked_mean
from cepo.algo.diagnostics import credit_metrics, delta_metrics
from cepo.algo.losses import Aggregation
from cepo.algo.methods.evidence import mixture_of
from cepo.algo.methods.policy_gradient import PolicyGradient
from cepo.algo.teacher import TeacherSource
from cepo.messages.groups import Ask, ContextName, Feedback, Pick
from cepo.messages.vocabulary import DEAD_BAND


class Rlcsd(PolicyGradient):
    """RLCSD (arXiv:2606.11709): a contrast of hints is added to the advantage, and never turns its sign.

        e_t = log P_T(y_t | x, c, y_<t) - log (1/K) sum over k of P_T(y_t | x, w_k, y_<t)
        s_t = lam tanh(e_t / tau), clipped to +-residual_clip
        A_t = max(0, A + s_t) if A > 0, min(0, A + s_t) if A < 0, for tokens with |s_t| > threshold

    followed by the clipped surrogate. c is a correct and w_k are wrong responses of the group other than the scored
    one, and T is the teacher. The loss is the mean over tokens that keep A, plus `eta` times the mean over the others.
    A response without c or without w is left out. The values are those of the released code
    (github.com/THU-BPM/RLCSD).
    """

    name: Literal["rlcsd"] = "rlcsd"
    clip_high: float = Field(default=0.2, gt=0)
    """The ratio is clipped above 1 + clip_high. 0.2 as in the released code."""
    lam: float = Field(default=0.5, gt=0)
    """Size of the added term; the product of `rlcsd_lam` and `rlcsd_beta` in the released code, 0.5 and 1."""
    tau: float = Field(default=0.02, gt=0)
    """Temperature of the tanh, in nats. 0.02 as in the released runs."""
    threshold: float = Field(default=0.02, ge=0)
    """Smallest size of an added term; tokens with a smaller one keep their advantage (`rlcsd_delta`). 0.02 as in the
    released runs."""
    residual_clip: float = Field(default=2.0, gt=0)
    """Bound of the added term. 2 as in the released runs, where it has no effect."""
    eta: float = Field(default=1.0, ge=0)
    """Weight of the mean over the tokens with an added term. 1 as in the released runs."""
    wrong_hints: int = Field(default=4, ge=1)
    """Largest number K of wrong responses, each shown in a context of its own. 4 as in the released runs."""
    teacher: TeacherSource = TeacherSource(source="sync", sync_every=10)
    """The weights that score the contexts; see teacher sources. A copy of the policy from every 10th step, as in the
    released runs."""
    dead_band: float = Field(default=DEAD_BAND, ge=0)
    """Nats. The metrics count a contrast as positive, negative or in the wrong direction only beyond this band."""

    @model_validator(mode="after")
    def _has_its_own_aggregation(self) -> Self:
        self.refuse_idle(("aggregation", "kl_aggregation"), "with rlcsd, which takes two means over tokens")
        return self

    @property
    def credits_tokens(self) -> bool:
        return True

    @property
    def teacher_source(self) -> TeacherSource:
        return self.teacher

    @property
    def correct(self) -> Ask:
        """The ask under a correct response of the group."""
        return Ask(context=ContextName.ANSWER, feedback=Feedback.PEER_FULL, pick=Pick.RANDOM, exclude_self=True)

    @property
    def wrong(self) -> tuple[Ask, ...]:
        """The asks under K wrong responses of the group."""
        first = self.correct.model_copy(update={"context": ContextName.REJECTED})
        return tuple(first.model_copy(update={"rank": rank}) for rank in range(self.wrong_hints))

    @property
    def asks(self) -> tuple[Ask, ...]:
        return (*super().asks, self.correct, *self.wrong)

    def contrast_BT(self, batch: TrainBatch) -> Tensor:
        """e_t, 0 where it is not finite."""
        wrong = mixture_of([batch.evidence[ask] for ask in self.wrong])
        return torch.nan_to_num(batch.evidence[self.correct].logp_BT - wrong.logp_BT, nan=0.0)

    def residual_BT(self, batch: TrainBatch) -> Tensor:
        """The term added to each token's advantage; 0 up to the threshold, on padding, and without evidence."""
        residual_BT = self.lam * torch.tanh(self.contrast_BT(batch) / self.tau)
        residual_BT = residual_BT.clamp(-self.residual_clip, self.residual_clip)
        return torch.where((residual_BT.abs() > self.threshold) & self._usable_BT(batch), residual_BT, 0.0)

    def loss_mask_BT(self, batch: TrainBatch) -> Tensor:
        return super().loss_mask_BT(batch) * self._applicable_B(batch)[:, None]

    def advantages(self, batch: TrainBatch, step: int) -> Advantages:
        adv_BT = self.base_advantages(batch)
        if not self._applicable_B(batch).any():
            return Advantages(adv_BT, credit_metrics(None, batch, batch.mask_BT, self.lam) | _selected_metrics())
        residual_BT = self.residual_BT(batch)
        moved_BT = adv_BT + residual_BT
        lowest_BT = torch.where(adv_BT > 0, moved_BT.clamp(min=0.0), moved_BT.clamp(max=0.0))
        modulated_BT = torch.where(adv_BT == 0, 0.0, lowest_BT)
        one_BT = torch.ones_like(adv_BT)
        credit = Credit(self.contrast_BT(batch), one_BT, one_BT, adv_BT, torch.zeros_like(adv_BT).bool())
        counted_BT = self._usable_BT(batch) & (adv_BT != 0)
        metrics = credit_metrics(None, batch, batch.mask_BT, self.lam) | {
            **delta_metrics(credit, batch.correct_B, counted_BT, self.dead_band),
            "credit/tokens": float(counted_BT.sum()),
            "credit/advantage_before": masked_mean(adv_BT.abs(), counted_BT),
            "credit/advantage_after": masked_mean(modulated_BT.abs(), counted_BT),
            **_selected_metrics(residual_BT, counted_BT),
        }
        return Advantages(modulated_BT, metrics)

    def _reduced(self, loss_BT: Tensor, batch: TrainBatch, minibatch: TrainBatch, aggregation: Aggregation) -> Tensor:
        """The mean over the tokens without an added term, plus eta times the mean over those with one."""
        total = loss_BT.new_zeros(())
        for selected, factor in ((False, 1.0), (True, self.eta)):
            mask_BT, whole_BT = (self._path_BT(each, selected=selected) for each in (batch, minibatch))
            total = total + factor * torch.where(mask_BT, loss_BT, 0.0).sum() / max(1, int(whole_BT.sum()))
        return total

    def _path_BT(self, batch: TrainBatch, *, selected: bool) -> Tensor:
        """Whether a token of the loss has an added term, or has none."""
        mask_BT = self.loss_mask_BT(batch).bool()
        if not mask_BT.any():
            return mask_BT
        added_BT = self.residual_BT(batch) != 0
        return mask_BT & (added_BT if selected else ~added_BT)

    def _usable_BT(self, batch: TrainBatch) -> Tensor:
        return batch.mask_BT.bool() & self._applicable_B(batch)[:, None]

    def _applicable_B(self, batch: TrainBatch) -> Tensor:
        """Whether a response has a correct and a wrong response of its group beside it."""
        correct, wrong = batch.evidence.get(self.correct), batch.evidence.get(self.wrong[0])
        if correct is None or wrong is None:
            return torch.zeros_like(batch.demonstration_B)
        return correct.applicable_B & wrong.applicable_B


def _selected_metrics(residual_BT: Tensor | None = None, counted_BT: Tensor | None = None) -> dict[str, float]:
    """The share of tokens with an added term, and the mean of that term over them; 0 without evidence."""
    if residual_BT is None or counted_BT is None:
        return {"credit/selected_fraction": 0.0, "credit/residual_mean": 0.0}
    return {
        "credit/selected_fraction": masked_mean(residual_BT != 0, counted_BT),
        "credit/residual_mean": masked_mean(residual_BT, counted_BT & (residual_BT != 0)),
    }
