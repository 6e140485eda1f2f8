"""Supervised training of the tiny vision-language model: `python -m cepo.tiny.train_vision OUT`.

As in `cepo.tiny.train`, the first steps train on mostly correct solutions, the rest on the full mixture of wrong steps
and hints. Only the figure contains the numbers of a problem, so the model learns to read them there.

Legend: B sequences, T tokens of the longest sequence, N response tokens, D hidden size, V vocabulary size.
"""

import random
from collections.abc import Iterator
from itertools import islice

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import PreTrainedTokenizerFast
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil
from transformers.models.qwen3_vl import Qwen3VLForConditionalGeneration

from cepo.net.files import replace_folder
from cepo.tiny import vision
from cepo.tiny.demos import Demonstration, Mixture, demonstration
from cepo.tiny.figures import QUESTION, Figure, figures
from cepo.tiny.tokenizer import END
from cepo.tiny.train import Recipe, fit, padded, parse_arguments, save

RECIPE = Recipe(
    num_steps=1500,
    batch_size=48,
    matrix_lr=6e-3,
    other_lr=2e-3,
    clean_share=0.6,
    clean=Mixture(hinted=0.1, slip_unhinted=0.0, bare=0.2),
)

Pair = tuple[Figure, Demonstration]


def batches(recipe: Recipe) -> Iterator[list[Pair]]:
    """Yields the figures and demonstrations of each step."""
    rng = random.Random(recipe.seed)
    source = figures(recipe.seed + 2, held_out=False)
    for mixture in recipe.mixtures():
        drawn = islice(source, recipe.batch_size)
        yield [(figure, demonstration(QUESTION, figure.problem, mixture, rng)) for figure in drawn]


def tokens(tokenizer: PreTrainedTokenizerFast, demo: Demonstration, image_tokens: int) -> tuple[list[int], list[int]]:
    """Token ids of the rendered prompt, with `image_tokens` placeholders for its image, and of the response."""
    turns = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": demo.prompt}]}]
    prompt = str(tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True))
    pad = vision.VISION_TOKENS[2]
    return tokenizer.encode(prompt.replace(pad, pad * image_tokens)), tokenizer.encode(demo.response + END)


def encode(
    tokenizer: PreTrainedTokenizerFast, processor: Qwen2VLImageProcessorPil, batch: list[Pair]
) -> tuple[dict[str, Tensor], Tensor]:
    """The keyword arguments of the model, including the images, and the mask of response tokens [B, T]."""
    images = processor(images=[figure.draw() for figure, _ in batch], return_tensors="pt")
    image_tokens = int(images["image_grid_thw"][0].prod()) // 4
    ids_BT, mask_BT = padded([tokens(tokenizer, demo, image_tokens) for _, demo in batch])
    is_image_BT = (ids_BT == tokenizer.convert_tokens_to_ids(vision.VISION_TOKENS[2])).int()
    return {"input_ids": ids_BT, "mm_token_type_ids": is_image_BT, **images}, mask_BT


def loss_of(model: Qwen3VLForConditionalGeneration, inputs: dict[str, Tensor], mask_BT: Tensor) -> Tensor:
    """Mean cross-entropy of the response tokens."""
    hidden_BTD = model.model(**inputs, use_cache=False).last_hidden_state
    logits_NV = model.lm_head(hidden_BTD[:, :-1][mask_BT[:, 1:]])
    return F.cross_entropy(logits_NV, inputs["input_ids"][:, 1:][mask_BT[:, 1:]])


def train(recipe: Recipe, tokenizer: PreTrainedTokenizerFast) -> Qwen3VLForConditionalGeneration:
    """Trains a model that starts from the text model's weights."""
    torch.manual_seed(recipe.seed)
    model, processor = vision.new_model(tokenizer), vision.image_processor()
    fit(model, recipe, (loss_of(model, *encode(tokenizer, processor, batch)) for batch in batches(recipe)))
    return model


def main() -> None:
    """Trains the model and writes it to a folder."""
    out, recipe = parse_arguments(__doc__, RECIPE)
    tokenizer = vision.tokenizer()
    model = train(recipe, tokenizer)
    with replace_folder(out) as scratch:
        save(model, tokenizer, scratch)
        vision.save_processor(scratch)


if __name__ == "__main__":
    main()
