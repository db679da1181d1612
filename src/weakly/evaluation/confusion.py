"""The dataset-level confusion matrix and what is read off it.

One (C + 1) x (C + 1) matrix of pixel counts is kept for a whole data set: rows are the truth, columns the prediction,
and the last index, C, is background ("no part"). The figures follow the evaluator behind the comparison table of the
part segmentation literature (Compositor, CVPR 2023): a single label per pixel, at the original size of the image.

Protocol names are those of PartImageNet, which has 40 parts, and are kept whatever C is: ``dataset41`` is "with
background", ``dataset40`` is "parts only".
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from weakly.errors import UserError

VOID = 255
"""Truth value of pixels that are never counted."""


@dataclass(frozen=True, slots=True)
class Figures:
    """The two figures of a protocol, as fractions; NaN where nothing could be averaged.

    Attributes:
        miou: mean intersection over union.
        macc: mean accuracy, in the protocol's own sense of the word.
    """

    miou: float
    macc: float

    def to_dict(self) -> dict[str, float]:
        """``{"miou", "macc"}`` without what is undefined."""
        return {name: value for name, value in (("miou", self.miou), ("macc", self.macc)) if math.isfinite(value)}


class ConfusionMatrix:
    """A streaming, exact confusion matrix.

    Counts are int64 and only ever added, so the result does not depend on batch size, order, workers or ranks;
    matrices of different ranks are merged with ``+``.

    Attributes:
        categories: C, the number of categories without background.
        counts: (C + 1, C + 1) int64; ``counts[t, p]`` pixels of true category t were predicted as p.
    """

    def __init__(self, categories: int, counts: NDArray[np.int64] | None = None) -> None:
        """Start from nothing, or from the counts of an earlier matrix.

        Raises:
            UserError: there are so many categories that 255 would be one of them.
        """
        if categories >= VOID:
            raise UserError(
                f"A vocabulary of {categories} categories cannot be scored with label maps, where {VOID} means void; "
                f"use at most {VOID - 1} categories."
            )
        classes = categories + 1
        self.categories = categories
        self.counts = np.zeros((classes, classes), np.int64) if counts is None else counts
        if self.counts.shape != (classes, classes):
            raise ValueError(f"counts of shape {self.counts.shape} for {classes} classes")

    def update(self, truth: NDArray[Any], prediction: NDArray[Any]) -> None:
        """Count the pixels of one label map, or of a batch of them, in one pass.

        Args:
            truth: (..., H, W) integers: category, C for background, 255 for void.
            prediction: (..., H, W) integers: category, C for background. Read only where the truth is not void.

        Raises:
            ValueError: the shapes differ, or a value is outside 0..C.
        """
        if truth.shape != prediction.shape:
            raise ValueError(f"truth of shape {truth.shape} but prediction of shape {prediction.shape}")
        counted = truth != VOID
        true, predicted = truth[counted], prediction[counted]
        for name, values in (("truth", true), ("prediction", predicted)):
            if not values.size:
                continue
            for label in (values.min(), values.max()):
                if not 0 <= label <= self.categories:
                    raise ValueError(f"{name} label {label} is outside 0..{self.categories}")
        classes = self.categories + 1
        pairs = true.astype(np.intp) * classes + predicted
        self.counts += np.bincount(pairs, minlength=classes * classes).reshape(classes, classes)

    def __add__(self, other: ConfusionMatrix) -> ConfusionMatrix:
        """The matrix of both sets of pixels."""
        if self.categories != other.categories:
            raise ValueError(f"matrices of {self.categories} and {other.categories} categories do not add up")
        return ConfusionMatrix(self.categories, self.counts + other.counts)

    @property
    def true_pixels(self) -> NDArray[np.int64]:
        """(C + 1,) pixels of each class in the truth."""
        return np.asarray(self.counts.sum(1))

    @property
    def predicted_pixels(self) -> NDArray[np.int64]:
        """(C + 1,) pixels predicted as each class."""
        return np.asarray(self.counts.sum(0))

    def iou(self) -> NDArray[np.float64]:
        """(C + 1,) TP / (truth + prediction - TP); NaN for a class in neither."""
        hits = self.counts.diagonal()
        return _ratio(hits, self.true_pixels + self.predicted_pixels - hits)

    def accuracy(self) -> NDArray[np.float64]:
        """(C + 1,) TP / truth, the recall of each class; NaN for a class without truth."""
        return _ratio(self.counts.diagonal(), self.true_pixels)

    def dataset41(self) -> Figures:
        """With background: IoU over classes in truth or prediction, accuracy over classes in the truth."""
        return Figures(_mean(self.iou()), _mean(self.accuracy()))

    def dataset40(self) -> Figures:
        """Parts only: the same matrix, the mean over the C categories without background."""
        return Figures(_mean(self.iou()[:-1]), _mean(self.accuracy()[:-1]))

    def dataset_present(self) -> Figures:
        """With background, over classes in the truth alone: a class that is only falsely predicted costs nothing."""
        return Figures(_mean(self.iou()[self.true_pixels > 0]), _mean(self.accuracy()))

    def pixel_accuracy(self) -> float:
        """Share of counted pixels with the right label; NaN before the first."""
        return float(_ratio(self.counts.trace(), self.counts.sum()))

    def frequency_weighted_iou(self) -> float:
        """IoU of the classes in the truth, weighted by their true pixels; NaN before the first pixel."""
        present = self.true_pixels > 0
        if not present.any():
            return math.nan
        return float(np.average(self.iou()[present], weights=self.true_pixels[present]))

    def per_class(self, names: Sequence[str]) -> list[dict[str, Any]]:
        """One row per category and a last one for background: ``name, iou, acc, true_pixels, predicted_pixels``.

        ``iou`` and ``acc`` are None where they are undefined.
        """
        rows = zip(
            [*names, "background"], self.iou(), self.accuracy(), self.true_pixels, self.predicted_pixels, strict=True
        )
        return [
            {
                "name": name,
                "iou": None if np.isnan(iou) else float(iou),
                "acc": None if np.isnan(acc) else float(acc),
                "true_pixels": int(true),
                "predicted_pixels": int(predicted),
            }
            for name, iou, acc, true, predicted in rows
        ]


def _ratio(part: Any, whole: Any) -> NDArray[np.float64]:
    """``part / whole``, NaN where the whole is nothing."""
    whole = np.asarray(whole, np.float64)
    return np.asarray(np.divide(part, whole, out=np.full(whole.shape, np.nan), where=whole > 0))


def _mean(values: NDArray[np.float64]) -> float:
    """Mean of the defined values; NaN where there is none."""
    defined = values[~np.isnan(values)]
    return float(defined.mean()) if defined.size else math.nan
