"""Scoring a group with an image in three passes, plain, r+ and r-: the image's features once, or once a pass.

`--gpu` takes Qwen3-VL-2B's sizes, vision part and all, with random weights.
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
"""For the larger vision part; the tiny one's takes no time either way."""
TOLERANCE = 1e-6
CONTEXTS = ("plain", "r+", "r-")
PATCH, SIDE = 16, 448
"""Pixels of a patch and of an image's side, in the larger vision parts."""
LARGER = SMALL | {"num_key_value_heads": 4, "vocab_size": 32000}
"""The other benchmarks' language part."""
SEEING = {"depth": 12, "hidden_size": 768, "num_heads": 12, "deepstack_visual_indexes": [3, 6, 9]}
"""A vision part before it that a CPU can do."""
VISIONS = {
    "qwen3-vl-2b": {"depth": 24, "hidden_size": 1024, "num_heads": 16, "deepstack_visual_indexes": [5, 11, 17]},
    "tiny": {"depth": 2, "hidden_size": 64, "num_heads": 4, "deepstack_visual_indexes": [0, 1]},
}
"""Of shapes that see; the first as its config.json on Hugging Face has it."""


def random_vision(language: dict[str, int], seeing: dict[str, Any], where: str = "cpu") -> Any:
    """A language part behind a vision part, random and frozen; float32 on the CPU, bfloat16 elsewhere."""
    half = language["head_dim"] // 2
    sections = [half - 2 * (half * 5 // 16), half * 5 // 16, half * 5 // 16]
    rope = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": sections}
    config = Qwen3VLConfig(
        text_config=language | {"rope_parameters": rope},
        vision_config={
            **seeing,
            "intermediate_size": 4 * seeing["hidden_size"],
            "patch_size": PATCH,
            "out_hidden_size": language["hidden_size"],
        },
        image_token_id=language["vocab_size"] - 1,
        tie_word_embeddings=True,
    )
    return frozen(Qwen3VLForConditionalGeneration, config, where)


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
    ratio = round(found["alternative"]["seconds"] / found["ours"]["seconds"], 2)
    return {"model": name, "image_tokens": len(places), **found, "ratio": ratio, "largest_difference": gap}


def on_gpu(shape: str) -> dict[str, Any]:
    """Both ways on a model of a real size."""
    model = random_vision(SHAPES[shape] | {"vocab_size": VOCABULARY[shape]}, VISIONS[shape], device())
    found = measure(shape, model, random_image(), ROUNDS)
    return {key: found[key] for key in ("ours", "alternative", "largest_difference", "image_tokens")}


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
    asked = _report.arguments(__doc__, "three rounds; under a minute", VISIONS).parse_args()
    torch.set_num_threads(THREADS)
    if asked.gpu:
        report("vision", asked.gpu, on_gpu(asked.gpu), AIM)
        return
    tiny, rounds = load_causal_lm(str(vision.path()), "float32", "cpu"), 3 if asked.quick else ROUNDS
    random = random_vision(LARGER, SEEING)
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
