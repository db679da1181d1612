"""SAM's "everything" masks with oracle labels: what a segmenter finds unprompted, named by the truth (WPS-SAM, Fig. 2).

The masks have no categories, so no mIoU of their own: each gets the category of the true mask it overlaps most. The
result knows the truth and is an upper bound, of whatever could name these masks.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass

import numpy as np
from numpy.typing import NDArray

from weakly.data.dataset import Dataset
from weakly.data.images import read_image
from weakly.errors import UserError
from weakly.foundation.automatic_masks import AutomaticMasks, generate_masks
from weakly.foundation.mask_settings import AutomaticMaskSettings
from weakly.foundation.promptable import PromptableSegmenter
from weakly.methods.base import Score
from weakly.methods.baselines.oracle import mask_iou, nothing, true_masks
from weakly.segmentation import Rle, Segmentation

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class EverythingSettings(AutomaticMaskSettings):
    """How the masks are made; the defaults are SAM's own: 32 x 32 points on the whole image, no clean-up."""

    crop_layers: int = 0
    iou_threshold: float = 0.88
    whole_iou_offset: float = 0.0
    stability_threshold: float = 0.95
    whole_nms_offset: float = 0.0
    min_region: int = 0


SAM_EVERYTHING = EverythingSettings()

MIN_IOU = 0.5
"""IoU with a true mask that names a mask; masks that reach it with none are left out."""


def everything(
    segmenter: PromptableSegmenter,
    dataset: Dataset,
    settings: AutomaticMaskSettings = SAM_EVERYTHING,
    min_iou: float = MIN_IOU,
) -> Iterator[Segmentation]:
    """Automatic masks with oracle labels, one image after the other; an unreadable image gives an empty segmentation.

    Args:
        segmenter: frozen.
        dataset: with true masks, or true label maps (then a category's true mask is all of it in the image).
        settings: of the masks.
        min_iou: see :data:`MIN_IOU`.
    """
    background = dataset.vocabulary.background
    for index, sample in enumerate(dataset):
        try:
            found = generate_masks(segmenter, read_image(sample.path), settings)
        except UserError as error:
            log.warning("%s is left out of everything: %s", sample.path, error)
            yield nothing(sample, background)
            continue
        yield oracle_labels(found, *true_masks(dataset.truth(index), background), min_iou)


def oracle_labels(
    found: AutomaticMasks, truth: Sequence[Rle], categories: NDArray[np.int64], min_iou: float = MIN_IOU
) -> Segmentation:
    """The masks that match a true one, with its category.

    Args:
        found: S masks.
        truth: T true masks.
        categories: (T,) of the true masks.
        min_iou: least IoU with a true mask.

    Returns:
        At most S masks; the score is the predicted IoU.
    """
    iou = mask_iou(found.rles, truth)
    best = iou.max(1, initial=0.0)
    kept = np.flatnonzero((best >= min_iou) & (best > 0))
    named = found.take(kept)
    return Segmentation(
        size=found.size,
        rles=named.rles,
        boxes=named.boxes,
        labels=categories[iou[kept].argmax(1)] if len(kept) else np.zeros(0, np.int64),
        scores=named.predicted_iou.clip(0, 1),
        provenance=tuple({"method": "everything", "true_iou": round(float(value), 3)} for value in best[kept]),
    )


def everything_scores(
    segmenter: Callable[[], PromptableSegmenter],
    dataset: Dataset,
    settings: AutomaticMaskSettings = SAM_EVERYTHING,
    min_iou: float = MIN_IOU,
) -> list[Score]:
    """The score of :func:`everything`, none without true masks; nothing is loaded before it is needed."""
    if not dataset.has_truth():
        return []

    def results() -> Iterator[Segmentation]:
        return everything(segmenter(), dataset, settings, min_iou)

    def identity() -> str:
        return f"{segmenter().fingerprint} {asdict(settings)} {min_iou}"

    return [Score("everything", "mask", results, identity, {"row": "oracle-label"})]
