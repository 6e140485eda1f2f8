"""Scoring a group with an image in three passes, plain, r+ and r-: the image's features once, or once a pass."""

from __future__ import annotations

import argparse
from typing import Any

import torch
from torch import Tensor
from transformers.models.qwen3_vl import Qwen3VLConfig, Qwen3VLForConditionalGeneration

from benchmarks import _report
from benchmarks._shapes import ROUNDS, SMALL, THREADS, Group, random_group, side_by_side
from cepo.contracts import ImageRef
from cepo.forward import load_causal_lm, response_logps
from cepo.images import checked
from cepo.pixels import Patches, Pixels
from cepo.tiny import vision
from cepo.tiny.figures import figures
from cepo.vision import FeatureCache

AIM = 1.2
"""For the larger vision part; the tiny one's takes no time either way."""
TOLERANCE = 1e-6
CONTEXTS = ("plain", "r+", "r-")
PATCH, SIDE, LAYERS, WIDTH = 16, 448, 12, 768
"""The larger vision part: pixels of a patch and of an image's side, layers, and how wide they are."""


def random_vision() -> Any:
    """The other benchmarks' language part behind a vision part of 12 layers, frozen, float32."""
    torch.manual_seed(0)
    language = SMALL | {
        "vocab_size": 32000,
        "num_key_value_heads": 4,
        "rope_parameters": {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [12, 10, 10]},
    }
    seeing = {
        "depth": LAYERS,
        "hidden_size": WIDTH,
        "intermediate_size": 4 * WIDTH,
        "num_heads": 12,
        "patch_size": PATCH,
        "out_hidden_size": SMALL["hidden_size"],
        "deepstack_visual_indexes": [3, 6, 9],
    }
    config = Qwen3VLConfig(text_config=language, vision_config=seeing, image_token_id=31999, tie_word_embeddings=True)
    return Qwen3VLForConditionalGeneration(config).eval().requires_grad_(False)


def tiny_image() -> Patches:
    """A figure of the tiny task."""
    data = next(figures(0, held_out=False)).png()
    return Pixels(str(vision.path())).patches(checked(data), data)


def random_image() -> Patches:
    """A square of noise, in the patches of the larger vision part."""
    rows = SIDE // PATCH
    generator = torch.Generator().manual_seed(0)
    return Patches("0" * 64, torch.randn(rows * rows, 3 * 2 * PATCH * PATCH, generator=generator), (1, rows, rows))


def measure(name: str, model: Any, image: Patches, rounds: int) -> dict[str, Any]:
    """Both ways, for one model."""
    area = model.config.vision_config.spatial_merge_size**2
    places = [model.config.image_token_id] * (len(image.values_PF) // area)
    made = random_group(model.config.text_config.vocab_size - 8)
    group = Group({context: places + ids for context, ids in made.contexts.items()}, made.responses)
    works = {
        "ours": lambda: scored(model, group, image, [FeatureCache(model)] * len(CONTEXTS)),
        "alternative": lambda: scored(model, group, image, [FeatureCache(model) for _ in CONTEXTS]),
    }
    found, gap = side_by_side(works, rounds)
    if gap > TOLERANCE:
        raise SystemExit(f"log-probs differ by {gap}")
    ratio = round(found["alternative"]["seconds"] / found["ours"]["seconds"], 2)
    return {"model": name, "image_tokens": len(places), **found, "ratio": ratio, "largest_difference": gap}


@torch.no_grad()
def scored(model: Any, group: Group, image: Patches, caches: list[FeatureCache]) -> Tensor:
    """[contexts x samples, response] log-probs, a context a pass."""
    ref = ImageRef(sha256=image.sha256, media_type="image/png", width=1, height=1)
    found = []
    for context, cache in zip(CONTEXTS, caches, strict=True):
        seen = cache.of(ref, lambda _: image)
        found.append(response_logps(model, *group.rows(context), 1.0, [[seen]] * len(group.responses)))
    return torch.cat(found)


def main() -> None:
    """Prints the result and writes it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="three rounds; under a minute")
    quick = parser.parse_args().quick
    torch.set_num_threads(THREADS)
    tiny, rounds = load_causal_lm(str(vision.path()), "float32", "cpu"), 3 if quick else ROUNDS
    cases = [measure("tiny", tiny, tiny_image(), rounds), measure("random", random_vision(), random_image(), rounds)]
    larger = cases[-1]
    _report.write(
        "vision",
        ours=larger["ours"],
        alternative=larger["alternative"],
        ratio=larger["ratio"],
        aim=AIM,
        command=f"python -m benchmarks.vision{' --quick' * quick}",
        cases=cases,
    )


if __name__ == "__main__":
    main()
