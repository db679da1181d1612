"""Dense supervision of the image encoder: neighbouring pixels are close where they belong to the same region.

A prompt tells the encoder about one mask; this tells it about every boundary of the picture at once, so that a small
SAM leaves its first plateau in fewer steps. The head is dropped after training: a released model has no trace of it.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

LEVELS = 3
"""Wholes, parts, sub-parts."""

SHIFTS = tuple((reach * dy, reach * dx) for reach in (1, 4, 12) for dy, dx in ((0, 1), (1, 0), (1, 1), (1, -1)))
"""Offsets (rows, columns) of the pairs that are compared, in pixels of the decoder's masks."""


class GroupingHead(nn.Module):
    """A vector per region level and decoder pixel, read linearly from the image embedding.

    Args:
        width: channels of the embedding.
        dims: D, length of a vector.
    """

    def __init__(self, width: int, dims: int = 8) -> None:
        super().__init__()
        self.project = nn.Conv2d(width, LEVELS * dims * 16, 1)

    def forward(self, embeddings: Tensor) -> Tensor:
        """(B, width, h, w) to (B, 3, D, 4h, 4w)."""
        fine = functional.pixel_shuffle(self.project(embeddings), 4)
        return fine.unflatten(1, (LEVELS, -1))


def grouping_loss(vectors: Tensor, regions: Tensor) -> Tensor:
    """Negative log-likelihood of "same region or not" for the pixel pairs of :data:`SHIFTS`.

    Two pixels belong together with probability exp(-d), d the squared distance of their vectors; pairs of one region
    and pairs of two count the same, however rare boundaries are.

    Args:
        vectors: (B, 3, D, h, w).
        regions: (B, 3, h, w) region ids.
    """
    height, width = regions.shape[-2:]
    losses = []
    for dy, dx in SHIFTS:
        here = slice(0, height - dy), slice(max(-dx, 0), width - max(dx, 0))
        there = slice(dy, height), slice(max(dx, 0), width - max(-dx, 0))
        same = regions[(..., *here)] == regions[(..., *there)]
        distance = (vectors[(..., *here)] - vectors[(..., *there)]).square().sum(2)
        # The small constant bounds the gradient where two regions share a vector.
        apart = -torch.log(-torch.expm1(-distance - 1e-4))
        for pairs, loss in ((same, distance), (~same, apart)):
            losses.append((loss * pairs).sum() / pairs.sum().clamp(min=1))
    return torch.stack(losses).mean()
