"""Attention over a token tree, registered as one of transformers' attention functions.

Each token attends to its ancestors and itself. On the CPU attention is computed in several kernel calls, whose results
are merged by their log-sum-exp: each node attends causally to itself, and all descendants of a node, which are
contiguous, attend to the node in one call. Where a single masked call over a node and its descendants is cheaper, it
replaces theirs. The backward pass of each call is the kernel's own, given the merged output and log-sum-exp, as in ring
attention (arXiv:2310.01889). On a GPU, FlexAttention takes the whole tree as a mask.

Legend: N tokens of the tree, H heads, D head size, R rows (queries) and C columns (keys) of a call.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from typing import Any
from weakref import WeakKeyDictionary, WeakSet

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask, flex_attention
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, sdpa_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from cepo.model.transfer import to_device
from cepo.model.tree import BLOCK, TokenTree

NAME = "cepo_tree"

CALL_WORK = 2**19
"""Fixed cost of a kernel call on the CPU, in query-key pairs times heads times head size (docs/performance.md)."""


@dataclass(frozen=True)
class AttentionCall:
    """One kernel call: the tokens of `rows` attend to the tokens of `columns`."""

    rows: slice
    columns: slice
    mask_RC: Tensor | None = None
    """Added to the scores: 0 where a token attends to another, -inf elsewhere. None: causal or full attention."""

    @property
    def within(self) -> bool:
        """Whether the tokens attend to themselves. Each token is in exactly one such call."""
        return self.rows == self.columns

    @property
    def options(self) -> dict[str, Any]:
        """The kernel's keyword arguments."""
        return {"is_causal": self.within and self.mask_RC is None, "attn_mask": self.mask_RC}


Plan = tuple[AttentionCall, ...] | BlockMask
"""Kernel calls on the CPU, a FlexAttention mask on a GPU."""

_forward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
_backward = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


MAX_KERNELS = 256
"""Compiled variants of FlexAttention that a process keeps, more than there are padded sizes. Above torch's own limit of
8 it would run the unfused reference, which materialises the scores."""


@cache
def _compiled_flex() -> Any:
    """FlexAttention compiled for each padded size.

    One kernel for all sizes (`dynamic=True`) gave NaN with masks that change at each call (pytorch#186775). Wrong
    gradients of keys and values (pytorch#158212) need tokens that attend to nothing; here each attends to itself.
    """
    # as an argument, which its overloads lack: torch's configuration counts in the thread alone that sets it
    compiler: Any = torch.compile
    return compiler(flex_attention, dynamic=False, recompile_limit=MAX_KERNELS)


