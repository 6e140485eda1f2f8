"""Inputs for the language part of a Qwen3-VL: text embeddings, with image features in place of the placeholders.

transformers' own model does this for one row with its own images. Here the vision part runs once for each distinct
image, however many contexts, responses, passes and policies use it. Only placeholders of the prompt take image
features: a placeholder that was sampled is an ordinary token. The vision part is frozen, so the features have no
gradient and never change.

Legend: S tokens of a row, N distinct tokens of all rows, M tokens of an image, D hidden size, L DeepStack layers.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from cachetools import LRUCache
from torch import Tensor

from cepo.messages.groups import ImageRef
from cepo.model.linear import fast_linear
from cepo.model.tree import TokenTree
from cepo.prompts.pixels import Patches

KEPT_BYTES = 256 * 2**20
"""Room for about 50 images of 300 tokens, for a model of two billion parameters."""


@dataclass(frozen=True)
class Features:
    """The vision part's output for one image, as the language part takes it."""

    sha256: str
    grid: tuple[int, int, int]
    """Frames, rows and columns of patches."""
    embedding_MD: Tensor
    deep_LMD: Tensor
    """Added to the hidden states after each of the first L layers (DeepStack)."""

    @property
    def size_bytes(self) -> int:
        return sum(each.numel() * each.element_size() for each in (self.embedding_MD, self.deep_LMD))


@torch.no_grad()
def image_features(model: Any, image: Patches) -> Features:
    """Runs the vision part on one image alone, so that the features do not depend on other images."""
    device = model.get_output_embeddings().weight.device
    grid_13 = torch.tensor([image.grid], device=device)
    with fast_linear(device):
        output = model.base_model.get_image_features(image.values_PF.to(device), grid_13, return_dict=True)
    (embedding_MD,) = output.pooler_output
    deep_LMD = torch.stack([layer for (layer,) in output.deepstack_features])
    return Features(image.sha256, image.grid, embedding_MD, deep_LMD)


class FeatureCache:
    """The features of a model's images, computed once while they fit; the least recently used are evicted first."""

    def __init__(self, model: Any, max_bytes: int = KEPT_BYTES) -> None:
        """Creates an empty cache. An image larger than `max_bytes` evicts all others and is kept alone."""
        limit = max(1, max_bytes)
        self._model = model
        self._cached = LRUCache[str, Features](limit, getsizeof=lambda features: min(features.size_bytes, limit))

    def of(self, image: ImageRef, patches: Callable[[ImageRef], Patches]) -> Features:
        """The features of an image.

        Args:
            patches: reads the pixels of the image; called on a cache miss.
        """
        features = self._cached.get(image.sha256)
        if features is None:
            features = self._cached[image.sha256] = image_features(self._model, patches(image))
        return features


def keyed(
    model: Any, rows: Sequence[Sequence[int]], starts: Sequence[int], images: Sequence[Sequence[Features]]
) -> list[list[int]]:
    """Replaces placeholders by a negative number for each distinct image, so that rows share equal images only.

    Example: with placeholder 9 and images of two tokens, the rows `5 9 9 6` and `5 9 9 7` become `5 -1 -1 6` and
    `5 -1 -1 7` if both have the same image, and `5 -1 -1 6` and `5 -2 -2 7` otherwise.

    Args:
        starts: the length of each row's prompt. Placeholders after it, or after those of the last image, stay tokens.
        images: the images of each row, in the order of their placeholders.
    """
    key = {sha256: -1 - i for i, sha256 in enumerate(dict.fromkeys(each.sha256 for row in images for each in row))}
    area = model.config.vision_config.spatial_merge_size**2
    keyed_rows = []
    for ids, start, row in zip(rows, starts, images, strict=True):
        keys = [key[each.sha256] for each in row for _ in range(math.prod(each.grid) // area)]
        places = [at for at, token in enumerate(ids[:start]) if token == model.config.image_token_id][: len(keys)]
        assert len(places) == len(keys), f"{len(places)} placeholders for {len(keys)} image tokens"
        replaced = dict(zip(places, keys, strict=True))
        keyed_rows.append([replaced.get(at, token) for at, token in enumerate(ids)])
    return keyed_rows


def language_inputs(model: Any, tree: TokenTree, images: Sequence[Sequence[Features]]) -> dict[str, Any]:
    """The keyword arguments of `model.base_model.language_model` for a tree of keyed rows.

    Args:
        tree: made of the rows that `keyed` returns.
        images: the images of each row; at least one row has an image.

    Returns:
        inputs_embeds [1, N, D], position_ids [3, 1, N], visual_pos_masks [1, N], and L tensors of one vector [D] for
        each image token in deepstack_visual_embeds.
    """
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
        position_3N[:, path_S] = position_31S[:, 0]  # M-RoPE; rows that share a token give it the same position
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
