"""Multiple-instance scores, pseudo boxes mined from them, and the losses of both (spec weaksam, sections 3.1 and 3.2).

Symbols: R RoIs of one image, C categories, T those its tags name. Label 0 is background and k + 1 is category k. Boxes
are ``x0, y0, x1, y1`` with x1 and y1 exclusive. On them the ordinary IoU and the ordinary box codec are what published
code computes on inclusive boxes with its "+ 1": an inclusive width x1 - x0 + 1 *is* the exclusive x1 - x0. Inclusive
boxes come over by :func:`from_inclusive`. Nothing here waits for the device but :func:`mine_near_top`'s suppression.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional
from torchvision.models.detection._utils import BoxCoder  # type: ignore[import-untyped]
from torchvision.ops import nms  # type: ignore[import-untyped]

IMAGE_EPS = 1e-10
"""Least probability in the loss of an image."""

PROBABILITY_EPS = 1e-6
"""Added to probabilities before the logarithm of OICR's refinement loss."""

_CODER = BoxCoder((10.0, 10.0, 5.0, 5.0))


class PseudoBoxes(NamedTuple):
    """RoIs taken for objects: N candidates, those that count by ``kept``, which keeps the shapes known on the host.

    Attributes:
        rois: (N,) int64 indices of RoIs.
        categories: (N,) int64, 0..C-1.
        scores: (N,) float.
        kept: (N,) bool.
    """

    rois: Tensor
    categories: Tensor
    scores: Tensor
    kept: Tensor


class RoiTargets(NamedTuple):
    """What pseudo boxes teach every RoI.

    Attributes:
        labels: (R,) int64, 0..C.
        weights: (R,) float, of the RoI's losses.
        matched: (R,) int64, the RoI whose box is the target of a foreground RoI.
    """

    labels: Tensor
    weights: Tensor
    matched: Tensor


def from_inclusive(boxes: Tensor) -> Tensor:
    """(..., 4) boxes whose x1 and y1 are the last pixels inside, as boxes with x1 and y1 exclusive."""
    return boxes + boxes.new_tensor([0, 0, 1, 1])


def to_inclusive(boxes: Tensor) -> Tensor:
    """The inverse of :func:`from_inclusive`."""
    return boxes - boxes.new_tensor([0, 0, 1, 1])


def encode_boxes(targets: Tensor, boxes: Tensor) -> Tensor:
    """(R, 4) offsets that turn ``boxes`` (R, 4) into ``targets`` (R, 4): centres times 10, log sizes times 5."""
    return _CODER.encode_single(targets, boxes)


def decode_boxes(offsets: Tensor, boxes: Tensor) -> Tensor:
    """(R, K, 4) boxes: each of K offsets (R, K, 4) applied to the RoI's box (R, 4)."""
    return _CODER.decode_single(offsets.flatten(1), boxes).view_as(offsets)


def mil_scores(cls_logits: Tensor, det_logits: Tensor) -> Tensor:
    """(R, K) scores of the two streams: which category a RoI shows, times which RoI shows a category.

    Args:
        cls_logits: (R, K).
        det_logits: (R, K).
    """
    return cls_logits.softmax(1) * det_logits.softmax(0)


def image_loss(probabilities: Tensor, tags: Tensor, reduction: Literal["mean", "sum"] = "mean") -> Tensor:
    """Scalar binary cross-entropy: mean or sum over columns, mean over images.

    Args:
        probabilities: (B, K), sums of :func:`mil_scores` over RoIs; those of p and 1 - p below 1e-10 count as that.
        tags: (B, K) bool.
        reduction: over columns.
    """
    # Not the library's own, which stops the process on a GPU where a probability is NaN, or above 1 by rounding.
    right = torch.where(tags, probabilities, 1 - probabilities)
    entropy = -right.clamp(min=IMAGE_EPS).log()
    return (entropy.mean(1) if reduction == "mean" else entropy.sum(1)).mean()


def mine_top(scores: Tensor, tags: Tensor) -> PseudoBoxes:
    """OICR: the best RoI of every tag, N = T. A RoI that one category took scores 0 for the later ones.

    Args:
        scores: (R, C), without background.
        tags: (T,) int64 categories, ascending.
    """
    left = scores[:, tags]
    rois, values = [], []
    for column in range(len(tags)):
        best = left[:, column].argmax()
        rois.append(best)
        values.append(left[:, column].gather(0, best[None])[0])
        left = left.index_fill(0, best[None], 0)
    if not rois:
        return _none(scores)
    return PseudoBoxes(torch.stack(rois), tags, torch.stack(values), torch.ones_like(tags, dtype=torch.bool))


