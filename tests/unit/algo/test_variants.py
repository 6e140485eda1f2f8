"""The public interface of the methods: their options, their asks for the teacher, and their diagnostics."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from cepo.algo.base import Algorithm
from cepo.algo.methods.cepo import Cepo
from cepo.algo.methods.rlsd import Rlsd
from cepo.algo.variants import ALGORITHMS, AnyAlgorithm, Grpo
from cepo.messages.groups import Ask, ContextName, Feedback, Pick, TeachWhen, Weights

ANSWER = Ask(context=ContextName.ANSWER)
PLAIN = Ask(context=ContextName.PLAIN, weights=Weights.POLICY)
REJECTED_OR_PLAIN = Ask(context=ContextName.REJECTED, otherwise=ContextName.PLAIN)


def test_grpo_asks_for_nothing() -> None:
    assert Grpo().asks == ()
    assert Grpo().asks_at(0) == ()


def test_rlsd_asks_for_the_answer_over_the_plain_context() -> None:
    assert Rlsd().asks == (ANSWER, PLAIN)


def test_cepo_asks_for_the_answer_over_the_rejected_context_and_falls_back_to_the_plain_one() -> None:
    assert Cepo().asks == (ANSWER, REJECTED_OR_PLAIN)


@pytest.mark.parametrize("no_negative", ["grpo", "skip_group"])
def test_cepo_can_do_without_a_rejected_answer_and_exclude_a_rollout_from_its_own_contrast(no_negative: Any) -> None:
    _, rejected = Cepo(no_negative=no_negative, exclude_self=True).asks
    assert rejected == Ask(context=ContextName.REJECTED, exclude_self=True)


def test_peers_are_never_shown_to_themselves_unless_it_is_said() -> None:
    peers: dict[str, Any] = {"positive": "peer_full", "negative": "peer_suffix", "feedback_tokens": 5, "pick": "random"}
    positive, negative = Cepo(**peers).asks
    assert (positive.feedback, positive.tokens, positive.exclude_self) == (Feedback.PEER_FULL, 0, True)
    assert (negative.feedback, negative.tokens, negative.exclude_self) == (Feedback.PEER_SUFFIX, 5, True)
    assert positive.otherwise is ContextName.ANSWER
    assert {ask.pick for ask in (positive, negative)} == {Pick.RANDOM}
    assert not any(ask.exclude_self for ask in Cepo(**peers, exclude_self=False).asks)
    assert not any(ask.exclude_self for ask in Cepo().asks)


def test_several_wrong_hints_are_asks_of_their_own_and_only_the_first_falls_back() -> None:
    _, *rejected = Cepo(wrong_hints=3).asks
    assert [ask.rank for ask in rejected] == [0, 1, 2]
    assert [ask.otherwise for ask in rejected] == [ContextName.PLAIN, None, None]


def test_rlsd_measures_the_plain_context_only_where_the_old_student_counts() -> None:
    assert Rlsd(student_logp="current", positive="solution").asks == (
        Ask(context=ContextName.ANSWER, feedback=Feedback.SOLUTION),
    )


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"warmup_steps": 3}, 'warmup_steps is for schedule = "warmup_decay", not "linear"'),
        ({"schedule": "constant", "decay_steps": 3}, "decay_steps has no meaning"),
        ({"schedule": "constant", "offset": 1}, "offset has no meaning"),
        ({"positive": "peer_prefix"}, "feedback_tokens is missing"),
        ({"feedback_tokens": 9}, "feedback_tokens is the length of a peer's prefix or suffix"),
        ({"teacher": {"source": "sync"}}, 'teacher.sync_every is missing: source = "sync" needs it'),
        ({"teacher": {"source": "ema"}}, 'teacher.ema_rate is missing: source = "ema" needs it'),
        ({"teacher": {"sync_every": 5}}, 'teacher.sync_every is for source = "sync", not "actor"'),
        ({"teacher": {"source": "sync", "sync_every": 5, "ema_rate": 0.1}}, 'ema_rate is for source = "ema"'),
        ({"teacher": {"source": "trust_region"}}, 'teacher.actor_share is missing: source = "trust_region" needs it'),
        ({"teacher": {"actor_share": 0.05}}, 'teacher.actor_share is for source = "trust_region", not "actor"'),
        ({"teacher": {"source": "trust_region", "actor_share": 1.0}}, "Input should be less than 1"),
    ],
)
@pytest.mark.parametrize("method", [Rlsd, Cepo])
def test_a_meaningless_combination_is_refused_with_the_reason(
    method: type[Algorithm], options: dict[str, Any], reason: str
) -> None:
    with pytest.raises(ValidationError) as refused:
        method(**options)
    assert reason in str(refused.value)


def test_rlsd_has_no_peer_to_pick_unless_it_shows_one() -> None:
    with pytest.raises(ValidationError, match=r"pick chooses among peers and none is shown"):
        Rlsd(pick="random")
    assert Rlsd(pick="random", positive="peer_full").asks[0].pick is Pick.RANDOM


@pytest.mark.parametrize("method", [Rlsd, Cepo])
def test_nothing_is_asked_once_lam_is_zero(method: type[Rlsd] | type[Cepo]) -> None:
    algorithm = method(decay_steps=5)
    assert [len(algorithm.asks_at(step)) for step in range(8)] == [2, 2, 2, 2, 2, 0, 0, 0]
    assert algorithm.asks_at(4) == algorithm.asks
    assert method(lam=0).asks_at(0) == ()


@pytest.mark.parametrize("method", [Grpo, Rlsd, Cepo])
def test_groups_of_equal_rewards_skip_the_teacher(method: Callable[..., Algorithm]) -> None:
    assert method().teach_when is TeachWhen.REWARD_SPREAD


def test_defaults_are_those_of_the_papers() -> None:
    assert (Cepo().lam, Cepo().decay_steps, Cepo().eps_w, Cepo().no_negative) == (0.5, 25, 0.5, "rlsd")
    assert (Rlsd().lam, Rlsd().decay_steps, Rlsd().eps_w) == (0.5, 50, 0.2)
    assert (Grpo().clip_low, Grpo().clip_high, Grpo().advantage_scale) == (0.2, 0.28, "std")


@pytest.mark.parametrize("name", ["grpo", "rlsd", "cepo"])
def test_a_method_is_chosen_by_its_name_alone(name: str) -> None:
    chosen: Algorithm = TypeAdapter(AnyAlgorithm).validate_python({"name": name})
    assert type(chosen) is ALGORITHMS[name]
    assert chosen.name == name


def test_an_unknown_method_is_refused() -> None:
    with pytest.raises(ValidationError, match="'sft'"):
        TypeAdapter(AnyAlgorithm).validate_python({"name": "sft"})


@pytest.mark.parametrize("method", [Grpo, Rlsd, Cepo])
def test_an_unknown_option_is_refused_by_name(method: Callable[..., Algorithm]) -> None:
    with pytest.raises(ValidationError, match=r"(?s)lamda.*Extra inputs are not permitted"):
        method(lamda=0.5)


def test_an_option_of_another_method_is_refused() -> None:
    with pytest.raises(ValidationError, match="Extra inputs are not permitted"):
        Grpo.model_validate({"eps_w": 0.5})
    with pytest.raises(ValidationError, match="Extra inputs are not permitted"):
        Rlsd.model_validate({"exclude_self": True})


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("lam", 1.5),
        ("lam", -0.5),
        ("eps_w", 1.0),
        ("eps_w", 0.0),
        ("decay_steps", 0),
        ("clip_low", 1.0),
        ("clip_high", 0.0),
        ("dual_clip", 1.0),
        ("importance_cap", -1.0),
        ("advantage_eps", -1.0),
        ("aggregation", "mean"),
        ("advantage_scale", "group"),
        ("no_negative", "skip"),
        ("negative", "solution"),
        ("wrong_hints", 0),
        ("schedule", "cosine"),
    ],
)
def test_an_option_out_of_range_is_refused_with_its_value(option: str, value: Any) -> None:
    with pytest.raises(ValidationError, match=rf"(?s){option}.*input_value={value!r}"):
        Cepo(**{option: value})


def test_a_method_cannot_be_changed_after_it_was_made() -> None:
    algorithm = Cepo()
    with pytest.raises(ValidationError, match="frozen"):
        algorithm.lam = 0.1


def test_a_wrong_response_is_contrasted_with_its_own_answer() -> None:
    _, rejected = Cepo(negative="own_answer").asks
    assert rejected == REJECTED_OR_PLAIN.model_copy(update={"pick": Pick.OWN, "exclude_self": False})
    for key, value in (("pick", "random"), ("exclude_self", True), ("wrong_hints", 2)):
        with pytest.raises(ValueError, match=f"{key} has no effect with negative='own_answer'"):
            Cepo.model_validate({"negative": "own_answer", "positive": "peer_answer", key: value})
