"""Supervised training of the tiny model: `python -m cepo.tiny.train OUT`.

The first steps train on mostly correct solutions, so that the model learns the arithmetic. The rest train on the full
mixture, so that its samples contain errors and it reads hints. The loss is over response tokens only.

Legend: B sequences, T tokens of the longest sequence.
"""

import argparse
import json
import logging
import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.optim import AdamW, Muon, Optimizer
from torch.optim.lr_scheduler import LambdaLR
from transformers import GenerationConfig, PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM

from cepo.net.files import replace_file, replace_folder
from cepo.tiny.demos import Demonstration, Mixture, demonstrations
from cepo.tiny.task import problems
from cepo.tiny.tokenizer import END, END_ID, MAX_TOKENS, PAD_ID, VOCABULARY_SIZE, build

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Recipe:
    """Every parameter of the training."""

    num_steps: int = 2000
    batch_size: int = 64
    matrix_lr: float = 8e-3
    other_lr: float = 3e-3
    warmup_steps: int = 50
    weight_decay: float = 0.05
    seed: int = 0
    clean_share: float = 0.55
    """Share of the steps that train on `clean`; the rest train on `full`."""
    clean: Mixture = field(default_factory=lambda: Mixture(hinted=0.2, slip_unhinted=0.0, bare=0.6))
    full: Mixture = field(default_factory=Mixture)

    def mixtures(self) -> list[Mixture]:
        """The mixture of each step."""
        clean_steps = int(self.clean_share * self.num_steps)
        return [self.clean if step < clean_steps else self.full for step in range(self.num_steps)]


def new_model(hidden_size: int = 128) -> Qwen3ForCausalLM:
    """A randomly initialised Qwen3; of size 128 it has about 0.85 million parameters."""
    config = Qwen3Config(
        vocab_size=VOCABULARY_SIZE,
        hidden_size=hidden_size,
        intermediate_size=3 * hidden_size,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=32,
        max_position_embeddings=MAX_TOKENS,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=END_ID,
        pad_token_id=PAD_ID,
    )
    return Qwen3ForCausalLM(config)


def tokens(tokenizer: PreTrainedTokenizerFast, demo: Demonstration) -> tuple[list[int], list[int]]:
    """Token ids of the rendered prompt and of the response."""
    turns = [{"role": "user", "content": demo.prompt}]
    prompt = str(tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True))
    return tokenizer.encode(prompt), tokenizer.encode(demo.response + END)


def encode(tokenizer: PreTrainedTokenizerFast, batch: list[Demonstration]) -> tuple[Tensor, Tensor]:
    """Token ids and the mask of response tokens: [B, T] each."""
    return padded([tokens(tokenizer, demo) for demo in batch])


def padded(pairs: list[tuple[list[int], list[int]]]) -> tuple[Tensor, Tensor]:
    """Right-padded token ids of prompts and responses, and the mask of response tokens: [B, T] each."""
    return masked([(prompt + response, [False] * len(prompt) + [True] * len(response)) for prompt, response in pairs])


def masked(rows: list[tuple[list[int], list[bool]]]) -> tuple[Tensor, Tensor]:
    """Right-padded token ids of sequences, and the mask of the tokens to learn: [B, T] each."""
    longest = max(len(ids) for ids, _ in rows)
    ids_BT = torch.full((len(rows), longest), PAD_ID)
    mask_BT = torch.zeros(len(rows), longest, dtype=torch.bool)
    for row, (ids, learned) in enumerate(rows):
        ids_BT[row, : len(ids)] = torch.tensor(ids)
        mask_BT[row, : len(ids)] = torch.tensor(learned)
    return ids_BT, mask_BT


def loss_of(model: Qwen3ForCausalLM, ids_BT: Tensor, mask_BT: Tensor) -> Tensor:
    """Mean cross-entropy of the response tokens. Causal attention hides the padding, which is on the right."""
    hidden = model.model(input_ids=ids_BT[:, :-1], use_cache=False).last_hidden_state
    logits = model.lm_head(hidden[mask_BT[:, 1:]])
    return F.cross_entropy(logits, ids_BT[:, 1:][mask_BT[:, 1:]])


