"""From which score on a detection prompts the segmenter: chosen on training images, by boxes alone.

The paper gives no threshold. Masks are not looked at: a detection is right if it is the best of its category to
overlap a given box with an IoU of 0.5 or more (VOC's matching), and the threshold is the one with the best F1 over all
categories. Whether a detection is right does not depend on lower-scored ones: one look serves every threshold.

The detector was trained on these images and is surer of them than of others: the threshold errs on the high side.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray

from weakly.evaluation.detection import box_iou, match_image
from weakly.methods.baselines.det_sam.model import Detector
from weakly.methods.baselines.det_sam.targets import DetSamBatch, DetSamData

UNDECIDED = 0.5
"""The threshold where no detection is right."""

MATCHED_IOU = 0.5


def choose_threshold(detector: Detector, data: DetSamData, images: int, *, batch_size: int = 8) -> float:
    """The score with the best F1 on images spread evenly over the training images, none of them mirrored.

    The detector is left in the mode it was in.

    Args:
        detector: trained.
        data: it was trained on.
        images: how many of them are looked at.
        batch_size: at once.
    """
    rows = np.unique(np.linspace(0, len(data) - 1, min(images, len(data))).round().astype(np.int64)).tolist()
    mode, device = detector.training, next(detector.parameters()).device
    scores, right, given = [np.zeros(0, np.float32)], [np.zeros(0, bool)], 0
    detector.eval()
    for start in range(0, len(rows), batch_size):
        batch = data.__getitems__(rows[start : start + batch_size])
        given += sum(batch.counts)
        for found, hits in _matched(detector, batch, device):
            scores.append(found)
            right.append(hits)
    detector.train(mode)
    return best_cut(np.concatenate(scores), np.concatenate(right), given)


def best_cut(scores: NDArray[np.float32], right: NDArray[np.bool_], given: int) -> float:
    """The threshold with the best F1: midway between the last score above it and the first below.

    Args:
        scores: (N,) of all detections.
        right: (N,) whether each is.
        given: boxes there are to be found.

    Returns:
        In [0, 1]; of several as good the highest; :data:`UNDECIDED` where nothing is right.
    """
    if not right.any():
        return UNDECIDED
    order = np.argsort(-scores, kind="stable")
    ranked = np.append(scores[order], np.float32(0)).astype(np.float64)
    f1 = 2 * np.cumsum(right[order]) / (np.arange(1, len(order) + 1) + given)
    f1[ranked[:-1] == ranked[1:]] = -1.0  # equal scores are above a threshold together or not at all
    last = int(f1.argmax())
    return float((ranked[last] + ranked[last + 1]) / 2)


def _matched(
    detector: Detector, batch: DetSamBatch, device: torch.device
) -> Iterator[tuple[NDArray[np.float32], NDArray[np.bool_]]]:
    """Scores and rightness of the detections in every image of a batch."""
    image, boxes, labels, scores = (each.cpu().numpy() for each in detector.detect(batch.inputs.to(device)))
    for row, count in enumerate(batch.counts):
        mine, true_boxes = image == row, batch.boxes[row, :count].numpy()
        same = labels[mine, None] == batch.labels[row, :count].numpy()
        overlaps = np.where(same, box_iou(boxes[mine], true_boxes), -1.0)
        hits, _ = match_image(overlaps, scores[mine], np.zeros(count, bool), (MATCHED_IOU,))
        yield scores[mine], hits[0]