def mine_near_top(
    scores: Tensor, tags: Tensor, boxes: Tensor, *, ratio: float = 0.9, max_iou: float = 0.5
) -> PseudoBoxes:
    """OICR as WSOD2 mines it: of every tag all RoIs near the best, less those that overlap a better one of any tag.

    Args:
        scores: (R, C), without background.
        tags: (T,) int64 categories.
        boxes: (R, 4).
        ratio: of a tag's best score that a RoI must reach.
        max_iou: a candidate that overlaps a better one with a larger IoU goes.

    Returns:
        All kept, by descending score.
    """
    if not len(tags):
        return _none(scores)
    of_tags = scores[:, tags]
    rois, columns = (of_tags >= ratio * of_tags.amax(0)).nonzero(as_tuple=True)
    values = of_tags[rois, columns]
    order = nms(boxes[rois], values, max_iou)
    return PseudoBoxes(rois[order], tags[columns[order]], values[order], torch.ones_like(order, dtype=torch.bool))


def mine_spread(
    scores: Tensor, tags: Tensor, overlaps: Tensor, *, portion: float = 0.15, max_iou: float = 0.2
) -> PseudoBoxes:
    """MIST: of every tag's best RoIs those that overlap none that is ranked higher, kept or not.

    Stricter than greedy suppression, where only kept ones count. N = T k with k = portion R, rounded down, at least 1;
    tag by tag, by descending score.

    Args:
        scores: (R, C), without background.
        tags: (T,) int64 categories.
        overlaps: (R, R) IoU of the RoIs.
        portion: share of the RoIs that are candidates.
        max_iou: a candidate goes that has at least this IoU with a higher one.
    """
    count = max(1, int(portion * len(scores)))
    ranked = scores[:, tags].sort(dim=0, descending=True, stable=True)
    rois = ranked.indices[:count].T
    close = overlaps[rois[:, :, None], rois[:, None, :]] >= max_iou
    kept = ~close.tril(-1).any(-1)
    categories = tags[:, None].expand_as(rois)
    return PseudoBoxes(rois.flatten(), categories.flatten(), ranked.values[:count].T.flatten(), kept.flatten())


def assign(overlaps: Tensor, pseudo: PseudoBoxes, *, min_iou: float = 0.5, above: bool = False) -> RoiTargets:
    """Label and weight of every RoI: those of the pseudo box it overlaps most, the first of several.

    A RoI too far from it is background, with the same weight. Without pseudo boxes all are background of weight 0.

    Args:
        overlaps: (R, R) IoU of the RoIs.
        pseudo: what was mined.
        min_iou: of a foreground RoI and its pseudo box.
        above: the IoU must exceed ``min_iou`` (OICR), not just reach it (MIST, WSOD2).
    """
    if not len(pseudo.rois):
        nothing = torch.zeros(len(overlaps), dtype=torch.int64, device=overlaps.device)
        return RoiTargets(nothing, overlaps.new_zeros(len(overlaps)), nothing)
    best, nearest = overlaps[:, pseudo.rois].masked_fill(~pseudo.kept, -1).max(1)
    near = best > min_iou if above else best >= min_iou
    labels = torch.where(near, pseudo.categories[nearest] + 1, 0)
    found = pseudo.kept.any()
    return RoiTargets(labels * found, pseudo.scores[nearest] * found, pseudo.rois[nearest])


def cross_entropy_loss(logits: Tensor, targets: RoiTargets) -> Tensor:
    """Scalar: mean over RoIs of the weighted cross-entropy of (R, C + 1) logits, as in MIST."""
    return (targets.weights * functional.cross_entropy(logits, targets.labels, reduction="none")).mean()


def probability_loss(logits: Tensor, targets: RoiTargets) -> Tensor:
    """The same as OICR has it: ``-w log(p + 1e-6)`` of the softmax p, which bounds the term of a hopeless RoI."""
    probabilities = logits.softmax(1).gather(1, targets.labels[:, None])[:, 0]
    return -(targets.weights * (probabilities + PROBABILITY_EPS).log()).mean()


def box_loss(offsets: Tensor, boxes: Tensor, targets: RoiTargets) -> Tensor:
    """Scalar: weighted smooth L1 (beta 1) of the offsets of foreground RoIs, summed over them, over R.

    Args:
        offsets: (R, C + 1, 4), one per label.
        boxes: (R, 4).
        targets: of the RoIs.
    """
    wanted = encode_boxes(boxes[targets.matched], boxes)
    own = offsets[torch.arange(len(boxes), device=boxes.device), targets.labels]
    errors = functional.smooth_l1_loss(own, wanted, reduction="none").sum(1)
    return (errors * targets.weights * (targets.labels > 0)).sum() / max(1, len(boxes))


def _none(scores: Tensor) -> PseudoBoxes:
    nothing = torch.zeros(0, dtype=torch.int64, device=scores.device)
    return PseudoBoxes(nothing, nothing, scores.new_zeros(0), nothing.bool())