def plan(tree: TokenTree, device: torch.device, width: int) -> Plan:
    """Prepares attention over a tree, once for all layers.

    Args:
        width: heads times head size; an estimate is enough.
    """
    return block_mask(tree, device) if device.type == "cuda" else attention_calls(tree, CALL_WORK // width)


def attention_calls(tree: TokenTree, overhead: int) -> tuple[AttentionCall, ...]:
    """The cheapest calls that together cover each token with its ancestors and itself exactly once.

    A call of R rows and C columns costs R * C query-key pairs plus the overhead. A node of n tokens, whose descendants
    have m tokens, is computed in the cheaper of two ways (the second on a tie):

    - apart: the node with itself, n * n pairs; the descendants with the node, m * n pairs; and its children in turn;
    - together: the node and its descendants with themselves in one masked call, (n + m) ** 2 pairs.

    Example: a question of 4 tokens with two responses of 2 tokens each. Apart takes 16 + 16 + 4 + 4 pairs in 4 calls,
    together 64 pairs in one call. Up to an overhead of 7 the result is `[0:4 x 0:4, 4:6 x 4:6, 6:8 x 6:8, 4:8 x 0:4]`,
    from 8 on it is `[0:8 x 0:8]`.

    Args:
        overhead: fixed cost of a call, in query-key pairs.

    Returns:
        The calls of tokens with themselves, then those of descendants with their ancestors.
    """
    nodes, masked = tree.nodes, set()  # masked: starts of the nodes whose subtree is one call
    cost_from = {len(tree.ids_N): 0}  # of the subtree that starts there, of the next one after it, and so on to the end
    for node in reversed(nodes):
        size, below = node.end - node.start, node.stop - node.end
        children = cost_from[node.end] - cost_from[node.stop]
        apart = overhead + size**2 + (overhead + below * size if below else 0) + children
        whole = overhead + (size + below) ** 2
        if below and whole <= apart:
            masked.add(node.start)
        cost_from[node.start] = min(apart, whole) + cost_from[node.stop]
    within, across, covered = [], [], 0
    for node in nodes:
        if node.start < covered:
            continue  # an ancestor's masked call covers this node
        together = node.start in masked
        rows = slice(node.start, node.stop if together else node.end)
        mask_RC = _subtree_mask(tree.stop_N[rows] - node.start) if together else None
        within.append(AttentionCall(rows, rows, mask_RC))
        if rows.stop < node.stop:
            across.append(AttentionCall(slice(node.end, node.stop), rows))
        covered = rows.stop
    return (*within, *across)


def _subtree_mask(stop_N: Tensor) -> Tensor:
    """[N, N]: 0 where row q attends to column k, -inf elsewhere."""
    at_N = torch.arange(len(stop_N))
    attends_NN = (at_N <= at_N[:, None]) & (at_N[:, None] < stop_N)
    return torch.zeros(attends_NN.shape).masked_fill_(~attends_NN, -torch.inf)


def block_mask(tree: TokenTree, device: torch.device) -> BlockMask:
    """The tree as FlexAttention's mask, from the ends of the descendants; no tensor of all query-key pairs is made.

    A block of BLOCK queries and BLOCK keys is partial if any of its queries attends to any of its keys, and full if
    each attends to all. A block before the queries' own is partial if one of its tokens has a descendant there, and
    full if the descendants of each of its tokens reach beyond it. The queries' own block is partial, since attention
    is causal. The tables are made on the CPU.
    """
    size = len(tree.stop_N)
    blocks = -(-size // BLOCK)
    ends_KN = torch.nn.functional.pad(tree.stop_N, (0, blocks * BLOCK - size)).view(blocks, BLOCK)
    at_K = torch.arange(blocks)
    start_Q1, before_QK = at_K[:, None] * BLOCK, at_K < at_K[:, None]
    any_QK = (before_QK & (ends_KN.amax(dim=1) > start_Q1)) | (at_K == at_K[:, None])
    full_QK = before_QK & (ends_KN.amin(dim=1) >= start_Q1 + BLOCK)
    stop_N = to_device(tree.stop_N, device)

    def attends(_batch: Tensor, _head: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return (k <= q) & (q < stop_N[k])

    tables = (*_ordered(any_QK & ~full_QK), *_ordered(full_QK))
    mask = BlockMask.from_kv_blocks(*tables, BLOCK_SIZE=BLOCK, mask_mod=attends, seq_lengths=(size, size))
    for name, table in vars(mask).items():
        if isinstance(table, Tensor):
            setattr(mask, name, to_device(table, device))
    return mask


def _ordered(holds_QK: Tensor) -> tuple[Tensor, Tensor]:
    """The number of key blocks of each query block, [1, 1, Q], and their indices first, [1, 1, Q, K]."""
    counts_Q = holds_QK.sum(dim=1, dtype=torch.int32)
    first_QK = holds_QK.int().argsort(dim=1, descending=True, stable=True).int()
    return counts_Q[None, None], first_QK[None, None]


def attend(query: Tensor, key: Tensor, value: Tensor, plan: Plan, scale: float) -> Tensor:
    """Attention over a tree.

    Args:
        query: [1, H, N, D].
        key: [1, H or fewer, N, D].
        value: as the key.

    Returns:
        [1, H, N, D].
    """
    if isinstance(plan, BlockMask):
        flex = _compiled_flex() if query.is_cuda else flex_attention
        return flex(query, key, value, block_mask=plan, scale=scale, enable_gqa=query.shape[1] != key.shape[1])
    return _TreeAttention.apply(query, key, value, plan, scale)


class _TreeAttention(torch.autograd.Function):
    """Attention in several calls, on the CPU. The calls of tokens with themselves come first."""

    @staticmethod
    def forward(
        ctx: Any, query: Tensor, key: Tensor, value: Tensor, calls: Sequence[AttentionCall], scale: float
    ) -> Tensor:
        out = torch.empty_like(query, dtype=torch.float32)
        lse = query.new_empty(query.shape[:3], dtype=torch.float32)  # log-sum-exp of the scores so far
        for call in calls:
            rows, columns = (..., call.rows, slice(None)), (..., call.columns, slice(None))
            more, more_lse = _forward(query[rows], key[columns], value[columns], 0.0, scale=scale, **call.options)
            if call.within:
                out[rows], lse[..., call.rows] = more, more_lse
            else:
                before = lse[..., call.rows]
                out[rows].lerp_(more.float(), torch.sigmoid(more_lse - before).unsqueeze(-1))
                lse[..., call.rows] = torch.logaddexp(before, more_lse)
        out = out.to(query.dtype)
        ctx.save_for_backward(query, key, value, out, lse)
        ctx.calls, ctx.scale = calls, scale
        return out

    @staticmethod
    def backward(ctx: Any, grad_out: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, out, lse = ctx.saved_tensors
        grads = [torch.empty_like(tensor, dtype=torch.float32) for tensor in (query, key, value)]
        for call in ctx.calls:
            rows, columns = (..., call.rows, slice(None)), (..., call.columns, slice(None))
            inputs = (grad_out[rows], query[rows], key[columns], value[columns], out[rows], lse[..., call.rows])
            options = {"attn_mask": call.mask_RC, "scale": ctx.scale}
            call_grads = _backward(*inputs, 0.0, call.options["is_causal"], **options)
            for grad, call_grad, place in zip(grads, call_grads, (rows, columns, columns), strict=True):
                if call.within:
                    grad[place] = call_grad
                else:
                    grad[place] += call_grad
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
    """Called by transformers in each layer; without a tree it is transformers' own SDPA."""
    if tree is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **kwargs)
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    return attend(query, key, value, tree, scale).transpose(1, 2), None


ALL_ATTENTION_FUNCTIONS.register(NAME, _attention_function)
ALL_MASK_ATTENTION_FUNCTIONS.register(NAME, sdpa_mask)


_own: WeakKeyDictionary[Any, str] = WeakKeyDictionary()
"""The attention implementation that each model had before it was switched to trees."""
_padded: WeakSet[Any] = WeakSet()
"""The models that stay on padded rows, because their results over a tree are wrong."""


def takes_trees(model: Any) -> bool:
    """Switches a transformers causal LM to attention over trees, and returns whether the model supports it.

    It may if it passes its arguments on to an exchangeable attention function (`_supports_attention_backend`) and
    every layer is plain full attention: no sliding window, no capped or biased scores, keys and values of one size.
    `cepo.model.probe` compares the results, and calls `keep_padded` for a model whose results over a tree are wrong.
    """
    config = model.config.get_text_config()
    if config._attn_implementation == NAME:
        return True
    options = config.to_dict()
    layers = set(options.get("layer_types") or ["full_attention"])
    windowed = options.get("sliding_window") if options.get("use_sliding_window", True) else None
    plain = layers == {"full_attention"} and not windowed and not options.get("attn_logit_softcapping")
    supported = plain and model._supports_attention_backend and options.get("v_head_dim") is None
    if not supported or model in _padded:
        return False
    _own[model] = config._attn_implementation
    model.set_attn_implementation(NAME)
    return True


def keep_padded(model: Any) -> None:
    """Returns a model to its own attention for good: `takes_trees` is False from now on."""
    _padded.add(model)
    if model in _own:
        model.set_attn_implementation(_own.pop(model))


@contextmanager
def own_attention(model: Any) -> Iterator[None]:
    """Gives a model back its own attention implementation within the context."""
    switched = model in _own
    if switched:
        model.set_attn_implementation(_own[model])
    try:
        yield
    finally:
        if switched:
            model.set_attn_implementation(NAME)
