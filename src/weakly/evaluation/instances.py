"""How instance masks are scored: VOC's average precision at several overlaps, and COCO's (weaksam, section 7).

As :mod:`weakly.evaluation.detection`, with the IoU of masks in place of that of boxes.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from weakly.evaluation.coco_detection import coco_scores
from weakly.evaluation.detection import DetectionScores, Interpolation, Pairs, match_voc, voc_scores
from weakly.segmentation import Rle
from weakly.vocabulary import Vocabulary

THRESHOLDS = (0.25, 0.5, 0.7, 0.75)
"""Overlaps at which weakly supervised instance segmentation is reported on VOC."""


def voc_instance_ap(
    pairs: Pairs,
    vocabulary: Vocabulary,
    *,
    thresholds: Sequence[float] = THRESHOLDS,
    interpolation: Interpolation = "area",
) -> DetectionScores:
    """Average precision of masks under VOC's matching, the usual protocol of weakly supervised instance segmentation.

    Args:
        pairs: truth and prediction of every image.
        vocabulary: C categories.
        thresholds: least IoU of a mask that is right.
        interpolation: how precision is averaged over recall.

    Returns:
        ``ap25``, ``ap50``, ``ap70`` and ``ap75``: means over the categories that have a true mask.
    """
    ious = ((truth, prediction, mask_iou(prediction.rles, truth.rles)) for truth, prediction in pairs)
    return voc_scores(match_voc(ious, len(vocabulary), thresholds), vocabulary, thresholds, interpolation)


def coco_instance_ap(pairs: Pairs, vocabulary: Vocabulary) -> DetectionScores:
    """COCO's average precision of masks: see :func:`~weakly.evaluation.detection.coco_scores`."""
    return coco_scores(pairs, vocabulary, "segm")


def mask_iou(first: Sequence[Rle], second: Sequence[Rle]) -> NDArray[np.float64]:
    """(D, G) IoU of D and G masks; 0 where both are empty."""
    if not first or not second:
        return np.zeros((len(first), len(second)))
    overlaps: NDArray[np.float64] = coco_mask.iou(
        [dict(rle) for rle in first], [dict(rle) for rle in second], [0] * len(second)
    )
    return np.nan_to_num(overlaps)
