"""The inputs of a Qwen3-VL's language part: text embeddings with image features in the places of the placeholders.

transformers' own model does this for one row with its own images. Here each distinct image meets the vision part once,
however many contexts, siblings, passes and policies show it, and only placeholders of the prompt are places: a token
that was sampled is a token. The vision part is frozen, so its features carry no gradient and stay what they are.

Legend: S tokens of a row, N distinct tokens of all, M tokens of one image, L layers that images reach again.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from cepo.messages.groups import ImageRef
from cepo.model.linear import FastLinear
from cepo.model.tree import TokenTree
from cepo.prompts.pixels import Patches

KEPT_BYTES = 256 * 2**20
"""Of features: some 50 figures of 300 tokens, as a model of two billion parameters takes them."""


@dataclass(frozen=True)
class Features:
    """One image as the language part takes it."""

    sha256: str
    grid: tuple[int, int, int]
    embedding_MD: Tensor
    deep_LMD: Tensor
    """Added to the hidden states after each of the first L layers."""

    @property
    def size_bytes(self) -> int:
        return sum(each.numel() * each.element_size() for each in (self.embedding_MD, self.deep_LMD))


@torch.no_grad()
def image_features(model: Any, image: Patches) -> Features:
    """The features of an image, which goes through the vision part alone: no other image changes a bit of them."""
    device = model.get_output_embeddings().weight.device
    grid_13 = torch.tensor([image.grid], device=device)
    with FastLinear():
        found = model.base_model.get_image_features(image.values_PF.to(device), grid_13, return_dict=True)
    (embedding_MD,) = found.pooler_output
    deep_LMD = torch.stack([layer for (layer,) in found.deepstack_features])
    return Features(image.sha256, image.grid, embedding_MD, deep_LMD)


class FeatureCache:
    """The features of a model's images, computed once; the least recently used go first."""

    def __init__(self, model: Any, max_bytes: int = KEPT_BYTES) -> None:
        self._model = model
        self._max_bytes = max_bytes
        self._kept: OrderedDict[str, Features] = OrderedDict()
        self._bytes = 0

    def of(self, image: ImageRef, patches: Callable[[ImageRef], Patches]) -> Features:
        """The features of an image; its pixels are asked for where they are not kept."""
        if image.sha256 not in self._kept:
            found = self._kept[image.sha256] = image_features(self._model, patches(image))
            self._bytes += found.size_bytes
        self._kept.move_to_end(image.sha256)
        while self._bytes > self._max_bytes and len(self._kept) > 1:
            self._bytes -= self._kept.popitem(last=False)[1].size_bytes
        return self._kept[image.sha256]


def keyed(
    model: Any, rows: Sequence[Sequence[int]], starts: Sequence[int], images: Sequence[Sequence[Features]]
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


def language_inputs(model: Any, tree: TokenTree, images: Sequence[Sequence[Features]]) -> dict[str, Any]:
    """What `model.base_model.language_model` takes for a tree of keyed rows: N distinct tokens."""
    base = model.base_model
    any_LMD = next(image for row in images for image in row).deep_LMD
    key_N = tree.ids_N.to(any_LMD.device)
    place_N = key_N < 0
    embedding_ND = base.get_input_embeddings()(key_N.where(~place_N, model.config.image_token_id))
    position_3N = key_N.new_zeros(3, len(key_N))
    deep_LND = any_LMD.new_zeros(len(any_LMD), *embedding_ND.shape)
    for path, shown in zip(tree.paths, images, strict=True):
        path_S = path.to(key_N.device)
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
