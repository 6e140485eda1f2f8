"""Attention over a token tree, as one of transformers' attention functions: each token sees its ancestors and itself.

On the CPU every node attends causally to itself, and all descendants of a node, which lie together, attend to it in one
call; the parts are merged by their log-sum-exp. The backward pass of a part is the kernel's own, given the merged
output and log-sum-exp, as in ring attention (arXiv:2310.01889). On a GPU FlexAttention takes the same tree as a mask.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, create_block_mask, flex_attention
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from cepo.tree import Node, TokenTree

NAME = "cepo_tree"

Plan = tuple[Node, ...] | BlockMask

_forward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


@cache
def _compiled_flex() -> Any:
    return torch.compile(flex_attention)


def plan(tree: TokenTree, device: torch.device) -> Plan:
    """What attention needs to know of a tree, made once for all layers."""
    return tree.nodes if device.type == "cpu" else block_mask(tree, device)


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
    """By parts, on the CPU."""

    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, nodes: Sequence[Node], scale: float) -> Tensor:
        out = torch.empty_like(query, dtype=torch.float32)
        total = query.new_empty(query.shape[:3], dtype=torch.float32)
        for rows, columns, causal in _parts(nodes):
            part, part_total = _forward(query[rows], key[columns], value[columns], 0.0, causal, scale=scale)
            if causal:
                out[rows], total[rows] = part, part_total
            else:
                share = torch.sigmoid(part_total - total[rows]).unsqueeze(-1)
                out[rows].lerp_(part.float(), share)
                total[rows] = torch.logaddexp(total[rows], part_total)
        out = out.to(query.dtype)
        ctx.save_for_backward(query, key, value, out, total)
        ctx.nodes, ctx.scale = nodes, scale
        return out

    @staticmethod
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, out, total = ctx.saved_tensors
        grads = [torch.empty_like(tensor, dtype=torch.float32) for tensor in (query, key, value)]
        for rows, columns, causal in _parts(ctx.nodes):
            parts = _backward(
                grad_out[rows],
                query[rows],
                key[columns],
                value[columns],
                out[rows],
                total[rows],
                0.0,
                causal,
                scale=ctx.scale,
            )
            for grad, part, place in zip(grads, parts, (rows, columns, columns), strict=True):
                if causal:
                    grad[place] = part
                else:
                    grad[place] += part
        return (*(grad.to(query.dtype) for grad in grads), None, None)


Place = tuple[slice, slice, slice]


def _parts(nodes: Sequence[Node]) -> list[tuple[Place, Place, bool]]:
    """(queries, keys, causal): every node with itself, then every node's descendants with it."""
    every = slice(None)
    own = [(every, every, slice(node.start, node.end)) for node in nodes]
    below = [(every, every, slice(node.end, node.stop)) for node in nodes]
    with_itself = [(place, place, True) for place in own]
    with_ancestor = [
        (rows, place, False) for place, rows in zip(own, below, strict=True) if rows[2].start < rows[2].stop
    ]
    return with_itself + with_ancestor


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
