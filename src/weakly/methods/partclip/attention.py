"""Where the last decoder layer looks from inside a part (spec partclipseg section 3.3), for the parts that are there.

Symbols: B images of S x S pixels on an h x w grid of L tokens, T = 1 + L with the class token, n prompts, d decoder
width, P regions: a label that is present in an image, with its mask.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from weakly.methods.partclip.trunk import recomputed, split_heads

Pooling = Literal["nearest", "area"]
"""How pixels become tokens: that of a token's first pixel, as released, or by the share of the token's area."""

PartScope = Literal["object", "image"]
"""The attention losses compare the parts of each object, or, as released, all parts of the image for each object."""

WEIGHT_FLOATS = 2**25
"""Attention weights held at once: 128 MiB."""


class Regions(NamedTuple):
    """P labels present in their images, ascending by image, then by label.

    Attributes:
        image: (P,) int64.
        label: (P,) int64.
        masks: (P, L) float32 in [0, 1]. ``nearest``: 0 or 1, all 0 where no token's first pixel shows the label.
            ``area``: areas over the label's largest in a token, so that one token at least counts in full.
        longest: tokens of the region with most of them, at least 1; known to the host, so that no GPU is waited for.
    """

    image: Tensor
    label: Tensor
    masks: Tensor
    longest: int


def find_regions(labels: Tensor, count: int, grid: tuple[int, int], pooling: Pooling) -> Regions:
    """The regions of label maps; meant for the host, where the loader has the maps.

    Holds a few (B, S, S) and B (count + 1) L integers.

    Args:
        labels: (B, S, S) integers; only those in [0, ``count``) are labels.
        count: number of labels.
        grid: (h, w), which divides S.
        pooling: see :data:`Pooling`.
    """
    images, height, width = labels.shape
    tokens = grid[0] * grid[1]
    down, across = height // grid[0], width // grid[1]
    labels = torch.where((labels >= 0) & (labels < count), labels.long(), count)
    rows, columns = torch.arange(height, device=labels.device), torch.arange(width, device=labels.device)
    token = rows[:, None] // down * grid[1] + columns // across
    owner = torch.arange(images, device=labels.device)[:, None, None] * (count + 1) + labels
    bins = images * (count + 1) * tokens
    areas = (owner * tokens + token).flatten().bincount(minlength=bins).view(images, count + 1, tokens)
    image, label = areas[:, :count].any(-1).nonzero().unbind(1)
    if pooling == "nearest":
        first = labels[:, ::down, ::across].flatten(1)
        masks = (first[image] == label[:, None]).float()
    else:
        own = areas[image, label].float()
        masks = own / own.amax(1, keepdim=True)
    longest = max(1, int((masks > 0).sum(1).max())) if len(image) else 1
    return Regions(image, label, masks, longest)


def find_objects(objects: Tensor, count: int, grid: tuple[int, int], pooling: Pooling, scope: PartScope) -> Regions:
    """The objects that the attention losses go through (spec section 3.4).

    ``image``, as released: the last object of an image that shows nothing else is dropped, which was meant to drop the
    label of all other pixels (D6).

    Args:
        objects: (B, S, S) integers; those outside [0, ``count``) are no object.
        count: N_o.
        grid: (h, w), which divides S.
        pooling: see :data:`Pooling`.
        scope: see :data:`PartScope`.
    """
    regions = find_regions(objects, count, grid, pooling)
    if scope == "object":
        return regions
    full = ((objects >= 0) & (objects < count)).flatten(1).all(1)
    is_last = torch.ones_like(regions.image, dtype=torch.bool)
    is_last[:-1] = regions.image[1:] != regions.image[:-1]
    keep = ~(is_last & full[regions.image])
    return Regions(regions.image[keep], regions.label[keep], regions.masks[keep], regions.longest)


def region_attention(attention: Any, tokens: Tensor, regions: Regions, prompts: Tensor, pooling: Pooling) -> Tensor:
    """v: the attention that leaves a region, over the grid: ``M_k^T A_k`` (Eq. 6), averaged over heads and prompts.

    Only the rows of tokens inside a region are computed: P prompts heads longest T floats, at most
    :data:`WEIGHT_FLOATS` of them at a time (or those of one region).

    Args:
        attention: the ``CLIPSegAttention`` of the decoder's last layer.
        tokens: (B, n, T, d) input of that layer.
        regions: P of them, on the same device.
        prompts: (P, m) int64, along n, the prompts whose attention is averaged: of the part and of the object (D4).
        pooling: ``nearest`` divides by L, as released (D3), ``area`` by the area of the region.

    Returns:
        (P, L) float32; the class token takes part in the softmax and is then left out.
    """
    length, places = tokens.shape[2], regions.masks.shape[1]
    if len(regions.image) == 0:
        return tokens.new_zeros(0, places, dtype=torch.float32)
    weights, rows = regions.masks.topk(regions.longest)
    weights = weights / (places if pooling == "nearest" else weights.sum(1, keepdim=True))
    at_once = max(1, WEIGHT_FLOATS // (prompts.shape[1] * attention.num_heads * regions.longest * length))

    def looks(image: Tensor, prompts: Tensor, rows: Tensor, weights: Tensor) -> Tensor:
        keys = tokens[image[:, None], prompts].float()
        queries = keys.take_along_dim(rows[:, None, :, None] + 1, 2)
        query = split_heads(attention, attention.q_proj(queries))
        key = split_heads(attention, attention.k_proj(keys))
        seen = (query @ key.mT * attention.scale).softmax(-1)
        return (weights[:, None, None, None] @ seen)[..., 0, 1:].mean((1, 2))

    pieces = zip(*(tensor.split(at_once) for tensor in (regions.image, prompts, rows, weights)), strict=True)
    with torch.autocast(tokens.device.type, enabled=False):
        return torch.cat([recomputed(looks, *piece) for piece in pieces])


def normalise(maps: Tensor) -> Tensor:
    """(P, L) maps to [0, 1], each by its own minimum and maximum; a flat one to 0 (spec section 3.3)."""
    low, high = maps.amin(1, keepdim=True), maps.amax(1, keepdim=True)
    return (maps - low) / (high - low + 1e-9)


def smooth(maps: Tensor, grid: tuple[int, int]) -> Tensor:
    """G: (P, L) maps through the 3x3 Gaussian of :func:`gaussian_kernel`, reflected at the border."""
    kernel = gaussian_kernel().to(maps)
    padded = functional.pad(maps.view(-1, 1, *grid), (1, 1, 1, 1), mode="reflect")
    rows = functional.conv2d(padded, kernel.view(1, 1, 3, 1))
    return functional.conv2d(rows, kernel.view(1, 1, 1, 3)).flatten(1)


def gaussian_kernel() -> Tensor:
    """(3,) weights ``exp(-(x / 2 sigma)^2)`` of nominal sigma 0.5, an effective 0.7071 (D24): .2119, .5761, .2119."""
    weights = torch.exp(-torch.tensor([-1.0, 0.0, 1.0]).square())
    return weights / weights.sum()
