"""Supervised training of the tools model from the tiny text model: `python -m cepo.tiny.train_tools OUT`.

The loss is over the assistant's tokens only; the tool's results are given.
"""

import random
from collections.abc import Iterator
from itertools import islice

import torch
from transformers import PreTrainedTokenizerFast, Qwen3ForCausalLM

from cepo.net.files import replace_folder
from cepo.tiny import path
from cepo.tiny.demos import Mixture
from cepo.tiny.task import problems
from cepo.tiny.tokenizer import END, build
from cepo.tiny.tools import Conversation, conversations
from cepo.tiny.train import Recipe, fit, loss_of, masked, parse_arguments, save

RECIPE = Recipe(
    num_steps=600,
    matrix_lr=2e-3,
    other_lr=1e-3,
    clean_share=0.3,
    clean=Mixture(hinted=0.3, slip_unhinted=0.0, slip_hinted=0.3),
)
RESULT = "\n<|im_start|>tool\n{result}<|im_end|>\n<|im_start|>assistant\n"
"""What the chat template writes between two turns of the assistant."""


def spans(tokenizer: PreTrainedTokenizerFast, conversation: Conversation) -> tuple[list[int], list[bool]]:
    """Token ids of a conversation, and which of them the assistant wrote."""
    user = [{"role": "user", "content": conversation.prompt}]
    ids = tokenizer.encode(str(tokenizer.apply_chat_template(user, tokenize=False, add_generation_prompt=True)))
    written = [False] * len(ids)
    given = [RESULT.format(result=result) for result in conversation.results]
    for turn, result in zip(conversation.turns, [*given, ""], strict=True):
        for text, sampled in ((turn + END, True), (result, False)):
            new = tokenizer.encode(text)
            ids += new
            written += [sampled] * len(new)
    return ids, written


def batches(recipe: Recipe) -> Iterator[list[Conversation]]:
    """Yields the conversations of each step."""
    rng = random.Random(recipe.seed)
    source = problems(recipe.seed + 2, held_out=False)
    for mixture in recipe.mixtures():
        yield list(conversations(islice(source, recipe.batch_size), mixture, rng))


def train(recipe: Recipe, tokenizer: PreTrainedTokenizerFast) -> Qwen3ForCausalLM:
    """Trains the tiny text model on the tools task."""
    torch.manual_seed(recipe.seed)
    model = Qwen3ForCausalLM.from_pretrained(path(), dtype=torch.float32)
    rows = ([spans(tokenizer, each) for each in batch] for batch in batches(recipe))
    fit(model, recipe, (loss_of(model, *masked(batch)) for batch in rows))
    return model


def main() -> None:
    """Trains the model and writes it to a folder."""
    out, recipe = parse_arguments(__doc__, RECIPE)
    tokenizer = build()
    model = train(recipe, tokenizer)
    with replace_folder(out) as scratch:
        save(model, tokenizer, scratch)


if __name__ == "__main__":
    main()
