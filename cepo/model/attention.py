"""Attention over a token tree, as one of transformers' attention functions: each token sees its ancestors and itself.

On the CPU every node attends causally to itself, and all descendants of a node, which lie together, attend to it in one
call; the attention_calls are merged by their log-sum-exp. Where that takes more calls than it is worth, a node and its
descendants attend to each other in one call, under a mask. The backward pass of a part is the kernel's own, given the
merged output and log-sum-exp, as in ring attention (arXiv:2310.01889). On a GPU FlexAttention takes the same tree as a
mask.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from cepo.model.tree import TokenTree

NAME = "cepo_tree"

CALL_WORK = 2**19
"""What one more call costs on the CPU: so many query-key pairs, times heads, times their size (benchmarks/NOTES.md)."""


@dataclass(frozen=True)
class AttentionCall:
    """One call: the tokens of `rows` attend to those of `columns`, causally where they are the same."""

    rows: slice
    columns: slice
    hidden_NN: Tensor | None = None
    """Added to the scores; 0 where a token sees another."""

    @property
    def own(self) -> bool:
        """Whether the tokens attend to themselves: the first part of each token."""
        return self.rows == self.columns

    @property
    def options(self) -> dict[str, Any]:
        """Of the kernel."""
        return {"is_causal": self.own and self.hidden_NN is None, "attn_mask": self.hidden_NN}


Plan = tuple[AttentionCall, ...] | BlockMask

_forward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


@cache
def _compiled_flex() -> Any:
    return torch.compile(flex_attention)


def plan(tree: TokenTree, device: torch.device, width: int) -> Plan:
    """What attention needs to know of a tree, made once for all layers.

    Args:
        width: heads times head size, or about that much.
    """
    return attention_calls(tree, CALL_WORK // width) if device.type == "cpu" else block_mask(tree, device)


def attention_calls(tree: TokenTree, call: int) -> tuple[AttentionCall, ...]:
    """The calls that cost least in all, one of them costing `call` query-key pairs more than it has.

    Those of tokens with themselves come first.
    """
    nodes = tree.nodes
    at = {node.start: i for i, node in enumerate(nodes)}
    cost, whole = [0] * len(nodes), [False] * len(nodes)
    for i in reversed(range(len(nodes))):
        node, apart = nodes[i], 0
        child = node.end
        while child < node.stop:
            apart += cost[at[child]]
            child = nodes[at[child]].stop
        size, below = node.end - node.start, node.stop - node.end
        apart += call + size**2 + (call + size * below if below else 0)
        together = call + (size + below) ** 2
        cost[i], whole[i] = min(apart, together), bool(below) and together <= apart
    own, above, done = [], [], 0
    for node, masked in zip(nodes, whole, strict=True):
        if node.start < done:
            continue
        rows = slice(node.start, node.stop if masked else node.end)
        own.append(AttentionCall(rows, rows, _hidden(tree.stop_N[rows] - node.start) if masked else None))
        if not masked and node.end < node.stop:
            above.append(AttentionCall(slice(node.end, node.stop), rows))
        done = rows.stop
    return (*own, *above)


def _hidden(stop_N: Tensor) -> Tensor:
    """-inf where a token does not see another."""
    at_N = torch.arange(len(stop_N))
    seen_NN = (at_N <= at_N[:, None]) & (at_N[:, None] < stop_N)
    return torch.zeros(seen_NN.shape).masked_fill_(~seen_NN, -torch.inf)


def block_mask(tree: TokenTree, device: torch.device) -> BlockMask:
    """The tree as FlexAttention's mask."""
    stop_N, size = tree.stop_N.to(device), len(tree.stop_N)

    def sees(_batch: Tensor, _head: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return (k <= q) & (q < stop_N[k])

    return create_block_mask(sees, None, None, size, size, device=str(device))


def attend(query: Tensor, key: Tensor, value: Tensor, plan: Plan, scale: float) -> Tensor:
    """Attention of [1, heads, N, head size] over a tree; key and value may have fewer heads."""
    if isinstance(plan, BlockMask):
        flex = _compiled_flex() if query.is_cuda else flex_attention
        return flex(query, key, value, block_mask=plan, scale=scale, enable_gqa=query.shape[1] != key.shape[1])
    return _TreeAttention.apply(query, key, value, plan, scale)


class _TreeAttention(torch.autograd.Function):
    """By attention_calls, on the CPU."""

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, attention_calls: Sequence[AttentionCall], scale: float
    ) -> Tensor:
        out = torch.empty_like(query, dtype=torch.float32)
        total = query.new_empty(query.shape[:3], dtype=torch.float32)
        for part in attention_calls:
            rows, columns = (..., part.rows, slice(None)), (..., part.columns, slice(None))
            own, own_total = _forward(query[rows], key[columns], value[columns], 0.0, scale=scale, **part.options)
            if part.own:
                out[rows], total[..., part.rows] = own, own_total
            else:
                before = total[..., part.rows]
                out[rows].lerp_(own.float(), torch.sigmoid(own_total - before).unsqueeze(-1))
                total[..., part.rows] = torch.logaddexp(before, own_total)
        out = out.to(query.dtype)
        ctx.save_for_backward(query, key, value, out, total)
        ctx.attention_calls, ctx.scale = attention_calls, scale
        return out

    @staticmethod
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, out, total = ctx.saved_tensors
        grads = [torch.empty_like(tensor, dtype=torch.float32) for tensor in (query, key, value)]
        for part in ctx.attention_calls:
            rows, columns = (..., part.rows, slice(None)), (..., part.columns, slice(None))
            inputs = (grad_out[rows], query[rows], key[columns], value[columns], out[rows], total[..., part.rows])
            found = _backward(*inputs, 0.0, part.options["is_causal"], attn_mask=part.hidden_NN, scale=ctx.scale)
            for grad, more, place in zip(grads, found, (rows, columns, columns), strict=True):
                if part.own:
                    grad[place] = more
                else:
                    grad[place] += more
        return (*(grad.to(query.dtype) for grad in grads), None, None)


def _attention_function(
    module: torch.nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    tree: Plan | None = None,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """What transformers calls; without a tree its own SDPA."""
    if tree is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **kwargs)
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    return attend(query, key, value, tree, scale).transpose(1, 2), None


ALL_ATTENTION_FUNCTIONS.register(NAME, _attention_function)
ALL_MASK_ATTENTION_FUNCTIONS.register(NAME, sdpa_mask)


def takes_trees(model: Any) -> bool:
    """Whether a transformers causal LM attends by trees from now on.

    It does if it hands its arguments to an exchangeable attention function (`_supports_attention_backend`) and every
    layer is plain full attention: no sliding window, no capped or biased scores, keys and values of one size.
    """
    config = model.config.get_text_config()
    if config._attn_implementation == NAME:
        return True
    said = config.to_dict()
    layers = set(said.get("layer_types") or ["full_attention"])
    windowed = said.get("sliding_window") if said.get("use_sliding_window", True) else None
    plain = layers == {"full_attention"} and not windowed and not said.get("attn_logit_softcapping")
    if not (plain and model._supports_attention_backend and said.get("v_head_dim") is None):
        return False
    model.set_attn_implementation(NAME)
    return True
