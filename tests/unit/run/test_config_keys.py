"""The keys of run files, listed in full so that a diff shows a new key."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel

from cepo.algo.variants import ALGORITHMS
from cepo.run.config import RunConfig

POLICY_GRADIENT = (
    "advantage_eps advantage_scale aggregation clip_high clip_low dual_clip entropy_coef estimator gamma "
    "importance importance_cap importance_floor kl_aggregation kl_coef kl_form kl_in mask_truncated name old_logp "
    "ratio_max ratio_min std_correction surrogate tau_neg tau_pos"
)
CREDIT = (
    "dead_band decay_steps eps_w feedback_tokens images lam offset pick positive schedule sign teacher.actor_share "
    "teacher.ema_rate teacher.source teacher.sync_every warmup_steps"
)
DISTILLATION = (
    "aggregation apply_to beta importance_cap name pick positive ratio_cap remainder support teacher.actor_share "
    "teacher.ema_rate teacher.source teacher.sync_every top weight"
)
KEYS = {
    **{f"algorithm.{name}": POLICY_GRADIENT for name in ("grpo", "dr-grpo", "rloo", "reinforce++")},
    **{f"algorithm.{name}": POLICY_GRADIENT for name in ("gspo", "cispo", "sapo")},
    "algorithm.cepo": f"{POLICY_GRADIENT} {CREDIT} combine exclude_self modulate_all_wrong negative no_negative "
    "unparsed wrong_hints",
    "algorithm.clipo": f"{POLICY_GRADIENT} bonus_constant bonus_minimum bonus_weight contrast fixed_head head "
    "head_bias head_lr head_size head_warmup level logarithms similarity temperature",
    "algorithm.dapo": f"{POLICY_GRADIENT} max_tries",
    "algorithm.hdpo": f"{POLICY_GRADIENT} positive privileged_samples rest_factor teacher.actor_share "
    "teacher.ema_rate teacher.source teacher.sync_every top weight",
    "algorithm.opsd": DISTILLATION,
    "algorithm.ppo": f"{POLICY_GRADIENT} critic_lr critic_warmup gae_lambda value_clip",
    "algorithm.rlcsd": f"{POLICY_GRADIENT} dead_band eta lam residual_clip tau teacher.actor_share teacher.ema_rate "
    "teacher.source teacher.sync_every threshold wrong_hints",
    "algorithm.rlsd": f"{POLICY_GRADIENT} {CREDIT} negative_only student_logp thought_end",
    "algorithm.sdpo": DISTILLATION,
    "algorithm.vineppo": f"{POLICY_GRADIENT} continuations max_states step_delimiter",
    "algorithm.spo-chain": f"{POLICY_GRADIENT} confident continuations interval max_states",
    "algorithm.spo-tree": f"{POLICY_GRADIENT} branching confident edge_scale segment_tokens",
    "algorithm.prm": f"{POLICY_GRADIENT} form outcome progress step_delimiter",
    "algorithm.dpo": "beta label_smoothing name",
    "algorithm.ctdpo": "beta estimator_lr estimator_steps label_smoothing name only_rejected strength",
    "checkpoint": "every keep keep_best keep_policies patience",
    "data": "answer answer_kind curriculum environment eval eval_split eval_where hint images instruction limit "
    "max_turns on_bad_row placement question rejected solution source split system template train where",
    "engine": "device gpu_memory_utilization max_lora_rank max_num_seqs teacher tensor_parallel trainer_processes",
    "eval": "every presence_penalty prompts samples temperature top_k top_p",
    "lora": "alpha rank targets",
    "loop": "deterministic lag seed steps",
    "model": "dtype max_length path",
    "name": "",
    "optim": "gradient_checkpointing lr max_grad_norm minibatches schedule tokens_per_microbatch warmup_steps "
    "weight_decay",
    "reward": "accuracy environment format functions judge length overlong_buffer overlong_factor repetition "
    "repetition_ngram scorer wrong",
    "sampling": "max_tokens prompts samples temperature top_k top_p",
    "telemetry": "rollouts_gigabytes rollouts_per_step tensorboard trackers wandb_project",
}


def keys_of(section: type[BaseModel], prefix: str) -> Iterator[str]:
    for name, field in section.model_fields.items():
        inner: Any = field.annotation
        nested = isinstance(inner, type) and issubclass(inner, BaseModel)
        yield from keys_of(inner, f"{prefix}{name}.") if nested else [prefix + name]


def test_the_keys_are_these() -> None:
    frozen = [f"{section}.{key}" if key else section for section, row in KEYS.items() for key in row.split() or [""]]
    found = [key for key in keys_of(RunConfig, "") if key != "algorithm"]
    for name, algorithm in ALGORITHMS.items():
        found += keys_of(algorithm, f"algorithm.{name}.")
    assert sorted(found) == sorted(frozen)


def test_every_key_outside_the_methods_is_described() -> None:
    """The text under a key is its `description`, from which the configuration reference is generated."""
    for name, field in RunConfig.model_fields.items():
        assert field.description, name
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            assert [key for key, each in inner.model_fields.items() if not each.description] == [], name
