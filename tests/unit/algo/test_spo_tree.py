"""SPO-tree: how the tree is sampled, and its edges as training rows, against a loop over all leaves."""

from __future__ import annotations

from collections import defaultdict
from statistics import fmean, pstdev
from typing import Any

import pytest
import torch

from cepo.algo.methods.continuations import continuation
from cepo.algo.methods.policy_gradient import REFERENCE
from cepo.algo.methods.spo_tree import SpoTree
from cepo.messages.arrays import Float32Array, Int32Array
from cepo.messages.groups import (
    Completion,
    Evidence,
    EvidencedGroup,
    FinishReason,
    Outcome,
    PromptTask,
    RolloutGroup,
    ScoredGroup,
    Verdict,
)
from services.trainer.learning.batch import pack
from tests.helpers.factories import make_proof, make_row
from tests.unit.algo.continuing import Prompts, prompts, sampled, step

LENGTH = 2
TREE = SpoTree(branching=(3, 2), segment_tokens=LENGTH, confident=1.0)
PROMPT = (7, 8)
Path = tuple[tuple[int, ...], ...]


def leaves(groups: list[EvidencedGroup], index: int) -> dict[Path, tuple[tuple[int, ...], float]]:
    """Returns (tokens, reward) of every response in a prompt's tree, by the path of its nodes from the root."""
    leaf_of: dict[Path, tuple[tuple[int, ...], float]] = {}
    names: dict[tuple[int, int], Path] = {}
    for group in groups:
        origin, level = group.task.origin, len(group.task.prefix) // LENGTH
        if origin is None and group.task.index != index:
            continue
        above = names.get((origin.index, origin.sample)) if origin else ()
        if above is None:
            continue
        for sample, completion in enumerate(group.scored.rollout.completions):
            depth = min(3, -(-len(completion.token_ids) // LENGTH))
            own = tuple((group.task.index, sample, at) for at in range(level, depth))
            names[group.task.index, sample] = path = (*above[:level], *own)
            if not group.scored.verdicts[sample].failed:
                leaf_of[path] = (tuple(completion.token_ids), group.scored.verdicts[sample].reward)
    return leaf_of


def expected_edges(groups: list[EvidencedGroup], scale: str) -> list[tuple[tuple[int, ...], tuple[int, ...], float]]:
    """Returns (prompt and earlier tokens, tokens of the edge, advantage) of every edge whose ends differ in value."""
    edges = []
    for index in (group.task.index for group in groups if group.task.origin is None):
        leaf_of = leaves(groups, index)
        children = defaultdict(set)
        for path in leaf_of:
            for depth in range(len(path)):
                children[path[:depth]].add(path[: depth + 1])

        def value(
            node: Path, children: dict[Path, set[Path]], leaf_of: dict[Path, tuple[tuple[int, ...], float]]
        ) -> float:
            below = children.get(node)
            return fmean(value(child, children, leaf_of) for child in below) if below else leaf_of[node][1]

        for parent, below in children.items():
            before = value(parent, children, leaf_of)
            spread = pstdev(value(child, children, leaf_of) for child in below) + 1e-8 if scale == "std" else 1.0
            for child in below:
                tokens = next(tokens for path, (tokens, _) in leaf_of.items() if path[: len(child)] == child)
                start, end = LENGTH * len(parent), LENGTH * len(child) if children.get(child) else len(tokens)
                if value(child, children, leaf_of) != before:
                    advantage = (value(child, children, leaf_of) - before) / spread
                    edges.append(((*PROMPT, *tokens[:start]), tokens[start:end], advantage))
    return edges


@pytest.mark.parametrize("unjudged", [0.0, 0.4], ids=["judged", "partly-unjudged"])
@pytest.mark.parametrize("scale", ["none", "std"])
@pytest.mark.parametrize("seed", range(3))
def test_the_rows_are_the_edges_that_teach(seed: int, scale: str, unjudged: float) -> None:
    tree = TREE.model_copy(update={"edge_scale": scale})
    groups, _ = step(tree, prompts(tree, count=2, samples=3, seed=seed), unjudged)
    batch = pack(tree.select(groups, Prompts(2)))
    adv_BT = tree.advantages(batch, 0).adv_BT
    rows = [(batch.prompt_ids[row], batch.response_ids[row], float(adv_BT[row, 0])) for row in range(batch.size)]
    expected = expected_edges(groups, scale)
    assert len(rows) > 10
    assert sorted(row[:2] for row in rows) == sorted(row[:2] for row in expected)
    assert [row[2] for row in sorted(rows)] == pytest.approx([row[2] for row in sorted(expected)], abs=1e-5)
    lengths = batch.mask_BT.sum(dim=1)
    assert torch.equal(adv_BT, adv_BT[:, :1] * batch.mask_BT)
    assert lengths.tolist() == [len(ids) for ids in batch.response_ids]


def graded(task: PromptTask, rewards: dict[tuple[int, ...], float]) -> EvidencedGroup:
    """Returns a group with the given responses, which include the task's prefix, and their rewards."""
    completions = tuple(
        Completion(
            token_ids=Int32Array.of(ids),
            logps=Float32Array.of([-1.0] * (len(ids) - len(task.prefix))),
            text="",
            finish_reason=FinishReason.STOP,
        )
        for ids in rewards
    )
    verdicts = tuple(
        Verdict(outcome=Outcome.CORRECT if reward else Outcome.WRONG, reward=reward, accuracy=reward)
        for reward in rewards.values()
    )
    prompt_ids = Int32Array.of(PROMPT)
    rollout = RolloutGroup(task=task, prompt_token_ids=prompt_ids, completions=completions, proof=make_proof())
    return EvidencedGroup(scored=ScoredGroup(rollout=rollout, verdicts=verdicts))


def test_the_case_of_the_docstring() -> None:
    a, b, c, d, e, f, x, y = range(10, 18)
    tree = SpoTree(branching=(2,), segment_tokens=2, confident=1.0)
    first = graded(prompts(tree, count=1, samples=2)[0], {(a, b, c, d): 1.0, (x, y): 0.0})
    (follow_up,) = tree.follow_up([first], 0, Prompts(1))
    assert (tuple(follow_up.prefix), follow_up.samples) == ((a, b), 1)
    batch = pack(tree.select([first, graded(follow_up, {(a, b, e, f): 0.0})], Prompts(1)))
    assert list(zip(batch.prompt_ids, batch.response_ids, batch.reward_B.tolist(), strict=True)) == [
        (PROMPT, (a, b), 0.25),
        (PROMPT, (x, y), -0.25),
        ((*PROMPT, a, b), (c, d), 0.5),
        ((*PROMPT, a, b), (e, f), -0.5),
    ]
    assert batch.group_B.tolist() == [0, 0, 1, 1]


def test_a_response_is_the_first_continuation_of_each_of_its_prefixes() -> None:
    task = prompts(TREE, count=1, samples=3)[0]
    groups, sent = step(TREE, [task])
    for group in groups:
        level = len(group.task.prefix) // LENGTH
        for sample, completion in enumerate(group.scored.rollout.completions):
            mine = [t for t in sent if (t.origin.index, t.origin.sample) == (group.task.index, sample)]
            reached = [at for at in (1, 2) if at > level and len(completion.token_ids) > at * LENGTH]
            assert [(len(t.prefix), t.samples) for t in mine] == [(at * LENGTH, (2, 1)[at - 1]) for at in reached]
            assert all(t.prefix == completion.token_ids[: len(t.prefix)] for t in mine)
    assert sum(len(group.scored.verdicts) for group in groups) <= 3 * 3 * 2


def test_the_log_probs_and_the_evidence_of_a_row_are_those_of_its_tokens() -> None:
    tree = TREE.model_copy(update={"kl_coef": 0.1})
    tasks = [task.model_copy(update={"asks": tree.asks}) for task in prompts(tree, count=1, samples=3)]
    groups, sent = step(tree, tasks)
    assert {task.asks for task in sent} == {tree.asks}
    assert {task.route for task in sent} == {tasks[0].route}
    told: dict[Any, Any] = {}
    measured = []
    for group in groups:
        rows = []
        for completion in group.scored.rollout.completions:
            logps = tuple(-float(sum(completion.token_ids[: at + 1])) for at in range(len(completion.token_ids)))
            rows.append(make_row(completion, REFERENCE).model_copy(update={"logps": logps}))
            skipped = len(group.task.prefix)
            for at, logp in enumerate(completion.logps, start=skipped):
                told.setdefault(completion.token_ids[: at + 1], set()).add(logp)
        measured.append(group.model_copy(update={"evidence": (Evidence(ask=REFERENCE, rows=tuple(rows)),)}))
    batch = pack(tree.select(measured, Prompts(1)))
    for row in range(batch.size):
        before = batch.prompt_ids[row][len(PROMPT) :]
        for at in range(len(batch.response_ids[row])):
            prefix = (*before, *batch.response_ids[row][: at + 1])
            assert batch.evidence[REFERENCE].logp_BT[row, at] == -float(sum(prefix))
            assert float(batch.rollout_logp_BT[row, at]) in told[prefix]


def test_trees_whose_leaves_are_all_worth_the_same_train_nothing() -> None:
    groups, _ = step(TREE, prompts(TREE, count=2, samples=2))
    equal = []
    for group in groups:
        verdicts = tuple(
            v.model_copy(update={"outcome": Outcome.CORRECT, "reward": 1.0, "accuracy": 1.0})
            for v in group.scored.verdicts
        )
        equal.append(group.model_copy(update={"scored": group.scored.model_copy(update={"verdicts": verdicts})}))
    batch = pack(TREE.select(equal, Prompts(2)))
    assert batch.size == 4
    assert not TREE.advantages(batch, 0).adv_BT.any()


def test_a_tree_that_nothing_was_judged_of_has_no_rows() -> None:
    group = sampled(prompts(TREE, count=1)[0], unjudged=1.0)
    batch = pack(TREE.select([group], Prompts(1)))
    assert batch.reward_B.isnan().all()
    assert not batch.mask_BT.any()
    assert TREE.follow_up([group], 0, Prompts(1)) == ()


def test_a_lost_follow_up_leaves_the_node_its_own_continuation() -> None:
    groups, _ = step(TREE, prompts(TREE, count=1, samples=3))
    bare = pack(TREE.select(groups[:1], Prompts(1)))
    rewards = [verdict.reward for verdict in groups[0].scored.verdicts]
    assert len(set(rewards)) > 1
    assert set(bare.prompt_ids) == {PROMPT}
    advantages = {round(float(a), 6) for a in TREE.advantages(bare, 0).adv_BT[:, 0]}
    assert advantages == {round(reward - fmean(rewards), 6) for reward in rewards}


def test_continuations_of_different_prefixes_differ_in_seed() -> None:
    task = prompts(TREE, count=1)[0]
    seeds = {continuation(task, sample, (5,) * n, 2).seed for sample in range(4) for n in range(1, 6)}
    assert len(seeds) == 20
