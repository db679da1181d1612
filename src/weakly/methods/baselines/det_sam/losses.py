"""Matching and loss of DETR: every given box is one query's business, all decoder layers at once.

Everything here is float32, also under autocast. Symbols: L decoder layers, B images, S queries, M instances of the
fullest image, C categories (class C is "no part"). Boxes are centre x, centre y, width, height in shares of the frame.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from torchvision.ops import box_convert, generalized_box_iou_loss  # type: ignore[import-untyped]

from weakly.errors import WeaklyError
from weakly.methods.wps.boxes import pairwise_giou
from weakly.methods.wps.losses import assign


class Answers(NamedTuple):
    """What the queries say after every decoder layer.

    Attributes:
        logits: (L, B, S, C + 1).
        boxes: (L, B, S, 4) in [0, 1].
    """

    logits: Tensor
    boxes: Tensor


def set_loss(
    answers: Answers,
    labels: Tensor,
    boxes: Tensor,
    counts: Sequence[int],
    *,
    eos_weight: float,
    l1: float,
    giou: float,
) -> dict[str, Tensor]:
    """DETR's loss, summed over the decoder layers, each of which is matched for itself.

    Cross-entropy is a weighted mean over all queries of a layer; unmatched ones are to say "no part". The distance of
    boxes and 1 - GIoU are summed over the matched pairs of a layer and divided by the boxes of the batch.

    Args:
        answers: of the detector.
        labels: (B, M) int64; padding may hold any category.
        boxes: (B, M, 4); padding may hold anything finite.
        counts: number of instances of every image, on the host.
        eos_weight: weight of "no part" in the cross-entropy.
        l1: weight of the distance.
        giou: weight of the generalised IoU.

    Returns:
        Scalars: ``"loss"`` and the weighted parts it is the sum of, ``"classification"``, ``"l1"`` and ``"giou"``.
    """
    layers = len(answers.logits)
    with torch.autocast(answers.logits.device.type, enabled=False):
        logits, found = answers.logits.float(), answers.boxes.float()
        layer, image, query, instance = _match(logits, found, labels, boxes.float(), counts, l1=l1, giou=giou)
        background = logits.shape[-1] - 1
        target = labels.new_full(logits.shape[:-1], background)
        target[layer, image, query] = labels[image, instance]
        entropy = functional.cross_entropy(logits.flatten(0, 2), target.flatten(), reduction="none").view(layers, -1)
        weight = torch.where(target == background, eos_weight, 1.0).view(layers, -1)
        given, answered = boxes.float()[image, instance], found[layer, image, query]
        number = max(1, sum(counts))
        overlap = generalized_box_iou_loss(_corners(answered), _corners(given), reduction="sum")
        parts = {
            "classification": ((entropy * weight).sum(1) / weight.sum(1)).sum(),
            "l1": l1 * (answered - given).abs().sum() / number,
            "giou": giou * overlap / number,
        }
    return {"loss": torch.stack(list(parts.values())).sum(), **parts}


@torch.no_grad()
def _match(
    logits: Tensor, found: Tensor, labels: Tensor, boxes: Tensor, counts: Sequence[int], *, l1: float, giou: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The K cheapest pairs of all layers and images: layer, image, query and instance, each (K,) int64.

    The cost is ``l1 * |difference| - p(label) - giou * GIoU``. One transfer to the host.

    Raises:
        WeaklyError: a cost is not finite, i.e. the training has diverged.
    """
    layers, images, queries = logits.shape[:3]
    classes = labels[None, :, None].expand(layers, -1, queries, -1)
    distance = (found[..., :, None, :] - boxes[None, :, None]).abs().sum(-1)
    overlap = pairwise_giou(_corners(found), _corners(boxes)[None])
    cost = (l1 * distance - giou * overlap - logits.softmax(-1).gather(3, classes)).cpu().numpy()
    if not np.isfinite(cost).all():
        raise WeaklyError("The training diverged: the student's output is not finite; lower optimisation.lr.")
    rows = [
        np.stack([np.full_like(query, layer), np.full_like(query, image), query, instance])
        for layer in range(layers)
        for image in range(images)
        for query, instance in [assign(cost[layer, image, :, : counts[image]])]
    ]
    layer, image, query, instance = torch.from_numpy(np.concatenate(rows, axis=1)).to(logits.device).unbind()
    return layer, image, query, instance


def _corners(boxes: Tensor) -> Tensor:
    corners: Tensor = box_convert(boxes, "cxcywh", "xyxy")
    return corners
