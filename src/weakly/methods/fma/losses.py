"""What teaches the prompts: the multi-label contrastive loss and the CAM activation loss (FMA-WSSS, section 4.3).

Everything is float32, also under autocast. Symbols: B images, C foreground classes, N positives (an image and a class
present in it, see :class:`~weakly.methods.fma.cam.Positives`), (h, w) the grid of maps, (H, W) pixels.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from weakly.methods.fma.cam import Positives

IGNORED = 255
"""The seed label of pixels about which nothing is known; 0 is background, c + 1 is class c."""


class ActivationLoss(NamedTuple):
    """The two terms of the CAM activation loss, scalars, unweighted.

    Attributes:
        foreground: pulls a class's pixels up to their maximum.
        background: pushes the other pixels down to zero.
    """

    foreground: Tensor
    background: Tensor


def contrastive_loss(logits: Tensor, tags: Tensor) -> Tensor:
    """Scalar multi-label contrastive loss (Eq. 12): every class present against all classes absent.

    Averaged over all positives of the batch, not over those of an image first (spec fma-wsss section 4). Images without
    a class present, or without one absent, do not count; if none is left the loss is 0.

    Args:
        logits: (B, C) of the foreground classes, with CLIP's scale.
        tags: (B, C) bool, the classes present.
    """
    logits = logits.float()
    telling = tags.any(1) & ~tags.all(1)
    logits, tags = logits[telling], tags[telling]
    absent = logits.masked_fill(tags, -math.inf).logsumexp(1, keepdim=True)
    losses = functional.softplus(absent - logits)[tags]
    return losses.sum() / max(1, len(losses))


def activation_loss(maps: Tensor, seeds: Tensor, positives: Positives) -> ActivationLoss:
    """CAM activation loss (Eqs. 13 to 15): maps of a class are to be flat and high inside its seed, zero outside.

    Maps are signed: below zero the background asks for nothing. The maximum inside the seed (at least 0) is a target,
    not a variable. Both terms are sums over all positives divided by the number of their known pixels, once for the
    whole batch (spec fma-wsss section 4). A class without seed has a background term only; 255 belongs to neither term.

    Args:
        maps: (N, h, w) signed maps, resized to the seeds bilinearly (corners not aligned).
        seeds: (B, H, W) integers: 0 background, c + 1 class c, 255 unknown.
        positives: the image and class of every map.
    """
    maps = functional.interpolate(maps.float()[:, None], seeds.shape[1:], mode="bilinear")[:, 0]
    known = (seeds != IGNORED)[positives.image]
    inside = seeds[positives.image] == positives.label[:, None, None] + 1
    peaks = maps.detach().where(inside, 0).amax((1, 2), keepdim=True).clamp(min=0)
    pixels = known.sum().clamp(min=1)
    foreground = (peaks - maps).abs().where(inside, 0).sum() / pixels
    background = maps.clamp(min=0).where(known & ~inside, 0).sum() / pixels
    return ActivationLoss(foreground, background)


def seed_tags(seeds: Tensor, classes: int) -> Tensor:
    """(B, C) bool: the classes with at least one pixel in (B, H, W) integer seeds, e.g. in what a crop has left."""
    labels = seeds.flatten(1).long()
    labels = labels.where(labels <= classes, 0)
    found = torch.zeros(len(labels), classes + 1, dtype=torch.bool, device=seeds.device)
    return found.scatter(1, labels, value=True)[:, 1:]
