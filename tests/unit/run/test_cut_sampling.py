"""Sampling from a part of the distribution: which log-probs the engine returns, and what is refused."""

from __future__ import annotations

import pytest

from cepo.errors import UserError
from cepo.net.settings import Settings
from cepo.run.deployment import SPECS
from services.rollout.engine import _engine_args
from tests.helpers.factories import make_config

CUT, WARM = "sampling.top_p=0.9", "sampling.temperature=0.7"


def mode(*overrides: str) -> str:
    config = make_config(*overrides)
    return str(_engine_args(SPECS["rollout"].settings(config, Settings())).logprobs_mode)


@pytest.mark.parametrize(
    ("overrides", "wanted"),
    [
        ((), "processed_logprobs"),
        ((WARM,), "processed_logprobs"),
        ((CUT,), "raw_logprobs"),
        (("sampling.top_k=20",), "raw_logprobs"),
        ((CUT, "loop.lag=1"), "raw_logprobs"),
        ((CUT, WARM), "processed_logprobs"),
    ],
)
def test_at_temperature_1_log_probs_are_of_the_whole_distribution(overrides: tuple[str, ...], wanted: str) -> None:
    assert mode(*overrides) == wanted


@pytest.mark.parametrize(
    ("overrides", "key"),
    [
        (("loop.lag=1",), "importance_cap=2"),
        (("algorithm.importance_cap=3",), "importance_cap=3"),
        (("algorithm.old_logp=rollout",), 'old_logp="rollout"'),
        (("algorithm.kl_coef=0.1", "algorithm.kl_in=reward"), 'kl_in="reward"'),
        (("algorithm.name=spo-chain",), "confident=0.9"),
        (('algorithm={name="opsd", positive="answer"}', "loop.lag=1"), "importance_cap=2"),
    ],
)
def test_a_method_that_compares_log_probs_refuses_a_cut_at_another_temperature(
    overrides: tuple[str, ...], key: str
) -> None:
    make_config(*overrides, CUT)
    make_config(*overrides, WARM)
    with pytest.raises(UserError) as refused:
        make_config(*overrides, CUT, WARM)
    assert str(refused.value) == (
        "config key sampling.top_p=0.9 with sampling.temperature=0.7 gives log-probs of the kept tokens alone, and "
        f"algorithm.{key} compares them with the whole distribution; set sampling.temperature=1, or sampling.top_p=1 "
        "and sampling.top_k=0"
    )


@pytest.mark.parametrize("section", ["sampling", "eval"])
def test_a_temperature_below_that_of_vllm_is_refused(section: str) -> None:
    make_config(f"{section}.temperature=0.01")
    with pytest.raises(UserError, match=rf"{section}\.temperature=0\.002: .* greater than or equal to 0\.01"):
        make_config(f"{section}.temperature=0.002")
