"""SPO-tree (arXiv:2505.23564): responses that share prefixes make a tree, and every edge of it is a training row.

A response is also the first continuation of each of its own prefixes, so that a tree of 6 x 6 x 6 leaves costs 216
responses: 6 to the prompt, 5 more from each of their 6 prefixes, 5 more from each of the 36 next ones.
"""

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
    """An edge's advantage is the value of its end minus that of its start, a value being the mean of the leaves'.

    A step samples `sampling.samples` times the product of `branching` responses to a prompt, and grades them all.
    """

    name: Literal["spo-tree"] = "spo-tree"
    branching: tuple[Branches, ...] = Field(default=(6, 6), min_length=1, strict=False)
    """Children of a node at each level; the prompt has as many as `sampling.samples`."""
    segment_tokens: int = Field(default=512, ge=1)
    """Length of an edge; those of the last level run to the end."""
    edge_scale: Literal["none", "std"] = "none"
    """What an edge's advantage is divided by; std: the deviation among its siblings."""

    def follow_up(self, groups: Sequence[EvidencedGroup], step: int, supply: Supply) -> tuple[PromptTask, ...]:
        """The continuations from every level that is known, in the same order each time."""
        level_of = {group.task.index: self._level(group) for group in groups}
        wanted = [
            continuation(group.task, sample, completion.token_ids[: level * self.segment_tokens], branches - 1)
            for level, branches in enumerate(self.branching, start=1)
            for group in groups
            if level_of[group.task.index] < level
            for sample, completion in enumerate(group.scored.rollout.completions)
            if len(completion.token_ids) > level * self.segment_tokens and not group.scored.verdicts[sample].failed
        ]
        asked = {"asks": groups[0].task.asks, "route": groups[0].task.route} if groups else {}
        return tuple(task.model_copy(update={"index": supply.prompts + at} | asked) for at, task in enumerate(wanted))

    def select(self, groups: Sequence[EvidencedGroup], supply: Supply) -> Sequence[EvidencedGroup]:
        """The edges of every tree, those of one parent as a group whose rewards are their advantages.

        Edges that teach nothing are left out; without any other the prompts' responses stand for them, worth 0.
        """
        return [*self._edges(groups)] or [
            _worth(group, [verdict.model_copy(update={"reward": 0.0}) for verdict in group.scored.verdicts])
            for group in groups
            if group.task.origin is None
        ]

    def credit_T(self, batch: TrainBatch, row: int) -> Tensor:
        return torch.full((len(batch.response_ids[row]),), float(batch.reward_B[row]))

    def _level(self, group: EvidencedGroup) -> int:
        return len(group.task.prefix) // self.segment_tokens

    def _edges(self, groups: Sequence[EvidencedGroup]) -> Iterator[EvidencedGroup]:
        forest, index = _Forest.of(groups, self.segment_tokens, len(self.branching) + 1), 0
        for group in groups:
            root = forest.root(group) if group.task.origin is None else None
            siblings: dict[tuple[int, ...], list[Edge]] = defaultdict(list)
            for edge in tree_edges(root, scale=self.edge_scale) if root else ():
                siblings[edge.prefix_ids].append(edge)
            for prompt_ids, edges in siblings.items():
                yield forest.rows(group, index, prompt_ids, edges)
                index += 1


@dataclass(frozen=True)
class _Forest:
    """A step's trees."""

    groups: dict[int, EvidencedGroup]
    children: dict[tuple[int, int, int], EvidencedGroup]
    """By the group and the response that they go on from, and the length of what they share."""
    segment_tokens: int
    levels: int

    @classmethod
    def of(cls, groups: Sequence[EvidencedGroup], segment_tokens: int, levels: int) -> _Forest:
        children = {
            (group.task.origin.index, group.task.origin.sample, len(group.task.prefix)): group
            for group in groups
            if group.task.origin is not None
        }
        return cls({group.task.index: group for group in groups}, children, segment_tokens, levels)

    def root(self, group: EvidencedGroup) -> Node | None:
        """The tree of a prompt; None where nothing was judged."""
        children = self._nodes(group, 1)
        return Node(tuple(group.scored.rollout.prompt_token_ids), children=children) if children else None

    def rows(self, group: EvidencedGroup, index: int, prompt_ids: tuple[int, ...], edges: list[Edge]) -> EvidencedGroup:
        """Edges of one parent as responses to all that comes before them."""
        start = len(prompt_ids) - len(group.scored.rollout.prompt_token_ids)
        pieces = [self._piece(edge, start) for edge in edges]
        task = group.task.model_copy(update={"index": index, "samples": len(edges)})
        changes = {
            "task": task,
            "prompt_token_ids": Int32Array.of(prompt_ids),
            "completions": tuple(piece[0] for piece in pieces),
        }
        evidence = tuple(
            Evidence(ask=found.ask, rows=tuple(piece[2][at] for piece in pieces))
            for at, found in enumerate(group.evidence)
        )
        scored = group.scored.model_copy(
            update={
                "rollout": group.scored.rollout.model_copy(update=changes),
                "verdicts": tuple(piece[1] for piece in pieces),
            }
        )
        return EvidencedGroup(scored=scored, evidence=evidence, proofs=group.proofs, seconds=group.seconds)

    def _nodes(self, group: EvidencedGroup, level: int) -> tuple[Node, ...]:
        found = (self._node(group, sample, level) for sample in range(group.task.samples))
        return tuple(node for node in found if node is not None)

    def _node(self, group: EvidencedGroup, sample: int, level: int) -> Node | None:
        """The part of a response at a level and all that goes on from it; None where that has no verdict."""
        completion, verdict = group.scored.rollout.completions[sample], group.scored.verdicts[sample]
        start, end, source = (level - 1) * self.segment_tokens, level * self.segment_tokens, (group.task.index, sample)
        if verdict.failed:
            return None
        if level == self.levels or len(completion.token_ids) <= end:
            return Node(completion.token_ids[start:], verdict.reward, source=source)
        others = self.children.get((*source, end))
        own = self._node(group, sample, level + 1)
        children = (*((own,) if own else ()), *(self._nodes(others, level + 1) if others else ()))
        return Node(completion.token_ids[start:end], children=children, source=source)

    def _piece(self, edge: Edge, start: int) -> tuple[Completion, Verdict, list[EvidenceRow]]:
        group = self.groups[edge.source[0]]
        completion = group.scored.rollout.completions[edge.source[1]]
        end, given = start + len(edge.token_ids), len(group.task.prefix)
        part = completion.model_copy(
            update={
                "token_ids": Int32Array.of(edge.token_ids),
                "logps": Float32Array.of(completion.logps[start - given : end - given]),
                "step_ends": (),
                "finish_reason": completion.finish_reason if edge.is_leaf else FinishReason.STOP,
            }
        )
        verdict = group.scored.verdicts[edge.source[1]].model_copy(update={"reward": edge.advantage})
        measured = [found.rows[edge.source[1]] for found in group.evidence]
        return part, verdict, [_cut(row, start, end) for row in measured]


def _cut(row: EvidenceRow, start: int, end: int) -> EvidenceRow:
    return row.model_copy(update={"logps": Float32Array.of(row.logps[start:end])})


def _worth(group: EvidencedGroup, verdicts: Sequence[Verdict]) -> EvidencedGroup:
    return group.model_copy(update={"scored": group.scored.model_copy(update={"verdicts": tuple(verdicts)})})
