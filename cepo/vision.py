"""The inputs of a Qwen3-VL's language part: text embeddings with image features in the places of the placeholders.

transformers' own model does this for one row with its own images. Here each distinct image meets the vision part once,
however many contexts and siblings show it, and only placeholders of the prompt are places: a token that was sampled is
a token. The vision part is frozen, so its features carry no gradient.

Legend: B rows, S tokens of the longest, M tokens of one image.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from cepo.pixels import Patches


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


def language_inputs(
    model: Any, ids_BS: Tensor, lengths: Sequence[int], starts: Sequence[int], images: Sequence[Sequence[Patches]]
) -> dict[str, Any]:
    """What `model.base_model.language_model` takes for right-padded rows, some or all with images.

    Args:
        lengths: of each row without padding.
        starts: the length of each row's prompt.
        images: of each row, in the order of their placeholders.
    """
    base = model.base_model
    features = image_features(model, [image for row in images for image in row])
    length_B, start_B = torch.tensor([lengths, starts], device=ids_BS.device)
    at_S = torch.arange(ids_BS.shape[1], device=ids_BS.device)
    place_BS = (ids_BS == model.config.image_token_id) & (at_S[None] < start_B[:, None])
    shown = [[features[image.sha256] for image in row] for row in images]
    for row, place_S in zip(shown, place_BS, strict=True):
        wanted = sum(len(image.embedding_MD) for image in row)
        assert int(place_S.sum()) == wanted, f"{int(place_S.sum())} placeholders for {wanted} image tokens"
    flat = [image for row in shown for image in row]
    embedding_BSD = base.get_input_embeddings()(ids_BS)
    embedding_BSD = embedding_BSD.masked_scatter(
        place_BS[..., None], torch.cat([image.embedding_MD for image in flat]).to(embedding_BSD.dtype)
    )
    return {
        "inputs_embeds": embedding_BSD,
        "attention_mask": (at_S[None] < length_B[:, None]).long(),
        "position_ids": _positions(base, ids_BS, place_BS, shown),
        "visual_pos_masks": place_BS,
        "deepstack_visual_embeds": list(torch.cat([image.deep_LMD for image in flat], dim=1)),
    }


def _positions(base: Any, ids_BS: Tensor, place_BS: Tensor, shown: Sequence[Sequence[Features]]) -> Tensor:
    """[3, B, S]: frame, row and column of every token, by the model's own rule (M-RoPE)."""
    found = []
    for ids_S, place_S, row in zip(ids_BS, place_BS, shown, strict=True):
        grid_I3 = torch.tensor([image.grid for image in row], device=ids_S.device)
        position_31S, _ = base.get_rope_index(ids_S[None], place_S[None].int(), image_grid_thw=grid_I3)
        found.append(position_31S)
    return torch.cat(found, dim=1)
