"""Recall of box proposals (weaksam, section 7.4).

Boxes are ``x0, y0, x1, y1`` with exclusive upper bounds, and the IoU is the ordinary one. The released evaluator has
inclusive bounds and an "IoU + 1" that counts the last pixel; for boxes of whole pixels both are the same figure.
Two of its errors are not repeated: images without proposals count, with all their boxes missed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from weakly.errors import UserError

THRESHOLDS = (0.5, 0.6, 0.75, 0.9)
"""IoU at which a box is found, as published."""


@dataclass(frozen=True)
class ProposalScores:
    """How many true boxes proposals find.

    Attributes:
        images: that were scored, also those without proposals or true boxes.
        true_boxes: in all of them.
        proposals_per_image: the mean, of all proposals.
        images_without_proposals: of those.
        recall: {first proposals of every image that count, None for all: {IoU: fraction of true boxes found}}; NaN
            without true boxes.
    """

    images: int
    true_boxes: int
    proposals_per_image: float
    images_without_proposals: int
    recall: Mapping[int | None, Mapping[float, float]]

    def to_dict(self) -> dict[str, Any]:
        """JSON-able, with names for keys: ``{"recall": {"all": {"0.5": ...}, "100": ...}, ...}``."""
        return {
            "images": self.images,
            "true_boxes": self.true_boxes,
            "proposals_per_image": self.proposals_per_image,
            "images_without_proposals": self.images_without_proposals,
            "recall": {
                "all" if first is None else str(first): {f"{iou:g}": value for iou, value in values.items()}
                for first, values in self.recall.items()
            },
        }


def proposal_recall(
    pairs: Iterable[tuple[NDArray[np.floating], NDArray[np.floating]]],
    first: Sequence[int | None] = (None,),
    thresholds: Sequence[float] = THRESHOLDS,
) -> ProposalScores:
    """Recall over a stream of images: the share of true boxes whose own proposal has at least some IoU.

    Args:
        pairs: per image its proposals (n, 4), best first where that matters, and its true boxes (m, 4).
        first: numbers N: only the first N proposals of every image count; None: all.
        thresholds: IoU in (0, 1].

    Raises:
        UserError: a threshold or a number cannot be, or there is no image.
    """
    if not thresholds or not all(0 < threshold <= 1 for threshold in thresholds):
        raise UserError(f"The IoU thresholds of recall are {list(thresholds)}; give fractions in (0, 1].")
    if not first or not all(number is None or number >= 1 for number in first):
        raise UserError(f"Recall of the first {list(first)} proposals; give whole numbers of at least 1, or null.")
    counts: list[int] = []
    found: dict[int | None, list[NDArray[np.float64]]] = {number: [] for number in first}
    for proposals, truth in pairs:
        counts.append(len(proposals))
        overlap = box_iou(proposals, truth)
        for number, matched in found.items():
            matched.append(match(overlap[:number]))
    if not counts:
        raise UserError("There is no image whose proposals could be scored; give at least one.")
    recall = {number: _recall(np.concatenate(matched), thresholds) for number, matched in found.items()}
    return ProposalScores(
        images=len(counts),
        true_boxes=sum(map(len, next(iter(found.values())))),
        proposals_per_image=float(np.mean(counts)),
        images_without_proposals=counts.count(0),
        recall=recall,
    )


def match(overlap: NDArray[np.float64]) -> NDArray[np.float64]:
    """(m,) IoU of each true box with the proposal it is matched with; 0 if with none.

    Greedy and one to one: again and again the pair of largest IoU leaves. Ties go to the earlier proposal.

    Args:
        overlap: (n, m) IoU of proposals and true boxes.
    """
    left = overlap.copy()
    matched = np.zeros(overlap.shape[1])
    for _ in range(min(overlap.shape)):  # one of the few true boxes leaves each time
        proposal, truth = np.unravel_index(left.argmax(), left.shape)
        if left[proposal, truth] <= 0:
            break
        matched[truth] = left[proposal, truth]
        left[proposal], left[:, truth] = -1, -1
    return matched


def box_iou(a: NDArray[np.floating], b: NDArray[np.floating]) -> NDArray[np.float64]:
    """(n, m) IoU of boxes (n, 4) and (m, 4), exclusive upper bounds; 0 of two empty boxes."""
    wide_a, wide_b = (np.asarray(boxes, np.float64).reshape(-1, 4) for boxes in (a, b))
    upper = np.minimum(wide_a[:, None, 2:], wide_b[None, :, 2:])
    lower = np.maximum(wide_a[:, None, :2], wide_b[None, :, :2])
    shared = (upper - lower).clip(min=0).prod(-1)
    areas = [(boxes[:, 2:] - boxes[:, :2]).clip(min=0).prod(-1) for boxes in (wide_a, wide_b)]
    union = areas[0][:, None] + areas[1] - shared
    iou: NDArray[np.float64] = np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)
    return iou


def _recall(matched: NDArray[np.float64], thresholds: Sequence[float]) -> dict[float, float]:
    """{threshold: share of the matched IoUs that reach it}."""
    if len(matched) == 0:
        return dict.fromkeys(thresholds, float("nan"))
    return {threshold: float((matched >= threshold).mean()) for threshold in thresholds}
