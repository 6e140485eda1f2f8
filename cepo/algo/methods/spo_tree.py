"""SPO-tree (arXiv:2505.23564): responses that share prefixes form a tree, and every edge of it is a training row.

A response is also the first continuation of each of its own prefixes, so a tree of 6 x 6 x 6 leaves costs 216
responses: 6 to the prompt, 5 more from each of their 6 prefixes, and 5 more from each of the next 36 prefixes."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from cepo.algo.base import Supply
from cepo.algo.batch import TrainBatch
from cepo.algo.methods.continuations import continuation
from cepo.algo.methods.spo import Decisive
from cepo.algo.segments import Edge, Node, tree_edges
from cepo.messages.arrays import Float32Array, Int32Array
from cepo.messages.groups import Completion, Evidence, EvidencedGroup, EvidenceRow, FinishReason, PromptTask, Verdict

Branches = Annotated[int, Field(ge=2)]


class SpoTree(Decisive):
    """SPO-tree (arXiv:2505.23564): the value at a segment's end minus its start, in a tree of responses.

        V(leaf) = reward of the response;  V(node) = mean of V over its children
        A       = V(end) - V(start), for every token of the segment between two nodes

    followed by the clipped surrogate. A step samples and grades `sampling.samples` x the product of `branching`
    responses per prompt."""

    name: Literal["spo-tree"] = "spo-tree"
    branching: tuple[Branches, ...] = Field(default=(6, 6), min_length=1, strict=False)
    """Number of children of a node at each level below the responses to the prompt. (6, 6) with 6 samples per prompt is
    the paper's 6-6-6 tree."""
    segment_tokens: int = Field(default=512, ge=1)
    """Length of a segment in tokens. Segments of the last level run to the end of the response."""
    edge_scale: Literal["none", "std"] = "none"
    """Divisor of an advantage: none, or std, the standard deviation of the values among its siblings. The released
    configurations call them rloo and grpo."""

    @property
    def continues(self) -> bool:
        return True

    def follow_up(self, groups: Sequence[EvidencedGroup], step: int, supply: Supply) -> tuple[PromptTask, ...]:
        """The continuations of every prefix that is known so far, in the same order in each round."""
        level_of = {group.task.index: self._level(group) for group in groups}
        tasks = [
            continuation(group.task, sample, completion.token_ids[: level * self.segment_tokens], branches - 1)
            for level, branches in enumerate(self.branching, start=1)
            for group in groups
            if level_of[group.task.index] < level
            for sample, completion in enumerate(group.scored.rollout.completions)
            if len(completion.token_ids) > level * self.segment_tokens and not group.scored.verdicts[sample].failed
        ]
        asked = {"asks": groups[0].task.asks, "route": groups[0].task.route} if groups else {}
        return tuple(task.model_copy(update={"index": supply.prompts + at} | asked) for at, task in enumerate(tasks))

    def select(self, groups: Sequence[EvidencedGroup], supply: Supply) -> Sequence[EvidencedGroup]:
        """Makes a group of every node's edges: the prompt is all tokens before them, the rewards are their advantages.

        Edges without an advantage are left out. If no edge is left, the responses to the prompts stand in, with reward
        0.

        Example: segments of 2 tokens, 2 responses per prompt, branching (2,). The prompt P has the responses `a b c d`
        (reward 1) and `x y` (reward 0), and the prefix `a b` was continued by `e f` (reward 0). The tree with its
        values:

            P 1/4 -+- ab 1/2 -+- cd 1
                   |          +- ef 0
                   +- xy 0

        The result has two groups: the prompt `P` with the responses `ab` (reward 1/4) and `xy` (reward -1/4), and the
        prompt `P a b` with the responses `cd` (reward 1/2) and `ef` (reward -1/2).
        """
        return [*self._edge_groups(groups)] or [_without_reward(g) for g in groups if g.task.origin is None]

    def credit_T(self, batch: TrainBatch, row: int) -> Tensor:
        """The advantage of an edge, which `select` made its reward, on each of its tokens."""
        return torch.full((len(batch.response_ids[row]),), float(batch.reward_B[row]))

    def _level(self, group: EvidencedGroup) -> int:
        """The number of segments in the prefix that a group continues."""
        return len(group.task.prefix) // self.segment_tokens

    def _edge_groups(self, groups: Sequence[EvidencedGroup]) -> Iterator[EvidencedGroup]:
        responses, index = _Responses.of(groups, self.segment_tokens, len(self.branching) + 1), 0
        for group in groups:
            root = responses.tree(group) if group.task.origin is None else None
            siblings: dict[tuple[int, ...], list[Edge]] = defaultdict(list)
            for edge in tree_edges(root, scale=self.edge_scale) if root else ():
                siblings[edge.prefix_ids].append(edge)
            for prefix_ids, edges in siblings.items():
                yield responses.edge_group(group, index, prefix_ids, edges)
                index += 1


