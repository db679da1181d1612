"""All four protocols over a stream of images.

| protocol           | what is averaged                                                      | size of the masks    |
|--------------------|-----------------------------------------------------------------------|----------------------|
| `dataset41`        | classes of one confusion matrix, background included (the headline)    | original             |
| `dataset40`        | the same matrix, parts only                                            | original             |
| `pair_binary`      | pairs of an image and a true category, binary IoU, missed = 0          | original             |
| `official_rowwise` | the same pairs as the released WPS-SAM code scores them, errors and all | padded square frame  |
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from weakly.errors import UserError
from weakly.evaluation.confusion import ConfusionMatrix, Figures
from weakly.evaluation.pairs import (
    OfficialImage,
    OfficialOptions,
    PairScores,
    mean_figures,
    official_pairs,
    official_rowwise,
    pair_binary,
)
from weakly.segmentation import Segmentation
from weakly.vocabulary import Vocabulary

PROTOCOLS = ("dataset41", "dataset40", "pair_binary", "official_rowwise")
"""Names of the protocols, headline first."""


@dataclass(frozen=True)
class Scores:
    """What an evaluation found. Figures are fractions; NaN where nothing could be averaged.

    Attributes:
        protocols: the figures of every name in :data:`PROTOCOLS`.
        per_class: rows of :meth:`ConfusionMatrix.per_class`, background last.
        images: images scored.
        null_images: images without a predicted pixel. They count as misses, but not in ``official_rowwise``.
        matched: (image, category) pairs in truth and prediction.
        missed: pairs in the truth alone.
        false_positive: pairs in the prediction alone; no pair protocol charges for them.
        empty_truth: pairs of the truth without a pixel, left out of ``pair_binary``.
        official_pairs: pairs ``official_rowwise`` averages; fewer, or repeated, by design.
        pixel_accuracy: share of counted pixels with the right label.
        frequency_weighted_iou: IoU of the true classes weighted by their pixels.
    """

    protocols: Mapping[str, Figures]
    per_class: list[dict[str, Any]]
    images: int
    null_images: int
    matched: int
    missed: int
    false_positive: int
    empty_truth: int
    official_pairs: int
    pixel_accuracy: float
    frequency_weighted_iou: float

    def record_fields(self) -> dict[str, Any]:
        """The fields of a :class:`~weakly.evaluation.records.Record` that these scores fill."""
        return {
            "images": self.images,
            "protocols": {name: figures.to_dict() for name, figures in self.protocols.items()},
            "per_class": self.per_class,
            "null_images": self.null_images,
            "details": {
                "matched": self.matched,
                "missed": self.missed,
                "false_positive": self.false_positive,
                "empty_truth": self.empty_truth,
                "official_pairs": self.official_pairs,
                "pixel_accuracy": self.pixel_accuracy,
                "frequency_weighted_iou": self.frequency_weighted_iou,
            },
        }


@dataclass(eq=False)
class Evaluator:
    """Scores one image after another under every protocol.

    Memory: the confusion matrix, two numbers per pair, and the run-length encoded masks of all images (see
    :class:`OfficialImage`), which ``official_rowwise`` may have to match across images.

    Attributes:
        vocabulary: the categories; index C is background.
        frame_side: S in pixels, side of the square frame of ``official_rowwise`` (1024 for SAM).
        official: the batches and ranks that ``official_rowwise`` imitates.
        confusion: the confusion matrix so far.
    """

    vocabulary: Vocabulary
    frame_side: int = 1024
    official: OfficialOptions = field(default_factory=OfficialOptions)
    confusion: ConfusionMatrix = field(init=False)
    _pairs: list[PairScores] = field(init=False, default_factory=list)
    _official_images: list[OfficialImage] = field(init=False, default_factory=list)
    _null_images: int = field(init=False, default=0)

    def __post_init__(self) -> None:
        if self.frame_side < 1:
            raise UserError(f"The frame of official_rowwise needs a side of at least 1 pixel, not {self.frame_side}.")
        self.confusion = ConfusionMatrix(len(self.vocabulary))

    def update(self, truth: Segmentation, prediction: Segmentation, index: int | None = None) -> None:
        """Score one image at its original size.

        Label maps are the segmentations' own where they have one, else their masks painted by score, and larger first
        among equal scores, so that in a truth the smaller part wins.

        Args:
            truth: true masks, label map or both; a label map may hold 255 for void.
            prediction: predicted masks of the same size.
            index: position of the image in the data set; needed where images arrive out of order or on several ranks,
                because ``official_rowwise`` depends on the order. Give it for all images or for none.

        Raises:
            UserError: the sizes differ, or a label is not in the vocabulary.
        """
        name = f"Image {self.images if index is None else index}"
        if truth.size != prediction.size:
            raise UserError(
                f"{name} has a truth of {_size(truth)} pixels but a prediction of {_size(prediction)}; "
                "predict at the original size of the image."
            )
        background = self.vocabulary.background
        try:
            self.confusion.update(truth.to_label_map(background), prediction.to_label_map(background))
            truth, prediction = (_masks_alone(item, background) for item in (truth, prediction))
        except ValueError as error:
            raise UserError(f"{name}: {error}; score it with the vocabulary it was made with.") from error
        true_masks, predicted_masks = truth.category_masks(), prediction.category_masks()
        self._pairs.append(pair_binary(true_masks, predicted_masks))
        self._null_images += not any(mask.any() for mask in predicted_masks.values())
        if true_masks:  # The released evaluator leaves images without annotations out.
            own = official_rowwise(true_masks, predicted_masks, self.frame_side)
            self._official_images.append(OfficialImage(truth, prediction, own, index))

    def merge(self, other: Evaluator) -> Evaluator:
        """The evaluator of both sets of images, e.g. of two ranks.

        Without ``index`` the other's images follow this one's. Shards must not repeat images.
        """
        if (self.vocabulary, self.frame_side, self.official) != (other.vocabulary, other.frame_side, other.official):
            raise ValueError("evaluators with different settings cannot be merged")
        merged = Evaluator(self.vocabulary, self.frame_side, self.official)
        merged.confusion = self.confusion + other.confusion
        merged._pairs = self._pairs + other._pairs
        merged._official_images = self._official_images + other._official_images
        merged._null_images = self._null_images + other._null_images
        return merged

    @property
    def images(self) -> int:
        """Images scored so far."""
        return len(self._pairs)

    def compute(self) -> Scores:
        """Figures over everything seen so far; may be called at any time.

        Raises:
            UserError: nothing was scored.
        """
        if not self._pairs:
            raise UserError("No image was scored; evaluate on a split that has at least one image with true masks.")
        official = list(official_pairs(self._ordered_images(), self.official, self.frame_side))
        return Scores(
            protocols={
                "dataset41": self.confusion.dataset41(),
                "dataset40": self.confusion.dataset40(),
                "pair_binary": mean_figures((pairs.iou, pairs.accuracy) for pairs in self._pairs),
                "official_rowwise": mean_figures(official),
            },
            per_class=self.confusion.per_class(self.vocabulary.names),
            images=self.images,
            null_images=self._null_images,
            matched=sum(pairs.matched for pairs in self._pairs),
            missed=sum(pairs.missed for pairs in self._pairs),
            false_positive=sum(pairs.false_positive for pairs in self._pairs),
            empty_truth=sum(pairs.empty_truth for pairs in self._pairs),
            official_pairs=sum(len(iou) for iou, _ in official),
            pixel_accuracy=self.confusion.pixel_accuracy(),
            frequency_weighted_iou=self.confusion.frequency_weighted_iou(),
        )

    def _ordered_images(self) -> list[OfficialImage]:
        """Images in the order of the data set; in order of arrival where no index was given."""
        indices = [image.index for image in self._official_images]
        if None in indices:
            return self._official_images
        if len(set(indices)) < len(indices):
            raise ValueError("an image was scored twice: shards must not repeat images")
        return sorted(self._official_images, key=lambda image: image.index or 0)


def _masks_alone(segmentation: Segmentation, background: int) -> Segmentation:
    """The masks without the label map; one mask per category of the label map where there are no masks.

    Raises:
        ValueError: a mask has a label outside 0..C-1.
    """
    labels = segmentation.labels
    if len(labels) and not 0 <= labels.min() <= labels.max() < background:
        raise ValueError(f"a mask label is outside 0..{background - 1}")
    if len(segmentation) or segmentation.label_map is None:
        return segmentation.without_label_map()
    categories = np.unique(segmentation.label_map)
    categories = categories[categories < background]
    return Segmentation.from_masks(segmentation.label_map == categories[:, None, None], categories)


def _size(segmentation: Segmentation) -> str:
    height, width = segmentation.size
    return f"{width} x {height}"
