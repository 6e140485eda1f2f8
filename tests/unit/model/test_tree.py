"""Shared prefixes run once: the tree, its passes, and equality with a plain forward pass per row."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    LlamaConfig,
    MistralConfig,
    PreTrainedConfig,
    Qwen2Config,
    Qwen3MoeConfig,
)

import cepo.tiny
from cepo.model import attention, tree as tree_module
from cepo.model.forward import response_logps, response_states
from cepo.model.tree import MIN_SAVED, TokenTree, TreeNode, passes, token_tree

torch.set_num_threads(1)
WORDS = 97
SMALL: dict[str, Any] = {
    "vocab_size": WORDS,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 128,
}
MOE = {"moe_intermediate_size": 16, "num_experts": 4, "num_experts_per_tok": 2}
Rows = tuple[list[list[int]], list[list[int]]]


def random_rows(seed: int, contexts: int | None = None) -> Rows:
    """Random groups in random order: up to four contexts each, with empty and with equal responses."""
    rng = random.Random(seed)

    def ids(low: int, high: int) -> list[int]:
        return [rng.randrange(WORDS) for _ in range(rng.randint(low, high))]

    rows = []
    for _ in range(rng.randint(1, 3)):
        question, template = ids(1, 40), ids(0, 6)
        hints = [[], *(template + ids(1, 9) for _ in range((contexts or rng.randint(1, 4)) - 1))]
        responses = [ids(0, 25) for _ in range(rng.randint(1, 5))]
        responses += [responses[0], responses[0][:5] + ids(1, 8)]
        rows += [(question + hint, response) for hint in hints for response in responses]
    rng.shuffle(rows)
    prompts, answers = zip(*rows, strict=True)
    return list(prompts), list(answers)


def plain_logps(model: Any, prompt: list[int], response: list[int], temperature: float) -> Tensor:
    logits_SV = model(input_ids=torch.tensor([prompt + response])).logits[0] / temperature
    at_T = torch.arange(len(response)) + len(prompt) - 1
    return torch.log_softmax(logits_SV, dim=-1)[at_T, torch.tensor(response, dtype=torch.long)]


def assert_exact(model: Any, rows: Rows, temperature: float = 1.0) -> None:
    logp_BT = response_logps(model, *rows, temperature)
    for logp_T, prompt, response in zip(logp_BT, *rows, strict=True):
        wanted_T = plain_logps(model, prompt, response, temperature)
        torch.testing.assert_close(logp_T[: len(response)], wanted_T, rtol=0, atol=1e-4)
        assert not logp_T[len(response) :].any()


def make_model(config: PreTrainedConfig) -> Any:
    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(config).eval().requires_grad_(False)


@pytest.fixture(scope="module")
def tiny() -> Any:
    return AutoModelForCausalLM.from_pretrained(cepo.tiny.path(), dtype=torch.float32).eval().requires_grad_(False)


def test_a_question_a_hint_and_the_responses_are_laid_out_once() -> None:
    question, hint, one, two = list(range(20)), list(range(30, 42)), [50, 51], [60, 61, 62]
    rows = [question + hint + two, question + one, question + hint + one, question]
    tree = token_tree(rows)
    assert tree.nodes == (
        TreeNode(0, 20, 39),
        TreeNode(20, 32, 37),
        TreeNode(32, 34, 34),
        TreeNode(34, 37, 37),
        TreeNode(37, 39, 39),
    )
    for row, path in zip(rows, tree.paths, strict=True):
        assert tree.ids_N[path].tolist() == row
        assert tree.depth_N[path].tolist() == list(range(len(row)))


def test_a_branch_that_saves_too_little_begins_further_up() -> None:
    trunk = list(range(50, 80))
    for shared in range(1, MIN_SAVED + 3):
        tail = list(range(shared))
        tree = token_tree([trunk, [*trunk, *tail, 90], [*trunk, *tail, 91]])
        assert len(tree.ids_N) == len(trunk) + 2 + shared * (1 if shared >= MIN_SAVED else 2)


def test_the_example_of_the_module_is_laid_out_as_it_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tree_module, "MIN_SAVED", 0)
    a, b, c, d, e, f = range(6)
    tree = token_tree([[a, b, c], [a, b, d, e], [a, f]])
    assert tree.ids_N.tolist() == [a, b, c, d, e, f]
    assert tree.depth_N.tolist() == [0, 1, 2, 2, 3, 1]
    assert tree.stop_N.tolist() == [6, 5, 3, 5, 5, 6]
    assert [path.tolist() for path in tree.paths] == [[0, 1, 2], [0, 1, 3, 4], [0, 5]]


def test_a_small_branch_under_a_large_one_is_dropped_and_the_large_one_kept() -> None:
    trunk = list(range(20))
    tree = token_tree([[*trunk, 90], [*trunk, 80, 81, 82, 1], [*trunk, 80, 81, 82, 2], [*trunk, 70]])
    lengths = [node.end - node.start for node in tree.nodes]
    assert lengths == [20, 1, 4, 4, 1]


def test_passes_cost_their_distinct_tokens() -> None:
    a, b, c, d, e, f, g, h, x = range(9)
    assert passes([[a, b, c, d], [e, f, g, h], [a, b, c, x]], 8) == [[0, 2], [1]]


def test_attention_calls_are_the_cheaper_ones() -> None:
    """A question of 4 tokens with two responses of 2: 40 pairs in four calls, or 64 pairs in one."""
    ids_N, depth_N = torch.zeros(8, dtype=torch.long), torch.tensor([0, 1, 2, 3, 4, 5, 4, 5])
    tree = TokenTree(ids_N, depth_N, torch.tensor([8, 8, 8, 8, 6, 6, 8, 8]), ())
    apart = [(0, 4, 0, 4), (4, 6, 4, 6), (6, 8, 6, 8), (4, 8, 0, 4)]
    for overhead, wanted in ((0, apart), (7, apart), (8, [(0, 8, 0, 8)])):
        calls = attention.attention_calls(tree, overhead)
        assert [(c.rows.start, c.rows.stop, c.columns.start, c.columns.stop) for c in calls] == wanted


@pytest.mark.parametrize("seed", range(30))
def test_every_row_reads_itself_along_its_ancestors(seed: int) -> None:
    rows = [prompt + response for prompt, response in zip(*random_rows(seed), strict=True)]
    tree = token_tree(rows)
    covered = [token for node in tree.nodes for token in range(node.start, node.end)]
    assert covered == list(range(len(tree.ids_N)))
    for row, path in zip(rows, tree.paths, strict=True):
        assert tree.ids_N[path].tolist() == row
        last = int(path[-1])
        assert [token for token in range(last + 1) if last < tree.stop_N[token]] == path.tolist()
    again = token_tree(rows[::-1])
    assert torch.equal(tree.ids_N, again.ids_N)
    assert tree.nodes == again.nodes
    assert len(tree.ids_N) <= sum(map(len, rows))


@pytest.mark.parametrize("seed", range(10))
@pytest.mark.parametrize("budget", [1, 60, 200, 10**6])
def test_passes_hold_every_row_once_within_the_budget(seed: int, budget: int) -> None:
    rows = [prompt + response for prompt, response in zip(*random_rows(seed), strict=True)]
    cuts = passes(rows, budget)
    assert sorted(row for cut in cuts for row in cut) == list(range(len(rows)))
    for cut in cuts:
        prefixes = {tuple(rows[row][:end]) for row in cut for end in range(1, len(rows[row]) + 1)}
        assert len(cut) == 1 or len(prefixes) <= budget
    if budget == 10**6:
        assert len(cuts) == 1


def test_groups_are_cut_where_they_share_nothing() -> None:
    groups = [[[word] * 40 + [i] * 10 for i in range(6)] for word in (70, 80, 90)]
    order = [(i * 7) % 18 for i in range(18)]
    rows = [[row for group in groups for row in group][i] for i in order]
    assert [{rows[i][0] for i in part} for part in passes(rows, 110)] == [{70}, {80}, {90}]


@pytest.mark.parametrize("seed", range(12))
@torch.no_grad()
def test_log_probs_equal_one_plain_forward_a_row(tiny: Any, seed: int) -> None:
    assert_exact(tiny, random_rows(seed, contexts=seed % 4 + 1), temperature=(1.0, 0.7)[seed % 2])
    assert tiny.config._attn_implementation == attention.NAME


@torch.no_grad()
def test_log_probs_depend_neither_on_order_nor_on_the_budget(tiny: Any) -> None:
    prompts, responses = random_rows(5)
    logp_BT = response_logps(tiny, prompts, responses, 1.0)
    for budget in (1, 64, 300):
        for part in passes([p + r for p, r in zip(prompts, responses, strict=True)], budget):
            some_BT = response_logps(tiny, [prompts[i] for i in part], [responses[i] for i in part], 1.0)
            torch.testing.assert_close(some_BT, logp_BT[part, : some_BT.shape[1]], rtol=0, atol=1e-4)


@torch.no_grad()
def test_rows_without_any_response_have_no_states(tiny: Any) -> None:
    states = response_states(tiny, [[1, 2], [3]], [[], []], 1.0)
    assert states.logp_BT.shape == (2, 0)
    assert not states.pooled_BD().any()
    assert response_states(tiny, [], [], 1.0).logp_BT.shape == (0, 0)


@pytest.mark.parametrize(
    "config",
    [
        LlamaConfig(**SMALL),
        Qwen2Config(**SMALL),
        MistralConfig(**SMALL, sliding_window=None),
        Qwen3MoeConfig(**SMALL, **MOE),
        LlamaConfig(**SMALL | {"num_key_value_heads": 4}),
    ],
    ids=lambda config: config.model_type,
)
@torch.no_grad()
def test_other_decoders_take_trees(config: PreTrainedConfig) -> None:
    model = make_model(config)
    for seed in range(3):
        assert_exact(model, random_rows(seed))
    assert model.config._attn_implementation == attention.NAME


@pytest.mark.parametrize(
    "config",
    [
        MistralConfig(**SMALL, sliding_window=8),
        Gemma2Config(**SMALL, sliding_window=8, final_logit_softcapping=None),
        Qwen2Config(**SMALL, use_sliding_window=True, sliding_window=8, max_window_layers=1),
    ],
    ids=lambda config: config.model_type,
)
@torch.no_grad()
def test_decoders_with_windows_or_capped_scores_are_padded(config: PreTrainedConfig) -> None:
    model = make_model(config)
    assert_exact(model, random_rows(1))
    assert model.config._attn_implementation != attention.NAME


@pytest.mark.parametrize("seed", range(3))
def test_every_way_of_attending_to_a_tree_gives_the_same(seed: int) -> None:
    tree = token_tree([p + r for p, r in zip(*random_rows(seed), strict=True)]).padded()
    device, size = torch.device("cpu"), len(tree.ids_N)
    inputs = [torch.randn(1, heads, size, 16, requires_grad=True) for heads in (4, 2, 2)]
    weight = torch.randn(1, 4, size, 16)
    plans = [attention.attention_calls(tree, call) for call in (0, 1000, 10**9)]
    masked = [sum(call.mask_RC is not None for call in plan) for plan in plans]
    assert masked[0] == 0 < masked[2]
    assert len(plans[0]) > len(plans[1]) >= len(plans[2])
    query, key, value = inputs
    wanted = attention.attend(query.detach(), key.detach(), value.detach(), attention.block_mask(tree, device), 0.25)
    slopes = []
    for plan in plans:
        attended = attention.attend(query, key, value, plan, 0.25)
        torch.testing.assert_close(attended, wanted, rtol=0, atol=1e-5)
        slopes.append(torch.autograd.grad((attended * weight).sum(), inputs))
        for one, other in zip(slopes[-1], slopes[0], strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=1e-5)


@pytest.mark.parametrize("seed", range(5))
def test_attention_is_one_call_for_a_small_tree_and_one_a_node_for_a_large_one(seed: int) -> None:
    tree = token_tree([p + r for p, r in zip(*random_rows(seed), strict=True)])
    roots = [node for node in tree.nodes if tree.depth_N[node.start] == 0]
    small, large = attention.attention_calls(tree, 10**9), attention.attention_calls(tree, 0)
    assert [(call.rows.start, call.rows.stop) for call in small] == [(root.start, root.stop) for root in roots]
    assert [(call.rows.start, call.rows.stop) for call in large if call.within] == [
        (n.start, n.end) for n in tree.nodes
    ]


@pytest.mark.parametrize(
    ("size", "padded"), [(1, 32), (31, 32), (32, 32), (33, 64), (1024, 1024), (1025, 1088), (2000, 2048), (2049, 2176)]
)
def test_a_tree_is_padded_with_tokens_of_no_row(size: int, padded: int) -> None:
    tree = token_tree([list(range(size))]).padded()
    assert len(tree.ids_N) == len(tree.depth_N) == len(tree.stop_N) == padded
    assert tree.paths[0].tolist() == list(range(size))
    assert set(tree.stop_N[:size].tolist()) == {size}
    on_gpu = len(token_tree([list(range(size))]).padded("cuda").ids_N)
    assert on_gpu % 128 == 0
    assert size <= on_gpu < max(size + 128, 1.125 * size)


@torch.no_grad()
def test_a_model_that_took_trees_still_answers_a_padded_batch(tiny: Any) -> None:
    response_logps(tiny, [[1, 2]], [[3]], 1.0)
    ids = torch.tensor([[5, 6, 7, 8], [5, 6, 0, 0]])
    padded = tiny(input_ids=ids, attention_mask=torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])).logits
    torch.testing.assert_close(padded[1, :2], padded[0, :2], rtol=0, atol=1e-4)
