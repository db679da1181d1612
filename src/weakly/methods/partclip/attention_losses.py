"""Separation and enhancement: parts of an object are to look at different places, and none is to be overlooked.

Both are computed for all objects of a batch at once from the maps of :func:`.attention.region_attention` (spec
partclipseg sections 3.4 and 3.5; Equations 7 to 9). Symbols: P part regions, O object regions, L tokens.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from weakly.methods.partclip.attention import PartScope, Regions, normalise, smooth

SepLoss = Literal["soft", "hard"]
"""Overlap of sigmoids, or a count of overlapping tokens, which has no gradient (D2)."""

EnhLoss = Literal["area_norm", "official"]
"""Attention inside the part itself, or the highest of the smoothed map wherever that is (D3)."""


class AttentionLoss(NamedTuple):
    """Two scalars, unweighted.

    Attributes:
        separation: L_sep.
        enhancement: L_enh.
    """

    separation: Tensor
    enhancement: Tensor


def attention_loss(
    maps: Tensor,
    parts: Regions,
    objects: Regions,
    object_of: Tensor,
    grid: tuple[int, int],
    images: int,
    *,
    sep_loss: SepLoss = "soft",
    enh_loss: EnhLoss = "area_norm",
    part_scope: PartScope = "object",
    threshold: float = 0.3,
    temperature: float = 0.05,
) -> AttentionLoss:
    """L_sep and L_enh, averaged over objects.

    With ``part_scope: object`` the mean is over the objects that show a part. With ``image`` every object is compared
    with all parts of its image, and the mean over all objects is divided by the number of images once more (D5).

    Args:
        maps: (P, L) float32 attention of the parts.
        parts: P regions, labelled by class.
        objects: O regions, labelled by object, of :func:`.attention.find_objects`.
        object_of: (at least K,) int64 object of every class.
        grid: (h, w).
        images: B.
        sep_loss: see :data:`SepLoss`.
        enh_loss: see :data:`EnhLoss`.
        part_scope: see above.
        threshold: gamma, from which a token belongs to a part.
        temperature: tau of the sigmoid that softens it.
    """
    owns = objects.image[:, None] == parts.image
    if part_scope == "object":
        owns = owns & (objects.label[:, None] == object_of[parts.label])
    sharp = smooth(normalise(maps), grid)
    overlap = overlaps(sharp, owns, objects.masks, sep_loss, threshold, temperature)
    strength = strengths(maps, parts.masks, grid, enh_loss)
    # No strength exceeds 1, so that an object without parts lacks nothing.
    omission = 1 - functional.pad(torch.where(owns, strength, 1.0), (0, 1), value=1.0).amin(1)
    counted = owns.any(1) if part_scope == "object" else owns.new_ones(len(owns))
    divisor = counted.sum().clamp(min=1) * (1 if part_scope == "object" else images)
    return AttentionLoss((overlap * counted).sum() / divisor, (omission * counted).sum() / divisor)


def overlaps(
    maps: Tensor, owns: Tensor, masks: Tensor, kind: SepLoss, threshold: float = 0.3, temperature: float = 0.05
) -> Tensor:
    """(O,) share of every object's claimed tokens that more than one of its parts claims (Eqs. 7 and 8).

    ``hard``: tokens above the threshold are claimed, and counted. ``soft``: they are claimed by the sigmoid of their
    distance to the threshold; what exceeds one claim over what is claimed at all.

    Args:
        maps: (P, L) float32 normalised and smoothed attention.
        owns: (O, P) bool, whose claims count for an object.
        masks: (O, L) float32 in [0, 1], tokens of the objects.
        kind: see above.
        threshold: gamma.
        temperature: tau.
    """
    if kind == "hard":
        claims = owns.to(maps) @ (maps > threshold).to(maps)
        shared, claimed = (claims > 1).to(maps), (claims >= 1).to(maps)
    else:
        claims = owns.to(maps) @ ((maps - threshold) / temperature).sigmoid()
        shared, claimed = functional.relu(claims - 1), claims.clamp(max=1)
    return (shared * masks).sum(1) / ((claimed * masks).sum(1) + 1e-9)


def strengths(maps: Tensor, masks: Tensor, grid: tuple[int, int], kind: EnhLoss) -> Tensor:
    """(P,) how much every part attracts attention.

    ``area_norm``: the attention that its tokens give to its tokens, a share in [0, 1] whatever its area. ``official``:
    the maximum of the smoothed map, anywhere; at most the part's share of the grid.

    Args:
        maps: (P, L) float32 attention of the parts.
        masks: (P, L) float32 of the parts.
        grid: (h, w).
        kind: see above.
    """
    if kind == "area_norm":
        return (maps * masks).sum(1)
    return smooth(maps, grid).amax(1)