def batches(recipe: Recipe) -> Iterator[list[Demonstration]]:
    """Yields the demonstrations of each step."""
    rng = random.Random(recipe.seed)
    source = problems(recipe.seed + 1, held_out=False)
    for mixture in recipe.mixtures():
        yield list(demonstrations(islice(source, recipe.batch_size), mixture, rng))


def lr_scale(recipe: Recipe, step: int) -> float:
    """Factor of the learning rate: linear warm-up to 1, times a linear decay to 0.02."""
    return min(1.0, (step + 1) / recipe.warmup_steps) * max(0.02, 1.0 - step / recipe.num_steps)


def optimizers(model: Any, recipe: Recipe) -> list[Optimizer]:
    """Muon for the matrices of the layers, AdamW for the embedding and the norms."""
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name]
    others = [p for name, p in model.named_parameters() if p.ndim != 2 or "embed" in name]
    decay = recipe.weight_decay
    return [
        Muon(matrices, lr=recipe.matrix_lr, weight_decay=decay, adjust_lr_fn="match_rms_adamw"),
        AdamW(others, lr=recipe.other_lr, betas=(0.9, 0.98), weight_decay=0.0),
    ]


def train(recipe: Recipe, tokenizer: PreTrainedTokenizerFast) -> Qwen3ForCausalLM:
    """Trains a model from scratch."""
    torch.manual_seed(recipe.seed)
    model = new_model()
    fit(model, recipe, (loss_of(model, *encode(tokenizer, batch)) for batch in batches(recipe)))
    return model


def fit(model: Any, recipe: Recipe, losses: Iterable[Tensor]) -> None:
    """Makes one update per loss; `losses` is an iterator, so each loss is computed with the updated model."""
    pair = optimizers(model, recipe)
    schedules = [LambdaLR(each, partial(lr_scale, recipe)) for each in pair]
    for step, loss in enumerate(losses):
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer, schedule in zip(pair, schedules, strict=True):
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
        if step % 50 == 0:
            logger.info("step %d loss %.4f", step, loss.item())


def save(model: Any, tokenizer: PreTrainedTokenizerFast, scratch: Path) -> None:
    """Fills a folder being written with a model for `from_pretrained` and vLLM, with weights in bfloat16."""
    model.generation_config = GenerationConfig(
        do_sample=True,
        temperature=1.0,
        bos_token_id=None,
        eos_token_id=END_ID,
        pad_token_id=PAD_ID,
    )
    model.bfloat16().save_pretrained(scratch)
    tokenizer.save_pretrained(scratch)
    name_common_class(scratch / "tokenizer_config.json")
    for file in scratch.iterdir():
        file.chmod(0o644)


def name_common_class(path: Path) -> None:
    """Names a tokenizer class that transformers 4 knows too; transformers 5 writes a new name."""
    config = json.loads(path.read_text(encoding="utf-8"))
    config["tokenizer_class"] = "PreTrainedTokenizerFast"
    config.pop("backend", None)
    replace_file(path, json.dumps(config, indent=2) + "\n")


def parse_arguments(description: str | None, recipe: Recipe) -> tuple[Path, Recipe]:
    """Reads the output folder and the number of steps from the command line, and shows log messages."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("out", type=Path)
    parser.add_argument("--steps", type=int, default=recipe.num_steps)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    return arguments.out, replace(recipe, num_steps=arguments.steps)


def main() -> None:
    """Trains the model and writes it to a folder."""
    out, recipe = parse_arguments(__doc__, Recipe())
    tokenizer = build()
    model = train(recipe, tokenizer)
    with replace_folder(out) as scratch:
        save(model, tokenizer, scratch)


if __name__ == "__main__":
    main()
