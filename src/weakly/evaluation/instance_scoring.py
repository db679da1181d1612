"""Detections, instance masks and proposals as ways to score (weaksam, section 7): figures of a split for one record."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from weakly.evaluation.coco_detection import coco_scores
from weakly.evaluation.detection import Matched, box_iou, corloc, match_voc, voc_scores
from weakly.evaluation.instances import mask_iou, voc_instance_ap
from weakly.evaluation.proposals import proposal_recall
from weakly.segmentation import Segmentation
from weakly.vocabulary import Vocabulary

RECALL_AT = (5, 10, 15, 25, 30, 50, 75, 100, 150, 300, 1000, None)
"""First proposals of an image that count; None: all."""


@dataclass(frozen=True)
class InstanceFigures:
    """What a split scored.

    Attributes:
        figures: fields of a record: ``ap50``, ``ap``, ``corloc`` or ``recall``.
        per_class: one row per category, if there are any.
        details: further figures, by name.
        images: images scored.
        null_images: of them, those without any prediction.
    """

    figures: Mapping[str, float]
    per_class: Sequence[Mapping[str, Any]] | None
    details: Mapping[str, Any]
    images: int
    null_images: int

    def record_fields(self) -> dict[str, Any]:
        """The fields of a :class:`~weakly.evaluation.records.Record` that they fill."""
        return {
            **self.figures,
            "per_class": self.per_class,
            "details": dict(self.details),
            "images": self.images,
            "null_images": self.null_images,
        }


@dataclass(eq=False)
class InstanceEvaluator:
    """Average precision of boxes or of masks; memory: boxes and run-length encodings of the split.

    ``ap50`` is VOC's, with the area under the curve, ``ap`` COCO's; VOC 2007's eleven points are among the details, and
    so are CorLoc of boxes, which means something on images whose tags were known, and the precision and recall of all
    boxes together, whatever their scores, which mean something of boxes that were chosen, as pseudo truth is.

    Attributes:
        vocabulary: C categories.
        kind: what is scored.
    """

    vocabulary: Vocabulary
    kind: Literal["boxes", "masks"] = "boxes"
    _pairs: list[tuple[Segmentation, Segmentation]] = field(default_factory=list)

    def update(self, truth: Segmentation, prediction: Segmentation, index: int | None = None) -> None:  # noqa: ARG002
        """Keep one image."""
        self._pairs.append((truth, prediction))

    def compute(self) -> InstanceFigures:
        """Figures over everything seen so far."""
        pairs, vocabulary = self._pairs, self.vocabulary
        coco = coco_scores(pairs, vocabulary, "bbox" if self.kind == "boxes" else "segm")
        details: dict[str, Any] = {"scored": self.kind, "coco": dict(coco.figures)}
        if self.kind == "boxes":
            overlaps = ((truth, found, box_iou(found.boxes, truth.boxes)) for truth, found in pairs)
            matched = match_voc(overlaps, len(vocabulary), (0.5,))
            voc = voc_scores(matched, vocabulary, (0.5,), "area")
            details["voc07_ap50"] = voc_scores(matched, vocabulary, (0.5,), "11point").figures["ap50"]
            details["all_boxes"] = precision_and_recall(matched)
            found = corloc(pairs, vocabulary).figures["corloc"]
            extra = {"corloc": found}
        else:
            voc = voc_instance_ap(pairs, vocabulary)
            details["voc"] = dict(voc.figures)
            extra = {}
        return InstanceFigures(
            figures={"ap50": voc.figures["ap50"], "ap": coco.figures["ap"], **extra},
            per_class=voc.per_class,
            details=details,
            images=voc.images,
            null_images=sum(len(prediction) == 0 for _, prediction in pairs),
        )


def precision_and_recall(matched: Matched) -> dict[str, float]:
    """Of all predictions of a split at its first threshold: the share that is right, and of the truth that is found.

    NaN where there are no predictions, or is no truth.
    """
    right, counted, truths = (int(each.sum()) for each in (matched.hits[0], matched.counted[0], matched.truths))
    return {
        "precision": right / counted if counted else float("nan"),
        "recall": right / truths if truths else float("nan"),
    }


@dataclass(eq=False)
class ProposalEvaluator:
    """Recall of proposals, whatever their category; ``recall`` is that of all of them at IoU 0.5.

    Attributes:
        vocabulary: C categories.
    """

    vocabulary: Vocabulary
    _pairs: list[tuple[NDArray[np.float32], NDArray[np.float32]]] = field(default_factory=list)

    def update(self, truth: Segmentation, prediction: Segmentation, index: int | None = None) -> None:  # noqa: ARG002
        """Keep one image; predictions are in their order, best first where that matters."""
        single = np.array([not origin.get("crowd") for origin in truth.provenance], bool)
        self._pairs.append((prediction.boxes, truth.boxes[single]))

    def compute(self) -> InstanceFigures:
        """Figures over everything seen so far."""
        scores = proposal_recall(self._pairs, first=RECALL_AT)
        return InstanceFigures(
            figures={"recall": scores.recall[None][0.5]},
            per_class=None,
            details={"scored": "proposals", **scores.to_dict()},
            images=scores.images,
            null_images=scores.images_without_proposals,
        )


def box_image_iou(truth: Segmentation, prediction: Segmentation, background: int) -> NDArray[np.float64]:  # noqa: ARG001
    """(G,) the largest IoU of every true box with a predicted one of its category; 0 where none is."""
    return _best(box_iou(prediction.boxes, truth.boxes), truth, prediction)


def mask_image_iou(truth: Segmentation, prediction: Segmentation, background: int) -> NDArray[np.float64]:  # noqa: ARG001
    """(G,) the largest IoU of every true mask with a predicted one of its category; 0 where none is."""
    return _best(mask_iou(prediction.rles, truth.rles), truth, prediction)


def proposal_image_iou(truth: Segmentation, prediction: Segmentation, background: int) -> NDArray[np.float64]:  # noqa: ARG001
    """(G,) the largest IoU of every true box with any predicted one; 0 where there is none."""
    overlaps = box_iou(prediction.boxes, truth.boxes)
    return overlaps.max(0) if len(overlaps) else np.zeros(len(truth))


def _best(overlaps: NDArray[np.float64], truth: Segmentation, prediction: Segmentation) -> NDArray[np.float64]:
    if not len(prediction):
        return np.zeros(len(truth))
    same = prediction.labels[:, None] == truth.labels[None]
    best: NDArray[np.float64] = np.where(same, overlaps, 0).max(0)
    return best
