"""Semantic segmentation over a stream of images (spec fma-wsss section 7).

| protocol         | what is averaged                                                                       |
|------------------|----------------------------------------------------------------------------------------|
| `semantic`       | classes with true pixels, background included, of one confusion matrix (the headline)  |
| `dataset41`      | the same matrix, over classes in truth or prediction (what mmsegmentation averages)    |
| `cam`            | as `semantic`, of class scores against a background score of a fixed power             |
| `cam_best_power` | the same with the power that scores best *on this truth*: uses the truth to choose     |

The figures are :class:`~weakly.evaluation.confusion.ConfusionMatrix`'s; nothing but matrices is kept in memory. Truth
255 (void) is never counted, and a prediction holds no void.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from weakly.data.dataset import Dataset
from weakly.errors import UserError
from weakly.evaluation.confusion import ConfusionMatrix, Figures
from weakly.segmentation import Segmentation
from weakly.vocabulary import Vocabulary

SEMANTIC_PROTOCOLS = ("semantic", "dataset41")
"""Names of the protocols of :class:`SemanticEvaluator`, headline first."""


def with_known_truth(dataset: Dataset) -> Dataset:
    """The images whose truth is known: where a dataset has label maps, those that have one, or masks in its place.

    An image without its label map would otherwise count as all background. In a dataset of masks alone every image
    counts: they state everything they show.
    """
    records = dataset.records
    if not any(record.label_map_path for record in records):
        return dataset
    return dataset.select([i for i, record in enumerate(records) if record.label_map_path or record.truth])


def image_iou(truth: Segmentation, prediction: Segmentation, background: int) -> NDArray[np.float64]:
    """(T,) IoU of the categories that one image truly shows, background left out; void pixels are not counted.

    Raises:
        ValueError: the sizes differ, or a label is outside 0..C.
    """
    confusion = ConfusionMatrix(background)
    confusion.update(truth.to_label_map(background), prediction.to_label_map(background))
    return confusion.iou()[:-1][confusion.true_pixels[:-1] > 0]


@dataclass(frozen=True)
class SemanticScores:
    """What a semantic evaluation found. Figures are fractions; NaN where nothing could be averaged.

    Attributes:
        protocols: the figures by name, headline first.
        per_class: rows of :meth:`ConfusionMatrix.per_class`, background last.
        images: images scored.
        null_images: images predicted as background alone.
        details: further counts and figures, by name.
    """

    protocols: Mapping[str, Figures]
    per_class: list[dict[str, Any]]
    images: int
    null_images: int
    details: Mapping[str, Any]

    def record_fields(self) -> dict[str, Any]:
        """The fields of a :class:`~weakly.evaluation.records.Record` that these scores fill.

        ``miou`` is that of the headline.
        """
        headline = next(iter(self.protocols.values()))
        return {
            "images": self.images,
            "protocols": {name: figures.to_dict() for name, figures in self.protocols.items()},
            "miou": headline.to_dict().get("miou"),
            "per_class": self.per_class,
            "null_images": self.null_images,
            "details": dict(self.details),
        }


@dataclass(eq=False)
class SemanticEvaluator:
    """Scores label maps, one image after another: seeds, pseudo-labels and final predictions alike.

    Used like :class:`~weakly.evaluation.protocols.Evaluator`, in constant memory.

    Attributes:
        vocabulary: the categories; index C is background.
        confusion: the confusion matrix so far.
        images: images scored so far.
    """

    vocabulary: Vocabulary
    confusion: ConfusionMatrix = field(init=False)
    images: int = field(init=False, default=0)
    _null_images: int = field(init=False, default=0)

    def __post_init__(self) -> None:
        self.confusion = ConfusionMatrix(len(self.vocabulary))

    def update(self, truth: Segmentation, prediction: Segmentation, index: int | None = None) -> None:
        """Score one image at its original size.

        Label maps are the segmentations' own where they have one, else their masks painted.

        Args:
            truth: may hold 255 for void.
            prediction: of the same size.
            index: position of the image in the data set, for errors; its order does not matter.

        Raises:
            UserError: the sizes differ, or a label is not in the vocabulary.
        """
        background = self.vocabulary.background
        predicted = prediction.to_label_map(background)
        _count(self.confusion, truth.to_label_map(background), predicted, self.images if index is None else index)
        self.images += 1
        self._null_images += not (predicted < background).any()

    def merge(self, other: SemanticEvaluator) -> SemanticEvaluator:
        """The evaluator of both sets of images, e.g. of two ranks. Shards must not repeat images."""
        if self.vocabulary != other.vocabulary:
            raise ValueError("evaluators with different vocabularies cannot be merged")
        merged = SemanticEvaluator(self.vocabulary)
        merged.confusion = self.confusion + other.confusion
        merged.images = self.images + other.images
        merged._null_images = self._null_images + other._null_images
        return merged

    def compute(self) -> SemanticScores:
        """Figures over everything seen so far; may be called at any time.

        Raises:
            UserError: nothing was scored.
        """
        _check_scored(self.images)
        return SemanticScores(
            protocols={"semantic": self.confusion.dataset_present(), "dataset41": self.confusion.dataset41()},
            per_class=self.confusion.per_class(self.vocabulary.names),
            images=self.images,
            null_images=self._null_images,
            details={
                "pixel_accuracy": self.confusion.pixel_accuracy(),
                "frequency_weighted_iou": self.confusion.frequency_weighted_iou(),
            },
        )


@dataclass(eq=False)
class CamEvaluator:
    """Scores class activation maps without making seeds of them (spec section 7.2).

    The background's score is ``(1 - max_c score_c) ** p``; the highest score wins a pixel, background on a tie. The
    figure of a fixed power is honest; that of the best one has seen the truth, and both are reported as what they are.

    Attributes:
        vocabulary: the categories; index C is background.
        power: p of the protocol ``cam``.
        powers: among which ``cam_best_power`` chooses; ``power`` is always one of them.
        confusions: {power: confusion matrix so far}.
        images: images scored so far.
    """

    vocabulary: Vocabulary
    power: float = 1
    powers: tuple[float, ...] = tuple(range(1, 11))
    confusions: dict[float, ConfusionMatrix] = field(init=False)
    images: int = field(init=False, default=0)
    _null_images: int = field(init=False, default=0)

    def __post_init__(self) -> None:
        powers = sorted({self.power, *self.powers})
        if powers[0] <= 0:
            raise UserError(f"The power {powers[0]} of the background score is not positive; give powers above 0.")
        self.confusions = {power: ConfusionMatrix(len(self.vocabulary)) for power in powers}

    def update(self, truth: Segmentation, scores: NDArray[Any], labels: NDArray[Any], index: int | None = None) -> None:
        """Score one image at its original size under every power.

        Args:
            truth: (H, W); may hold 255 for void.
            scores: (P, H, W) floats in [0, 1] of the classes that compete, on training images those of the tags.
            labels: (P,) their category indices.
            index: position of the image in the data set, for errors.

        Raises:
            UserError: sizes or numbers do not fit, a score is outside [0, 1] or not a number, or an unknown label.
        """
        position = self.images if index is None else index
        if scores.ndim != 3 or len(scores) != len(labels):
            raise UserError(f"Image {position}: {len(labels)} labels for scores {scores.shape}; give a map per label.")
        if scores.size and not (scores.min() >= 0 and scores.max() <= 1):
            raise UserError(f"Image {position}: a class score is outside 0..1; normalise the maps per class first.")
        true = truth.to_label_map(self.vocabulary.background)
        winner, score = _winners(scores, np.asarray(labels, np.int64))
        for power, confusion in self.confusions.items():
            predicted = np.where(score > (1 - score) ** power, winner, self.vocabulary.background)
            _count(confusion, true, predicted, position)
            self._null_images += power == self.power and not (predicted < self.vocabulary.background).any()
        self.images += 1

    def merge(self, other: CamEvaluator) -> CamEvaluator:
        """The evaluator of both sets of images, e.g. of two ranks. Shards must not repeat images."""
        if (self.vocabulary, self.power, [*self.confusions]) != (other.vocabulary, other.power, [*other.confusions]):
            raise ValueError("evaluators with different settings cannot be merged")
        merged = CamEvaluator(self.vocabulary, self.power, self.powers)
        merged.confusions = {power: matrix + other.confusions[power] for power, matrix in self.confusions.items()}
        merged.images = self.images + other.images
        merged._null_images = self._null_images + other._null_images
        return merged

    def compute(self) -> SemanticScores:
        """The fixed power as ``cam`` and the best one as ``cam_best_power``; ``details`` has every power's mIoU.

        Raises:
            UserError: nothing was scored.
        """
        _check_scored(self.images)
        figures = {power: confusion.dataset_present() for power, confusion in self.confusions.items()}
        best = max(figures, key=lambda power: figures[power].miou)
        return SemanticScores(
            protocols={"cam": figures[self.power], "cam_best_power": figures[best]},
            per_class=self.confusions[self.power].per_class(self.vocabulary.names),
            images=self.images,
            null_images=self._null_images,
            details={
                "power": self.power,
                "best_power": best,
                "best_power_chosen_on": "truth",
                "miou_by_power": {f"{power:g}": value.miou for power, value in figures.items()},
            },
        )


def _winners(scores: NDArray[Any], labels: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[Any]]:
    """(H, W) label of the highest class score, and that score; 0 where no class competes."""
    if not len(labels):
        return np.zeros(scores.shape[1:], np.int64), np.zeros(scores.shape[1:], np.float32)
    return labels[scores.argmax(0)], scores.max(0)


def _count(confusion: ConfusionMatrix, truth: NDArray[Any], prediction: NDArray[Any], index: int) -> None:
    if truth.shape != prediction.shape:
        (h, w), (height, width) = truth.shape, prediction.shape
        raise UserError(
            f"Image {index} has a truth of {w} x {h} pixels but a prediction of {width} x {height}; predict at the "
            "original size of the image."
        )
    try:
        confusion.update(truth, prediction)
    except ValueError as error:
        raise UserError(f"Image {index}: {error}; score it with the vocabulary it was made with.") from error


def _check_scored(images: int) -> None:
    if not images:
        raise UserError("No image was scored; evaluate on a split that has at least one image with a true label map.")