@dataclass(frozen=True)
class _Responses:
    """All responses of a step, by what they continue. Nodes and edges name their response as (group index, sample)."""

    groups: dict[int, EvidencedGroup]
    """By the index of their task."""
    continuations: dict[tuple[int, int, int], EvidencedGroup]
    """By the response that they continue, (group index, sample), and the number of tokens that they share with it."""
    segment_tokens: int
    levels: int
    """Segments on the way from the root to a leaf."""

    @classmethod
    def of(cls, groups: Sequence[EvidencedGroup], segment_tokens: int, levels: int) -> _Responses:
        continuations = {
            (group.task.origin.index, group.task.origin.sample, len(group.task.prefix)): group
            for group in groups
            if group.task.origin is not None
        }
        return cls({group.task.index: group for group in groups}, continuations, segment_tokens, levels)

    def tree(self, group: EvidencedGroup) -> Node | None:
        """The tree of a prompt's responses; None if none of them has a verdict."""
        children = self._nodes(group, 1)
        return Node(tuple(group.scored.rollout.prompt_token_ids), children=children) if children else None

    def edge_group(
        self, group: EvidencedGroup, index: int, prefix_ids: tuple[int, ...], edges: list[Edge]
    ) -> EvidencedGroup:
        """A prompt's group with the edges below one node as its responses.

        Args:
            group: the prompt's own group.
            index: the index of the new group.
            prefix_ids: the prompt and all tokens up to the node.
            edges: the edges below the node; each becomes one response, whose reward is the edge's advantage.
        """
        start = len(prefix_ids) - len(group.scored.rollout.prompt_token_ids)
        rollout = group.scored.rollout.model_copy(
            update={
                "task": group.task.model_copy(update={"index": index, "samples": len(edges)}),
                "prompt_token_ids": Int32Array.of(prefix_ids),
                "completions": tuple(self._completion(edge, start) for edge in edges),
            }
        )
        scored = group.scored.model_copy(
            update={"rollout": rollout, "verdicts": tuple(self._verdict(edge) for edge in edges)}
        )
        evidence = tuple(
            Evidence(ask=each.ask, rows=tuple(self._evidence(edge, start, at) for edge in edges))
            for at, each in enumerate(group.evidence)
        )
        return EvidencedGroup(scored=scored, evidence=evidence, proofs=group.proofs, seconds=group.seconds)

    def _nodes(self, group: EvidencedGroup, level: int) -> tuple[Node, ...]:
        nodes = (self._node(group, sample, level) for sample in range(group.task.samples))
        return tuple(node for node in nodes if node is not None)

    def _node(self, group: EvidencedGroup, sample: int, level: int) -> Node | None:
        """A response's segment at a level with everything that continues it; None if the response has no verdict.

        Below the segment are the rest of the response itself and the responses that were sampled from its end.
        """
        completion, verdict = group.scored.rollout.completions[sample], group.scored.verdicts[sample]
        start, end, source = (level - 1) * self.segment_tokens, level * self.segment_tokens, (group.task.index, sample)
        if verdict.failed:
            return None
        if level == self.levels or len(completion.token_ids) <= end:
            return Node(completion.token_ids[start:], verdict.reward, source=source)
        others = self.continuations.get((*source, end))
        own = self._node(group, sample, level + 1)
        children = (*((own,) if own else ()), *(self._nodes(others, level + 1) if others else ()))
        return Node(completion.token_ids[start:end], children=children, source=source)

    def _completion(self, edge: Edge, start: int) -> Completion:
        """An edge's tokens, which begin `start` tokens after the prompt, as a response of their own."""
        index, sample = edge.source
        completion = self.groups[index].scored.rollout.completions[sample]
        given = len(self.groups[index].task.prefix)  # the engine reports log-probs after the prefix alone
        return completion.model_copy(
            update={
                "token_ids": Int32Array.of(edge.token_ids),
                "logps": Float32Array.of(completion.logps[start - given : start - given + len(edge.token_ids)]),
                "step_ends": (),
                "finish_reason": completion.finish_reason if edge.is_leaf else FinishReason.STOP,
            }
        )

    def _verdict(self, edge: Edge) -> Verdict:
        index, sample = edge.source
        return self.groups[index].scored.verdicts[sample].model_copy(update={"reward": edge.advantage})

    def _evidence(self, edge: Edge, start: int, at: int) -> EvidenceRow:
        """The evidence of an edge's tokens, of the ask at a place."""
        index, sample = edge.source
        row = self.groups[index].evidence[at].rows[sample]
        return row.model_copy(update={"logps": Float32Array.of(row.logps[start : start + len(edge.token_ids)])})


def _without_reward(group: EvidencedGroup) -> EvidencedGroup:
    verdicts = tuple(verdict.model_copy(update={"reward": 0.0}) for verdict in group.scored.verdicts)
    return group.model_copy(update={"scored": group.scored.model_copy(update={"verdicts": verdicts})})
