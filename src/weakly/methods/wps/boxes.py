"""Boxes as a second answer of the student (ours; DETR's losses): smooth where tokens are not.

Tokens are sines of the corners at high frequencies: two boxes a tenth of the frame apart are as far from each other
as any two, and a student that is unsure answers with the mean of many tokens, which is no box's. A box of its own
gives the matching and the early training a slope, and its tokens are always some box's.

Boxes are centre x, centre y, width, height in shares of the frame, float32.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torchvision.ops import box_convert, generalized_box_iou_loss  # type: ignore[import-untyped]

L1, GIOU = 5.0, 2.0
"""DETR's weights of the distance and of the generalised IoU."""


def boxes_of_prompts(prompts: Tensor, side: int) -> Tensor:
    """Frame corners in the first four of (..., 6) prompts to boxes (..., 4)."""
    boxes: Tensor = box_convert(prompts[..., :4] / side, "xyxy", "cxcywh")
    return boxes


def box_cost(found: Tensor, given: Tensor) -> Tensor:
    """(B, S, M) cost of matching found (B, S, 4) with given (B, M, 4): ``5 |difference| - 2 GIoU``."""
    return L1 * torch.cdist(found, given, p=1) - GIOU * pairwise_giou(_corners(found), _corners(given))


def box_loss(found: Tensor, given: Tensor) -> Tensor:
    """(K,) ``5 |difference| + 2 (1 - GIoU)`` of K pairs of boxes (K, 4)."""
    overlap: Tensor = generalized_box_iou_loss(_corners(found), _corners(given), reduction="none")
    return L1 * (found - given).abs().sum(-1) + GIOU * overlap


def pairwise_giou(first: Tensor, second: Tensor) -> Tensor:
    """Generalised IoU (..., S, M) of every pair of boxes (..., S, 4) and (..., M, 4), corners ``x0, y0, x1, y1``."""
    a, b = first[..., :, None, :], second[..., None, :, :]
    shared = _area(torch.maximum(a[..., :2], b[..., :2]), torch.minimum(a[..., 2:], b[..., 2:]))
    hull = _area(torch.minimum(a[..., :2], b[..., :2]), torch.maximum(a[..., 2:], b[..., 2:]))
    union = _area(a[..., :2], a[..., 2:]) + _area(b[..., :2], b[..., 2:]) - shared
    least = torch.finfo(first.dtype).tiny
    return shared / union.clamp(min=least) - (hull - union) / hull.clamp(min=least)


def _area(low: Tensor, high: Tensor) -> Tensor:
    return (high - low).clamp(min=0).prod(-1)


def _corners(boxes: Tensor) -> Tensor:
    corners: Tensor = box_convert(boxes, "cxcywh", "xyxy")
    return corners
