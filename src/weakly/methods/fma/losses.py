"""What teaches the prompts: the multi-label contrastive loss and the CAM activation loss (FMA-WSSS, section 4.3).

Beside them the two losses that Table 5 compares them with: :func:`binary_loss` and :func:`map_cross_entropy`.

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


def binary_loss(logits: Tensor, tags: Tensor) -> Tensor:
    """Scalar binary cross-entropy of the sigmoids of CLIP's logits (L_BCE of Table 5), averaged over all entries.

    Args:
        logits: (B, C) of the foreground classes, with CLIP's scale.
        tags: (B, C) bool, the classes present.
    """
    logits = logits.float()
    return functional.binary_cross_entropy_with_logits(logits, tags.to(logits))


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
    maps, inside, known = _on_seeds(maps, seeds, positives)
    peaks = maps.detach().where(inside, 0).amax((1, 2), keepdim=True).clamp(min=0)
    pixels = known.sum().clamp(min=1)
    foreground = (peaks - maps).abs().where(inside, 0).sum() / pixels
    background = maps.clamp(min=0).where(known & ~inside, 0).sum() / pixels
    return ActivationLoss(foreground, background)


def map_cross_entropy(maps: Tensor, seeds: Tensor, positives: Positives) -> ActivationLoss:
    """Pixel-wise binary cross-entropy of the sigmoids of signed maps (L_CE of Table 5), as two terms.

    Softmax-GradCAM's values are small, so all sigmoids are close to a half: the weakness that the paper points out.
    Both terms are divided by the number of known pixels of all positives, as in :func:`activation_loss`.

    Args:
        maps: (N, h, w) signed maps.
        seeds: (B, H, W) integers: 0 background, c + 1 class c, 255 unknown.
        positives: the image and class of every map.
    """
    maps, inside, known = _on_seeds(maps, seeds, positives)
    pixels = known.sum().clamp(min=1)
    foreground = functional.softplus(-maps).where(inside, 0).sum() / pixels
    background = functional.softplus(maps).where(known & ~inside, 0).sum() / pixels
    return ActivationLoss(foreground, background)


def _on_seeds(maps: Tensor, seeds: Tensor, positives: Positives) -> tuple[Tensor, Tensor, Tensor]:
    """(N, H, W) maps at the size of the seeds, where each one's class is, and where anything is known."""
    large = functional.interpolate(maps.float()[:, None], seeds.shape[1:], mode="bilinear")[:, 0]
    inside = seeds[positives.image] == positives.label[:, None, None] + 1
    return large, inside, (seeds != IGNORED)[positives.image]


def seed_tags(seeds: Tensor, classes: int) -> Tensor:
    """(B, C) bool: the classes with at least one pixel in (B, H, W) integer seeds, e.g. in what a crop has left."""
    labels = seeds.flatten(1).long()
    labels = labels.where(labels <= classes, 0)
    found = torch.zeros(len(labels), classes + 1, dtype=torch.bool, device=seeds.device)
    return found.scatter(1, labels, value=True)[:, 1:]
