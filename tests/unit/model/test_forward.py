"""Log-probs and their gradients through adapter and vocabulary: equal to a plain loop, and in bounded memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, get_args

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks
from torch.nn.utils.rnn import pad_sequence
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import AutoModelForCausalLM

import cepo.tiny
from cepo.algo.losses import Aggregation, clipped_surrogate
from cepo.model.forward import CHUNK_BYTES, ResponseStates, checkpoint_layers, response_logps, sampled
from cepo.model.head import TILES, target_logps
from cepo.run.sections import LINEAR_LAYERS

torch.set_num_threads(1)
QUESTION = list(range(40, 70))
PROMPTS = [QUESTION] * 5 + [[*QUESTION, 7, 8, 9]] * 3 + [[1, 2]]
RESPONSES = [[5, 6, 7], [5, 6, 9, 10], [], [11], [5, 6, 7], [20, 21], [22], [20, 23, 24, 25, 26], [30, 31]]


def adapted_tiny() -> Any:
    """The tiny model with a random adapter."""
    base = AutoModelForCausalLM.from_pretrained(cepo.tiny.path(), dtype=torch.float32).eval().requires_grad_(False)
    model = get_peft_model(base, LoraConfig(r=4, target_modules=list(LINEAR_LAYERS), task_type="CAUSAL_LM"))
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in trained(model):
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.05)
    return model


def trained(model: Any) -> list[Tensor]:
    return [parameter for parameter in model.parameters() if parameter.requires_grad]


def shared_logps(model: Any) -> Tensor:
    return response_logps(model.get_base_model(), PROMPTS, RESPONSES, 0.8)


def padded_logps(model: Any) -> Tensor:
    """The log-probs of a plain loop: one padded batch with all logits."""
    rows = [torch.tensor(p + r) for p, r in zip(PROMPTS, RESPONSES, strict=True)]
    mask_BS = pad_sequence([torch.ones_like(row) for row in rows], batch_first=True)
    logits_BSV = model(input_ids=pad_sequence(rows, batch_first=True), attention_mask=mask_BS).logits / 0.8
    logp_BSV = torch.log_softmax(logits_BSV, dim=-1)
    logps = []
    for logp_SV, prompt, response in zip(logp_BSV, PROMPTS, RESPONSES, strict=True):
        at = torch.arange(len(response)) + len(prompt) - 1
        logps.append(logp_SV[at, torch.tensor(response, dtype=torch.long)])
    return pad_sequence(logps, batch_first=True)


def gradients(model: Any, logps: Callable[[Any], Tensor], aggregation: Aggregation) -> list[Tensor]:
    generator = torch.Generator().manual_seed(4)
    logp_BT = logps(model)
    mask_BT = torch.tensor([[float(t < len(r)) for t in range(logp_BT.shape[1])] for r in RESPONSES])
    adv_BT, noise_BT = (torch.randn(mask_BT.shape, generator=generator) for _ in range(2))
    loss = clipped_surrogate(
        logp_BT,
        logp_BT.detach() + 0.1 * noise_BT,
        adv_BT,
        mask_BT,
        clip_low=0.2,
        clip_high=0.28,
        aggregation=aggregation,
    )
    return list(torch.autograd.grad(loss, trained(model)))


def assert_same(ours: list[Tensor], wanted: list[Tensor]) -> None:
    assert max(float(gradient.abs().max()) for gradient in wanted) > 0.01
    for one, other in zip(ours, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-5)


@pytest.mark.parametrize("aggregation", get_args(Aggregation))
def test_gradients_equal_those_of_a_padded_loop(aggregation: Aggregation) -> None:
    model = adapted_tiny()
    torch.testing.assert_close(shared_logps(model), padded_logps(model), rtol=0, atol=1e-5)
    assert_same(gradients(model, shared_logps, aggregation), gradients(model, padded_logps, aggregation))


def test_checkpointed_layers_give_the_same_gradients_and_keep_less() -> None:
    model = adapted_tiny()
    kept: list[int] = []

    def note(tensor: Tensor) -> Tensor:
        kept[-1] += tensor.numel()
        return tensor

    plain_and_checkpointed = []
    for prepare in (lambda _: None, checkpoint_layers):
        prepare(model.get_base_model())
        kept.append(0)
        with saved_tensors_hooks(note, lambda tensor: tensor):
            logp_BT = shared_logps(model)
        plain_and_checkpointed.append(list(torch.autograd.grad(logp_BT.sum(), trained(model))))
    assert kept[1] < kept[0] / 4
    for one, other in zip(*plain_and_checkpointed, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)  # gradients of a sum reach several hundred


@pytest.mark.parametrize(("tokens", "words"), [(5, 11), (TILES["cpu"][0] + 3, TILES["cpu"][1] * 2 + 7)])
@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_tiled_log_probs_equal_a_softmax(tokens: int, words: int, temperature: float) -> None:
    generator = torch.Generator().manual_seed(0)
    hidden_ND = torch.randn(tokens, 16, generator=generator, requires_grad=True)
    weight_VD, weight_N = torch.randn(words, 16, generator=generator), torch.randn(tokens, generator=generator)
    target_N = torch.randint(0, words, (tokens,), generator=generator)
    tiled_N = target_logps(hidden_ND, target_N, weight_VD, temperature)
    logp_NV = torch.log_softmax(hidden_ND @ weight_VD.T / temperature, dim=-1)
    wanted_N = logp_NV.gather(1, target_N[:, None]).squeeze(1)
    torch.testing.assert_close(tiled_N, wanted_N, rtol=1e-5, atol=1e-5)
    (tiled_ND,), (wanted_ND,) = (
        torch.autograd.grad((logp_N * weight_N).sum(), hidden_ND) for logp_N in (tiled_N, wanted_N)
    )
    torch.testing.assert_close(tiled_ND, wanted_ND, rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        torch.testing.assert_close(target_logps(hidden_ND, target_N, weight_VD, temperature), tiled_N)


class Largest(TorchDispatchMode):
    """Records the size of the largest tensor that an operation returns."""

    numel = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        sizes = [tensor.untyped_storage().nbytes() // 4 for tensor in tree_leaves(out) if isinstance(tensor, Tensor)]
        self.numel = max(self.numel, *sizes, 0)
        return out


def largest(tokens: int, words: int, rule: Callable[[ResponseStates], Tensor]) -> int:
    """The number of elements of the largest new tensor during a forward and backward pass."""
    head = torch.nn.Linear(4, words, bias=False).requires_grad_(False)
    hidden_ND = torch.randn(tokens, 4, requires_grad=True)
    target_N, valid_BT = torch.randint(0, words, (tokens,)), torch.ones(1, tokens, dtype=torch.bool)
    states = ResponseStates(hidden_ND, target_N, valid_BT, head, 1.0, [tokens])
    with Largest() as recorded:
        rule(states).sum().backward()
    return recorded.numel


def test_no_tensor_is_as_large_as_the_tokens_times_the_vocabulary() -> None:
    bound = TILES["cpu"][0] * TILES["cpu"][1]
    for tokens, words in ((1100, 20_000), (1100, 40_000), (2100, 20_000)):
        assert largest(tokens, words, lambda states: states.logp_BT) <= max(bound, 4 * words)
    words = CHUNK_BYTES // 4 // 16
    assert largest(17, words, lambda states: states.per_token(sampled)) == 16 * words
