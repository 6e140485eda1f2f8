import random
from itertools import islice

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedTokenizerFast

import cepo.tiny
from cepo.messages.hints import HINT, INSTRUCTION
from cepo.tiny.demos import Mixture, demonstrations
from cepo.tiny.task import problems
from cepo.tiny.tokenizer import END_ID, PAD_ID, build
from cepo.tiny.train import encode, loss_of, new_model

TEXTS = [
    "",
    " ",
    "23 + 45 - 17 = ?",
    "  two  spaces\n\n\ttab \r\n",
    "Wörld — 漢字 🙂 \x00\x7f",
    "Natalia sold clips to 48 of her friends in April.",
    "".join(map(chr, range(0x20, 0x2FF))),
]


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return AutoTokenizer.from_pretrained(cepo.tiny.path())


@pytest.mark.parametrize("text", TEXTS)
def test_any_text_round_trips(tokenizer: PreTrainedTokenizerFast, text: str) -> None:
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_every_digit_is_one_token(tokenizer: PreTrainedTokenizerFast) -> None:
    digits = tokenizer("9876543210")["input_ids"]
    assert [tokenizer.decode([token]) for token in digits] == list("9876543210")


@pytest.mark.parametrize("text", [INSTRUCTION, HINT.format(answer="")])
def test_fixed_phrases_are_few_tokens(tokenizer: PreTrainedTokenizerFast, text: str) -> None:
    assert len(tokenizer(text)["input_ids"]) <= 18


def test_special_tokens(tokenizer: PreTrainedTokenizerFast) -> None:
    assert tokenizer.eos_token == "<|im_end|>"
    assert tokenizer.pad_token == "<|endoftext|>"
    assert (tokenizer.eos_token_id, tokenizer.pad_token_id) == (END_ID, PAD_ID)
    assert len(tokenizer("<|im_start|>")["input_ids"]) == 1


def test_chat_template_renders_exactly(tokenizer: PreTrainedTokenizerFast) -> None:
    turns = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "2 + 2 = ?"},
    ]
    prompt = str(tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True))
    assert prompt == (
        "<|im_start|>system\nBe brief.<|im_end|>\n<|im_start|>user\n2 + 2 = ?<|im_end|>\n<|im_start|>assistant\n"
    )
    answered = [*turns, {"role": "assistant", "content": "4"}]
    assert str(tokenizer.apply_chat_template(answered, tokenize=False)).endswith("<|im_start|>assistant\n4<|im_end|>\n")


def test_shipped_tokenizer_is_what_the_script_builds(tokenizer: PreTrainedTokenizerFast) -> None:
    assert build().get_vocab() == tokenizer.get_vocab()


def test_model_folder_is_small() -> None:
    sizes = {file.name: file.stat().st_size for file in cepo.tiny.path().iterdir()}
    assert sizes["model.safetensors"] <= 4_000_000
    assert sum(sizes.values()) <= 5_000_000


def test_model_solves_a_held_out_problem_greedily(tokenizer: PreTrainedTokenizerFast) -> None:
    model = AutoModelForCausalLM.from_pretrained(cepo.tiny.path(), dtype=torch.float32)
    solved = 0
    for problem in islice(problems(1, held_out=True), 8):
        turns = [{"role": "user", "content": f"{problem.question}\n{INSTRUCTION}"}]
        text = str(tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True))
        inputs = tokenizer(text, return_tensors="pt")
        output = model.generate(**inputs, do_sample=False, temperature=None, max_new_tokens=32)
        solved += f"\\boxed{{{problem.answer}}}<|im_end|>" in tokenizer.decode(output[0])
    assert solved >= 6


def test_training_batch_masks_the_prompt_and_yields_a_finite_loss(tokenizer: PreTrainedTokenizerFast) -> None:
    batch = list(islice(demonstrations(problems(0, held_out=False), Mixture(), random.Random(0)), 3))
    ids_BT, mask_BT = encode(tokenizer, batch)
    assert tokenizer.decode(ids_BT[0][mask_BT[0]]) == batch[0].response + "<|im_end|>"
    assert torch.isfinite(loss_of(new_model(), ids_BT, mask_BT))
