"""Steps, segments, tree edges and process rewards: published numbers, plain loops, and edge cases."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch

from cepo.algo.segments import (
    Edge,
    Node,
    chain_advantages,
    cut_points,
    decisions,
    process_advantage_rewards,
    process_rewards,
    step_advantages,
    tree_edges,
)
from tests.parity.support import golden, tensor

SEGMENTS = golden("segment_methods")
SEEDS = range(6)


@pytest.mark.parametrize("case", SEGMENTS["vineppo"])
def test_step_advantages_reproduce_the_published_vineppo(case: dict[str, Any]) -> None:
    assert case["values"][-1] is None  # the end of the response has the value 0
    assert step_advantages(case["step_rewards"], case["values"][:-1]) == pytest.approx(case["advantages"])


@pytest.mark.parametrize("seed", SEEDS)
def test_step_advantages_add_up_to_the_return_minus_the_first_value(seed: int) -> None:
    draw = random.Random(seed)
    rewards = [draw.random() for _ in range(draw.randrange(1, 8))]
    values: list[float | None] = [draw.random() for _ in rewards]
    expected = [r + after - before for r, before, after in zip(rewards, values, [*values[1:], 0.0], strict=True)]
    assert step_advantages(rewards, values) == pytest.approx(expected)
    assert sum(expected) == pytest.approx(sum(rewards) - values[0])
    missing = draw.randrange(len(values))
    values[missing:] = [None] * (len(values) - missing)
    advantages = step_advantages(rewards, values)
    assert advantages[missing:] == pytest.approx([0.0] * (len(values) - missing), abs=1e-12)
    if missing:
        returned = sum(rewards[missing - 1 :])
        assert advantages[missing - 1] == pytest.approx(returned - values[missing - 1])


def test_no_steps_have_no_advantages_and_lengths_must_agree() -> None:
    assert step_advantages([], []) == []
    with pytest.raises(ValueError, match="shorter"):
        step_advantages([0.0, 1.0], [0.5])


@pytest.mark.parametrize("case", SEGMENTS["spo_chain"])
def test_chain_advantages_reproduce_the_published_spo(case: dict[str, Any]) -> None:
    logp_T = tensor(case["response_prob"]).log()
    values, expected = case["out_token_values_and_advantages"]
    adv_T = chain_advantages(logp_T, case["cutpoints"], case["cutpoint_values"], case["score"])
    torch.testing.assert_close(adv_T, tensor(expected))
    assert values[-1] == case["score"]


def test_cut_points_are_before_every_interval_th_decision() -> None:
    case = SEGMENTS["spo_chain"][0]
    logp_T = tensor(case["response_prob"]).log()
    assert cut_points(logp_T, interval=2) == case["cutpoints"]
    assert cut_points(tensor(SEGMENTS["spo_chain"][2]["response_prob"]).log()) == []


@pytest.mark.parametrize("seed", SEEDS)
def test_cut_points_and_chain_advantages_are_their_definition(seed: int) -> None:
    draw = random.Random(seed)
    probs = [draw.choice([0.2, 0.5, 0.95]) for _ in range(draw.randrange(1, 30))]
    low = [t for t, prob in enumerate(probs) if prob < 0.9]
    logp_T = torch.tensor(probs).log()
    cuts = cut_points(logp_T, interval=3)
    assert cuts == [t - 1 for i, t in enumerate(low) if i % 3 == 0]
    assert decisions(logp_T).tolist() == [prob <= 0.9 for prob in probs]
    values, score = [draw.random() for _ in cuts], 1.0
    expected = []
    for t, prob in enumerate(probs):
        passed = [i for i, cut in enumerate(cuts) if cut < t]
        after = [*values[1:], score]
        expected.append(after[passed[-1]] - values[passed[-1]] if passed and prob <= 0.9 else 0.0)
    torch.testing.assert_close(chain_advantages(logp_T, cuts, values, score), torch.tensor(expected))


def test_an_empty_response_has_no_cut_points() -> None:
    empty_T = torch.zeros(0)
    assert cut_points(empty_T) == []
    assert chain_advantages(empty_T, [], [], 1.0).tolist() == []
    with pytest.raises(ValueError, match="shorter"):
        chain_advantages(torch.zeros(3), [-1], [], 1.0)


def published_tree(node: dict[str, Any], text: str = "Q") -> Node:
    children = tuple(published_tree(child, child["text"]) for child in node.get("children", ()))
    return Node((ord(text),), node["reward"], children)


@pytest.mark.parametrize("case", SEGMENTS["spo_tree"]["edges"], ids=lambda case: case["adv_method"])
def test_tree_edges_reproduce_the_published_spo(case: dict[str, Any]) -> None:
    root = published_tree(SEGMENTS["spo_tree"]["tree"])
    assert root.value == SEGMENTS["spo_tree"]["tree"]["reward"]
    approximately: Any = pytest.approx
    edges = tree_edges(root, scale="std" if case["adv_method"] == "grpo" else "none")
    expected = [
        Edge(
            tuple(map(ord, edge["query_text"])),
            tuple(map(ord, edge["response_text"])),
            approximately(edge["advantage"], rel=1e-9),
            approximately(edge["prover_advantage"]),
            edge["value"],
            edge["leaf"],
        )
        for edge in case["edges"]
    ]
    assert edges == expected


def test_a_tree_s_rows_hold_all_tokens_before_them() -> None:
    leaves = Node((7,), 1.0), Node((8, 9), 0.0)
    edges = tree_edges(Node((1, 2), children=(Node((3,), children=leaves), Node((4,), 0.0))))
    assert [(edge.prefix_ids, edge.token_ids, edge.advantage) for edge in edges] == [
        ((1, 2), (3,), 0.25),
        ((1, 2, 3), (7,), 0.5),
        ((1, 2, 3), (8, 9), -0.5),
        ((1, 2), (4,), -0.25),
    ]


def test_a_tree_of_equal_scores_or_of_one_node_has_no_rows() -> None:
    assert tree_edges(Node((1,), children=(Node((2,), 1.0), Node((3,), 1.0))), scale="std") == []
    assert tree_edges(Node((1,), 1.0), scale="std") == []


@pytest.mark.parametrize("form", ["score", "difference", "min"])
@pytest.mark.parametrize("seed", SEEDS)
def test_process_rewards_stand_at_the_ends_of_their_steps(seed: int, form: Any) -> None:
    draw = random.Random(seed)
    counts = [draw.randrange(5) for _ in range(6)]
    scores = [[draw.random() for _ in range(count)] for count in counts]
    ends = [sorted(draw.choices(range(7), k=count)) for count in counts]
    expected = [[0.0] * 7 for _ in counts]
    for row, (score, end) in enumerate(zip(scores, ends, strict=True)):
        for k in range(len(score)):
            rewards = {
                "score": score[k],
                "difference": score[k] - (score[k - 1] if k else 0.0),
                "min": min(score) if k == len(score) - 1 else 0.0,
            }
            expected[row][end[k]] += rewards[form]
    score_BK = torch.tensor([[*score, *[draw.random()] * (4 - len(score))] for score in scores])
    end_BK = torch.tensor([[*end, *[-1] * (4 - len(end))] for end in ends])
    torch.testing.assert_close(process_rewards(score_BK, end_BK, 7, form=form), torch.tensor(expected))


@pytest.mark.parametrize("form", ["score", "difference", "min"])
def test_without_steps_there_are_no_process_rewards(form: Any) -> None:
    for count in (0, 2):
        score_BK, end_BK = torch.ones(3, count), torch.full((3, count), -1)
        assert torch.equal(process_rewards(score_BK, end_BK, 4, form=form), torch.zeros(3, 4))


def test_an_unknown_form_is_refused() -> None:
    unknown: Any = "mean"
    with pytest.raises(ValueError, match="unknown form 'mean'"):
        process_rewards(torch.ones(1, 1), torch.zeros(1, 1, dtype=torch.long), 1, form=unknown)


def test_effective_rewards_add_the_prover_s_advantage_to_the_outcome() -> None:
    before_BK, after_BK = torch.tensor([[0.2, 0.5], [0.4, 0.4]]), torch.tensor([[0.5, 0.1], [0.4, 1.0]])
    reward_BK = process_advantage_rewards(torch.tensor([1.0, 0.0]), before_BK, after_BK, alpha=2.0)
    torch.testing.assert_close(reward_BK, torch.tensor([[1.6, 0.2], [0.0, 1.2]]))
