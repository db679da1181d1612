"""Ways to score the results of a method; a method names its own (:class:`~weakly.methods.base.Method`)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from weakly.data.dataset import Dataset, TruthInstances
from weakly.evaluation.instance_scoring import (
    InstanceEvaluator,
    ProposalEvaluator,
    box_image_iou,
    mask_image_iou,
    proposal_image_iou,
)
from weakly.evaluation.pairs import OfficialOptions, pair_binary
from weakly.evaluation.protocols import Evaluator
from weakly.evaluation.semantic import SemanticEvaluator, image_iou, with_known_truth
from weakly.segmentation import Rle, Segmentation, box_masks
from weakly.vocabulary import Vocabulary


class Computed(Protocol):
    """Figures over a whole split."""

    def record_fields(self) -> dict[str, Any]:
        """The fields of a :class:`~weakly.evaluation.records.Record` that they fill."""
        ...


class SplitEvaluator(Protocol):
    """Sees a split image by image."""

    def update(self, truth: Segmentation, prediction: Segmentation, index: int | None = None) -> None:
        """Score one image at its original size."""
        ...

    def compute(self) -> Computed:
        """Figures over everything seen so far."""
        ...


@dataclass(frozen=True)
class Scoring:
    """One way to score.

    Attributes:
        name: tells it from others.
        known: the images of a dataset whose truth is known; the others are left out.
        evaluator: made of the vocabulary, the side of ``official_rowwise``'s frame and the options it imitates.
        image_iou: truth, prediction and the background's index to the (T,) IoU of the categories that one image truly
            shows, background left out; by its mean the report ranks images.
        has_truth: whether a dataset has what this way needs.
        truth: of an image, by its index in the dataset.
    """

    name: str
    known: Callable[[Dataset], Dataset]
    evaluator: Callable[[Vocabulary, int, OfficialOptions], SplitEvaluator]
    image_iou: Callable[[Segmentation, Segmentation, int], NDArray[np.float64]]
    has_truth: Callable[[Dataset], bool] = Dataset.has_truth
    truth: Callable[[Dataset, int], Segmentation] = Dataset.truth


def _all_images(dataset: Dataset) -> Dataset:
    return dataset


def _part_iou(truth: Segmentation, prediction: Segmentation, background: int) -> NDArray[np.float64]:
    """IoU of the binary masks of every category in the truth, 0 where it was missed."""
    return pair_binary(_masks(truth, background), _masks(prediction, background)).iou


def _masks(segmentation: Segmentation, background: int) -> dict[int, NDArray[np.bool_]]:
    """Mask per category; from the label map where there are no masks."""
    if len(segmentation) or segmentation.label_map is None:
        return segmentation.category_masks()
    label_map = segmentation.label_map
    return {int(label): label_map == label for label in np.unique(label_map) if label < background}


def _semantic_evaluator(vocabulary: Vocabulary, _frame_side: int, _official: OfficialOptions) -> SemanticEvaluator:
    return SemanticEvaluator(vocabulary)


def _known_boxes(dataset: Dataset) -> Dataset:
    return dataset.with_instances()


def _known_masks(dataset: Dataset) -> Dataset:
    return dataset.with_instances(masks=True)


def _box_truth(dataset: Dataset, index: int) -> Segmentation:
    """True objects with their true boxes, which need not be the extents of their masks, filled."""
    truth, size = dataset.instances(index), dataset[index].size
    return _as_segmentation(truth, box_masks(truth.boxes, size), size)


def _mask_truth(dataset: Dataset, index: int) -> Segmentation:
    """True objects that have a mask."""
    truth = dataset.instances(index, masks=True)
    return _as_segmentation(truth, truth.rles or (), dataset[index].size)


def _as_segmentation(truth: TruthInstances, rles: tuple[Rle, ...], size: tuple[int, int]) -> Segmentation:
    origin = [
        {"difficult": bool(difficult), "crowd": bool(crowd)}
        for difficult, crowd in zip(truth.difficult, truth.crowd, strict=True)
    ]
    return Segmentation(size, rles, truth.boxes, truth.labels, np.ones(len(rles), np.float32), tuple(origin))


def _box_evaluator(vocabulary: Vocabulary, _frame_side: int, _official: OfficialOptions) -> InstanceEvaluator:
    return InstanceEvaluator(vocabulary, "boxes")


def _mask_evaluator(vocabulary: Vocabulary, _frame_side: int, _official: OfficialOptions) -> InstanceEvaluator:
    return InstanceEvaluator(vocabulary, "masks")


def _proposal_evaluator(vocabulary: Vocabulary, _frame_side: int, _official: OfficialOptions) -> ProposalEvaluator:
    return ProposalEvaluator(vocabulary)


def _has_boxes(dataset: Dataset) -> bool:
    return dataset.has_instances()


def _has_masks(dataset: Dataset) -> bool:
    return dataset.has_instances(masks=True)


def _has_given_boxes(dataset: Dataset) -> bool:
    return any(sample.boxes is not None for sample in dataset)


def _given_boxes(dataset: Dataset, index: int) -> Segmentation:
    """The given boxes of parts, filled."""
    sample = dataset[index]
    if sample.boxes is None:
        return Segmentation(sample.size)
    masks, boxes = box_masks(sample.boxes.xyxy, sample.size), sample.boxes
    return Segmentation(
        sample.size, masks, boxes.xyxy, boxes.labels, np.ones(len(masks), np.float32), ({},) * len(masks)
    )


PARTS = Scoring("parts", _all_images, Evaluator, _part_iou)
"""Part masks: the four protocols of :mod:`weakly.evaluation.protocols`. An image without a mask shows no part."""

SEMANTIC = Scoring("semantic", with_known_truth, _semantic_evaluator, image_iou)
"""One label per pixel: :mod:`weakly.evaluation.semantic`. An image without a label map is unknown, and so is void."""

BOXES = Scoring("boxes", _known_boxes, _box_evaluator, box_image_iou, _has_boxes, _box_truth)
"""True boxes of objects: VOC's and COCO's average precision, CorLoc (:mod:`weakly.evaluation.instance_scoring`)."""

INSTANCES = Scoring("instances", _known_masks, _mask_evaluator, mask_image_iou, _has_masks, _mask_truth)
"""True masks of objects: VOC's and COCO's average precision."""

PART_BOXES = Scoring("part-boxes", _all_images, _box_evaluator, box_image_iou, _has_given_boxes, _given_boxes)
"""Boxes of parts against the weak labels of a split, with the figures of :data:`BOXES`; no label is no part."""

PROPOSALS = Scoring("proposals", _known_boxes, _proposal_evaluator, proposal_image_iou, _has_boxes, _box_truth)
"""True boxes of objects, found by proposals of any category: recall."""
