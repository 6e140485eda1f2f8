"""Supervised training of the lock task's model: `python -m cepo.tiny.train_lock OUT`.

As in `cepo.tiny.train`, the first steps train on right solutions, the rest on the full mixture of wrong decisions and
hints.
"""

import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedTokenizerFast, Qwen3ForCausalLM

from cepo.messages.hints import HINT
from cepo.net.files import replace_folder
from cepo.tiny.demos import Demonstration
from cepo.tiny.lock import DIALS, locks
from cepo.tiny.lock_demos import LockMixture, lock_demonstrations
from cepo.tiny.tokenizer import PROSE, build
from cepo.tiny.train import Recipe, encode, fit, loss_of, new_model, parse_arguments, save

RECIPE = Recipe(num_steps=800, batch_size=64, clean_share=0.5)
LAST = replace(RECIPE, num_steps=200, warmup_steps=20, seed=1)
"""The second stage, which repeats the warm-up and the decay of the rate."""
SET_WEIGHT = 8.0
"""Weight of the digits that turns set in the loss of the second stage. The best distribution of a token does not depend
on its weight, and a model learns the few tokens that are not words or copies sooner."""
LINE = re.compile(r"([A-E]):\d{5}")
CLEAN = LockMixture(hinted=0.3, wrong=0.0, misled=0.0)
FULL = LockMixture()
LAST_FULL = LockMixture(hinted=0.25, wrong=0.55)
WHOLE_EVERY = 5
"""One batch in five of the full mixture shows whole solutions; a batch of its own needs less padding. In the second
stage it is one in ten."""


def path() -> Path:
    """Folder of the shipped model, as `from_pretrained` and vLLM load it."""
    return Path(__file__).parent / "lock_model"


def tokenizer() -> PreTrainedTokenizerFast:
    """The task's tokenizer: each digit, each dial and each word of a solution is a token."""
    demos = lock_demonstrations(islice(locks(0, held_out=False), 300), LockMixture(hinted=0.0), random.Random(0))
    texts = [text for demo in demos for text in (demo.prompt, demo.response)]
    turns = ["system\n", "user\n", "assistant\n", HINT.format(answer=51)]
    return build([PROSE, *texts, *turns * 50])


def batches(recipe: Recipe) -> Iterator[list[Demonstration]]:
    """Yields the demonstrations of each step of the first stage."""
    clean_steps = int(recipe.clean_share * recipe.num_steps)
    yield from _drawn(recipe, [CLEAN if step < clean_steps else _full(step) for step in range(recipe.num_steps)])


def last_batches(recipe: Recipe) -> Iterator[list[Demonstration]]:
    """Yields the demonstrations of each step of the second stage, of which more have no hint."""
    whole = replace(LAST_FULL, hinted=1.0, whole=True)
    yield from _drawn(recipe, [LAST_FULL if step % (2 * WHOLE_EVERY) else whole for step in range(recipe.num_steps)])


def _full(step: int) -> LockMixture:
    return FULL if step % WHOLE_EVERY else replace(FULL, hinted=1.0, whole=True)


def _drawn(recipe: Recipe, mixtures: Sequence[LockMixture]) -> Iterator[list[Demonstration]]:
    rng = random.Random(recipe.seed)
    source = locks(recipe.seed + 2, held_out=False)
    for mixture in mixtures:
        yield list(lock_demonstrations(islice(source, recipe.batch_size), mixture, rng))


def weighted_loss(
    model: Qwen3ForCausalLM, tokenizer: PreTrainedTokenizerFast, batch: Sequence[Demonstration]
) -> Tensor:
    """Cross-entropy of the response tokens, a mean with `SET_WEIGHT` for the digits that turns set."""
    ids_BT, mask_BT = encode(tokenizer, list(batch))
    weight_BT = mask_BT.float()
    for row, demo in enumerate(batch):
        start = int(mask_BT[row].int().argmax())
        offsets = tokenizer(demo.response, return_offsets_mapping=True)["offset_mapping"]
        at = {line.start() + 2 + DIALS.index(line[1]) for line in LINE.finditer(demo.response)}
        for place, (first, _) in enumerate(offsets):
            if first in at:
                weight_BT[row, start + place] = SET_WEIGHT
    hidden = model.model(input_ids=ids_BT[:, :-1], use_cache=False).last_hidden_state
    chosen = mask_BT[:, 1:]
    loss_N = F.cross_entropy(model.lm_head(hidden[chosen]), ids_BT[:, 1:][chosen], reduction="none")
    weight_N = weight_BT[:, 1:][chosen]
    return (loss_N * weight_N).sum() / weight_N.sum()


def train(recipe: Recipe, last: Recipe, tokenizer: PreTrainedTokenizerFast) -> Qwen3ForCausalLM:
    """Trains a model from scratch in two stages."""
    torch.manual_seed(recipe.seed)
    model = new_model(hidden_size=96)
    fit(model, recipe, (loss_of(model, *encode(tokenizer, batch)) for batch in batches(recipe)))
    model = model.bfloat16().float()  # the weights as they are saved, so that the stages can be repeated apart
    fit(model, last, (weighted_loss(model, tokenizer, batch) for batch in last_batches(last)))
    return model


def main() -> None:
    """Trains the model and writes it to a folder."""
    out, recipe = parse_arguments(__doc__, RECIPE)
    tiny = tokenizer()
    model = train(recipe, LAST, tiny)
    with replace_folder(out) as scratch:
        save(model, tiny, scratch)


if __name__ == "__main__":
    main()
