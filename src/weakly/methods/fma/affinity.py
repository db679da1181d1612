"""Class-aware attention-based affinity: maps spread to what their patches attend to (FMA-WSSS, Equation 4).

CLIP's own attention, made doubly stochastic, says which patches belong together; boxes around the strong parts of a map
keep the rest of it from spreading. Symbols: P maps of one image, L = h w patches.
"""

from __future__ import annotations

from typing import Literal

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

SpreadValues = Literal["score", "cam"]
"""What spreads: ``score``, the min-max score of a map, or ``cam``, its signed values."""

SCORE_PARITY_EPS = 1e-7
"""The released code adds this to the range of a map; a map whose maximum is no larger then has no score to speak of."""


def map_scores(maps: Tensor, *, eps: float = 0.0) -> Tensor:
    """Min-max scores in [0, 1] of signed maps, negative values counting as zero, over all pixels of a map.

    A map without positive values scores 0 everywhere, and so does a constant one.

    Args:
        maps: (..., h, w); its range is taken as constant by gradients.
        eps: added to the range; 0 makes scores independent of a map's scale, the released code has
            :data:`SCORE_PARITY_EPS` (spec fma-wsss section 3.4).
    """
    positive = maps.clamp(min=0)
    least, most = positive.detach().flatten(-2).aminmax(dim=-1)
    span = (most - least + eps)[..., None, None]
    shifted = positive - least[..., None, None]
    return torch.where(span > 0, shifted / torch.where(span > 0, span, 1), 0)


def spread(
    maps: Tensor,
    attention: Tensor,
    *,
    threshold: float,
    values: SpreadValues = "score",
    iterations: int = 1,
    power: int = 2,
    eps: float = 0.0,
) -> Tensor:
    """Maps after the affinity: ``A^t (B * v)``, the box mask choosing what spreads (spec fma-wsss section 3.5).

    Eq. 4 writes ``B * (A^t v)``; the released code of FMA-WSSS and of CLIP-ES masks before, so what spreads may leave
    the boxes. The power is applied as t products with the P maps: O(t P L^2), and no L x L power is formed.

    Args:
        maps: (P, h, w) signed maps of one image.
        attention: (L, L) attention among its patches, averaged over heads and layers.
        threshold: of :func:`score_boxes`.
        values: v.
        iterations: of :func:`affinity`.
        power: t.
        eps: of :func:`map_scores`.

    Returns:
        (P, h, w) float32, not normalised again.
    """
    scores = map_scores(maps.float(), eps=eps)
    boxes = score_boxes(scores, threshold)
    v = ((scores if values == "score" else maps.float()) * boxes).flatten(1).T
    similar = affinity(attention.float(), iterations)
    for _ in range(power):
        v = similar @ v
    return v.T.reshape(maps.shape)


def affinity(attention: Tensor, iterations: int) -> Tensor:
    """(..., L, L) attention to a symmetric affinity of the same shape.

    Columns, then rows are divided by their sums, ``iterations`` times (Sinkhorn); then the mean with the transpose.
    """
    for _ in range(iterations):
        attention = attention / attention.sum(-2, keepdim=True)
        attention = attention / attention.sum(-1, keepdim=True)
    return (attention + attention.mT) / 2


def score_boxes(scores: Tensor, threshold: float) -> Tensor:
    """(P, h, w) bool union of the bounding boxes around every connected region of strong scores.

    A pixel is strong where its score, in whole steps of 1/255, is above ``threshold`` times the map's largest, in whole
    steps too. The last row and column are never inside a box, which is the released code's doing.

    Args:
        scores: (P, h, w) in [0, 1].
        threshold: in [0, 1]; 1 leaves no box.
    """
    steps = (255 * scores).to(torch.uint8).cpu().numpy()
    strong = steps > np.floor(threshold * steps.max((1, 2), keepdims=True, initial=0).astype(np.float64))
    return torch.from_numpy(region_boxes(strong)).to(scores.device)


def region_boxes(masks: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """(P, h, w) bool: the union of boxes ``[x0, min(x1, w - 1)) x [y0, min(y1, h - 1))`` of every mask's regions.

    Regions are 8-connected. An empty row under every mask lets one call find the regions of all, and corner counts
    summed along both axes paint all boxes at once.
    """
    count, height, width = masks.shape
    if masks.size == 0:
        return masks.copy()
    tall = np.pad(masks, ((0, 0), (0, 1), (0, 0))).reshape(-1, width).astype(np.uint8)
    _, _, stats, _ = cv2.connectedComponentsWithStats(tall, connectivity=8)
    x0, y0, box_width, box_height = stats[1:, :4].T.astype(np.int64)
    mask, y0 = np.divmod(y0, height + 1)
    x1 = np.maximum(np.minimum(x0 + box_width, width - 1), x0)
    y1 = np.maximum(np.minimum(y0 + box_height, height - 1), y0)
    corners = np.zeros((count, height + 1, width + 1), np.int32)
    for x, y, sign in ((x0, y0, 1), (x1, y0, -1), (x0, y1, -1), (x1, y1, 1)):
        np.add.at(corners, (mask, y, x), sign)
    return corners.cumsum(1).cumsum(2)[:, :height, :width] > 0
