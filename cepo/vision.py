"""The inputs of a Qwen3-VL's language part: text embeddings with image features in the places of the placeholders.

transformers' own model does this for one row with its own images. Here each distinct image meets the vision part once,
however many contexts and siblings show it, and only placeholders of the prompt are places: a token that was sampled is
a token. The vision part is frozen, so its features carry no gradient.

Legend: S tokens of a row, N distinct tokens of all, M tokens of one image, L layers that images reach again.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from cepo.pixels import Patches
from cepo.tree import TokenTree


@dataclass(frozen=True)
class Features:
    """One image as the language part takes it."""

    grid: tuple[int, int, int]
    embedding_MD: Tensor
    deep_LMD: Tensor
    """Added to the hidden states after each of the first L layers."""


@torch.no_grad()
def image_features(model: Any, images: Sequence[Patches]) -> dict[str, Features]:
    """The features of each distinct image, by sha256."""
    distinct = list({image.sha256: image for image in images}.values())
    device = model.get_output_embeddings().weight.device
    grid_I3 = torch.tensor([image.grid for image in distinct], device=device)
    values_PF = torch.cat([image.values_PF for image in distinct]).to(device)
    found = model.base_model.get_image_features(values_PF, grid_I3, return_dict=True)
    deep = [torch.stack(layers) for layers in zip(*found.deepstack_features, strict=True)]
    return {
        image.sha256: Features(image.grid, embedding_MD, deep_LMD)
        for image, embedding_MD, deep_LMD in zip(distinct, found.pooler_output, deep, strict=True)
    }


def keyed(
    model: Any, rows: Sequence[Sequence[int]], starts: Sequence[int], images: Sequence[Sequence[Patches]]
) -> list[list[int]]:
    """Rows in which the placeholders of each distinct image are a number below 0, so that only like images are shared.

    Args:
        starts: the length of each row's prompt; placeholders after it, or after the last image's, are tokens.
        images: of each row, in the order of their placeholders.
    """
    key = {sha256: -1 - i for i, sha256 in enumerate(dict.fromkeys(each.sha256 for row in images for each in row))}
    area = model.config.vision_config.spatial_merge_size**2
    found = []
    for ids, start, row in zip(rows, starts, images, strict=True):
        keys = [key[each.sha256] for each in row for _ in range(math.prod(each.grid) // area)]
        places = [at for at, token in enumerate(ids[:start]) if token == model.config.image_token_id][: len(keys)]
        assert len(places) == len(keys), f"{len(places)} placeholders for {len(keys)} image tokens"
        replaced = dict(zip(places, keys, strict=True))
        found.append([replaced.get(at, token) for at, token in enumerate(ids)])
    return found


def language_inputs(model: Any, tree: TokenTree, images: Sequence[Sequence[Patches]]) -> dict[str, Any]:
    """What `model.base_model.language_model` takes for a tree of keyed rows: N distinct tokens."""
    base = model.base_model
    features = image_features(model, [image for row in images for image in row])
    any_LMD = next(iter(features.values())).deep_LMD
    key_N = tree.ids_N.to(any_LMD.device)
    place_N = key_N < 0
    embedding_ND = base.get_input_embeddings()(key_N.where(~place_N, model.config.image_token_id))
    position_3N = key_N.new_zeros(3, len(key_N))
    deep_LND = any_LMD.new_zeros(len(any_LMD), *embedding_ND.shape)
    for path, row in zip(tree.paths, images, strict=True):
        path_S, shown = path.to(key_N.device), [features[image.sha256] for image in row]
        place_S = place_N[path_S]
        grid_I3 = torch.tensor([image.grid for image in shown], device=key_N.device)
        position_31S, _ = base.get_rope_index(key_N[path_S][None], place_S[None].int(), image_grid_thw=grid_I3)
        position_3N[:, path_S] = position_31S[:, 0]  # the model's own rule (M-RoPE); the same for all rows of a token
        if shown:
            embedding_MD = torch.cat([image.embedding_MD for image in shown]).to(embedding_ND.dtype)
            embedding_ND = embedding_ND.index_put((path_S[place_S],), embedding_MD)
            deep_LND[:, path_S[place_S]] = torch.cat([image.deep_LMD for image in shown], dim=1)
    return {
        "inputs_embeds": embedding_ND[None],
        "position_ids": position_3N[:, None],
        "visual_pos_masks": place_N[None],
        "deepstack_visual_embeds": list(deep_LND[:, place_N]),
    }
