"""Seconds to score a group with an image in three contexts, with the image encoded once against once per context.

The contexts are plain, r+ and r-. `--gpu` uses the sizes of Qwen3-VL-2B and its vision encoder, with random weights.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers.models.qwen3_vl import Qwen3VLConfig, Qwen3VLForConditionalGeneration

from benchmarks import _report
from benchmarks._gpu import SHAPES, VOCABULARY, device, report
from benchmarks._shapes import ROUNDS, SMALL, THREADS, Group, frozen, random_group, side_by_side
from cepo.messages.groups import ImageRef
from cepo.model.forward import load_causal_lm, response_logps
from cepo.model.vision import FeatureCache
from cepo.prompts.images import checked
from cepo.prompts.pixels import Patches, Pixels
from cepo.tiny import vision
from cepo.tiny.figures import figures

AIM = 1.2
"""The aim for the larger vision encoder. The tiny one takes no time in either case."""
TOLERANCE = 1e-6
CONTEXTS = ("plain", "r+", "r-")
PATCH, SIDE = 16, 448
"""Side of a patch and of an image in pixels, for the larger vision encoders."""
LARGER = SMALL | {"num_key_value_heads": 4, "vocab_size": 32000}
"""The language model of the other benchmarks."""
ENCODER = {"depth": 12, "hidden_size": 768, "num_heads": 12, "deepstack_visual_indexes": [3, 6, 9]}
"""A vision encoder that a CPU can run in seconds."""
VISIONS = {
    "qwen3-vl-2b": {"depth": 24, "hidden_size": 1024, "num_heads": 16, "deepstack_visual_indexes": [5, 11, 17]},
    "tiny": {"depth": 2, "hidden_size": 64, "num_heads": 4, "deepstack_visual_indexes": [0, 1]},
}
"""Vision encoders by shape. The first is that of the model's config.json on Hugging Face."""


def random_vision(language: dict[str, int], encoder: dict[str, Any], where: str = "cpu") -> Any:
    """A random frozen vision-language model; float32 on the CPU, bfloat16 elsewhere."""
    half = language["head_dim"] // 2
    sections = [half - 2 * (half * 5 // 16), half * 5 // 16, half * 5 // 16]
    rope = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": sections}
    config = Qwen3VLConfig(
        text_config=language | {"rope_parameters": rope},
        vision_config={
            **encoder,
            "intermediate_size": 4 * encoder["hidden_size"],
            "patch_size": PATCH,
            "out_hidden_size": language["hidden_size"],
        },
        image_token_id=language["vocab_size"] - 1,
        tie_word_embeddings=True,
    )
    return frozen(Qwen3VLForConditionalGeneration, config, where)


def tiny_image() -> Patches:
    """The patches of a figure of the tiny task."""
    data = next(figures(0, held_out=False)).png()
    return Pixels(str(vision.path())).patches(checked(data), data)


def random_image() -> Patches:
    """The patches of a square image of noise, for the larger vision encoders."""
    rows = SIDE // PATCH
    generator = torch.Generator().manual_seed(0)
    return Patches("0" * 64, torch.randn(rows * rows, 3 * 2 * PATCH * PATCH, generator=generator), (1, rows, rows))


def measure(name: str, model: Any, image: Patches, rounds: int) -> dict[str, Any]:
    """Compares both for one model."""
    area = model.config.vision_config.spatial_merge_size**2
    places = [model.config.image_token_id] * (len(image.values_PF) // area)
    made = random_group(model.config.text_config.vocab_size - 8)
    group = Group({context: places + ids for context, ids in made.contexts.items()}, made.responses)
    works = {
        "ours": lambda: scored(model, group, image, [FeatureCache(model)] * len(CONTEXTS)),
        "alternative": lambda: scored(model, group, image, [FeatureCache(model) for _ in CONTEXTS]),
    }
    figures, gap = side_by_side(works, rounds)
    ratio = round(figures["alternative"]["seconds"] / figures["ours"]["seconds"], 2)
    return {"model": name, "image_tokens": len(places), **figures, "ratio": ratio, "largest_difference": gap}


def on_gpu(shape: str) -> dict[str, Any]:
    """Compares both on a model of a real size."""
    model = random_vision(SHAPES[shape] | {"vocab_size": VOCABULARY[shape]}, VISIONS[shape], device())
    result = measure(shape, model, random_image(), ROUNDS)
    return {key: result[key] for key in ("ours", "alternative", "largest_difference", "image_tokens")}


@torch.no_grad()
def scored(model: Any, group: Group, image: Patches, caches: list[FeatureCache]) -> Tensor:
    """Log-probs [contexts x samples, response], with one pass per context."""
    ref = ImageRef(sha256=image.sha256, media_type="image/png", width=1, height=1)
    logps = []
    for context, cache in zip(CONTEXTS, caches, strict=True):
        features = cache.of(ref, lambda _: image)
        logps.append(response_logps(model, *group.rows(context), 1.0, [[features]] * len(group.responses)))
    return torch.cat(logps)


def main() -> None:
    """Measures, prints the result and writes it to benchmarks/results/."""
    asked = _report.arguments(__doc__, "three rounds; under a minute", VISIONS).parse_args()
    torch.set_num_threads(THREADS)
    if asked.gpu:
        report("vision", asked.gpu, on_gpu(asked.gpu), AIM)
        return
    tiny, rounds = load_causal_lm(str(vision.path()), "float32", "cpu"), 3 if asked.quick else ROUNDS
    random = random_vision(LARGER, ENCODER)
    cases = [measure("tiny", tiny, tiny_image(), rounds), measure("random", random, random_image(), rounds)]
    if (gap := max(case["largest_difference"] for case in cases)) > TOLERANCE:
        raise SystemExit(f"log-probs differ by {gap}")
    larger = cases[-1]
    _report.write(
        "vision",
        ours=larger["ours"],
        alternative=larger["alternative"],
        ratio=larger["ratio"],
        aim=AIM,
        cases=cases,
    )


if __name__ == "__main__":
    main()
