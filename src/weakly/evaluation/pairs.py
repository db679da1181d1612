"""The two protocols that average over pairs of an image and a category of its truth.

``pair_binary`` is what WPS-SAM's evaluation sets out to compute: the IoU of the binary masks of each pair, 0 for a
category that was missed. ``official_rowwise`` is what the released code computes, errors included, so that its
figures can be compared at all:

* It hands 2-D masks to a metric that reads the first axis as images. The "IoU" is therefore the mean over pixel
  *rows* of the padded square frame, and a row without truth or prediction scores 1.0.
* Images without any predicted category drop out of one of two lists that are then zipped, so within a batch later
  predictions move up and the last images are not scored.
* Nothing is reduced across ranks; the printed figure is that of rank 0, a quarter of the images on four GPUs.

In both, a category that is predicted but not in the truth costs nothing: quote ``dataset41`` for comparisons.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from weakly.errors import UserError
from weakly.evaluation.confusion import Figures
from weakly.segmentation import Segmentation

Mask = NDArray[np.bool_]
Masks = NDArray[np.bool_]
Values = NDArray[np.float64]


@dataclass(frozen=True, eq=False, slots=True)
class PairScores:
    """Scores of the n scored (image, true category) pairs of one image.

    Attributes:
        iou: (n,) float64 in [0, 1].
        accuracy: (n,) float64 binary pixel accuracy; 0 for a missed category.
        matched: true categories that were predicted.
        missed: true categories that were not; n = matched + missed.
        false_positive: predicted categories the truth does not have.
        empty_truth: true categories without a single pixel, left out of n.
    """

    iou: Values
    accuracy: Values
    matched: int
    missed: int
    false_positive: int
    empty_truth: int = 0


@dataclass(frozen=True, slots=True)
class OfficialOptions:
    """The run of the released evaluator to imitate.

    Attributes:
        batch_size: images per batch and rank; predictions are mismatched within a batch only.
        world_size: ranks; images are dealt out in turn and the first ones repeated to even the ranks out.
        rank: which rank's figure; ``"all"`` averages over the pairs of all of them, 0 is what the released code prints.
    """

    batch_size: int = 2
    world_size: int = 4
    rank: int | Literal["all"] = "all"

    def __post_init__(self) -> None:
        if self.batch_size < 1 or self.world_size < 1:
            raise UserError("official_rowwise needs a batch_size and a world_size of at least 1.")
        if self.rank != "all" and not 0 <= self.rank < self.world_size:
            raise UserError(
                f"official_rowwise has no rank {self.rank!r}; use 'all' or 0 to {self.world_size - 1} "
                f"with a world_size of {self.world_size}."
            )


@dataclass(frozen=True, eq=False, slots=True)
class OfficialImage:
    """One image as ``official_rowwise`` keeps it until the order of the images is known.

    Masks stay run-length encoded (a few hundred bytes each), so N images of K masks take about N * K * 0.5 KB.

    Attributes:
        truth: its true masks, at least one.
        prediction: its predicted masks; none for a null image.
        own: its scores where it is matched with its own prediction.
        index: position in the data set; None where images arrived in order.
    """

    truth: Segmentation
    prediction: Segmentation
    own: PairScores
    index: int | None = None


def pair_binary(truth: Mapping[int, Mask], prediction: Mapping[int, Mask]) -> PairScores:
    """Score one image by the binary masks of each category in its truth.

    Args:
        truth: {category: (H, W) bool}. A category without a pixel is left out and counted.
        prediction: {category: (H, W) bool}. A category without a pixel counts as not predicted.

    Returns:
        One pair per true category; an image without any prediction scores 0 on all of them.
    """
    drawn = {category: mask for category, mask in truth.items() if mask.any()}
    predicted = {category: mask for category, mask in prediction.items() if mask.any()}
    matched = sorted(drawn.keys() & predicted.keys())
    missed = len(drawn) - len(matched)
    iou, accuracy = binary_scores(stack(drawn, matched), stack(predicted, matched))
    return PairScores(
        iou=np.pad(iou, (0, missed)),
        accuracy=np.pad(accuracy, (0, missed)),
        matched=len(matched),
        missed=missed,
        false_positive=len(predicted.keys() - truth.keys()),
        empty_truth=len(truth) - len(drawn),
    )


def official_rowwise(truth: Mapping[int, Mask], prediction: Mapping[int, Mask], frame_side: int) -> PairScores:
    """Score one image against its own prediction as the released code does.

    As there, a category counts by its label: one whose masks have no pixel is neither left out nor missed. Masks are
    binary here; the released code's soft sum of probabilities per category is an option of the method, not of the
    metric.

    Args:
        truth: {category: (H, W) bool}.
        prediction: {category: (H, W) bool}.
        frame_side: S, side in pixels of the square frame that the image is resized and padded to.
    """
    matched = sorted(truth.keys() & prediction.keys())
    iou, accuracy = rowwise_scores(stack(truth, matched), stack(prediction, matched), frame_side)
    missed = len(truth) - len(matched)
    return PairScores(
        iou=np.pad(iou, (0, missed)),
        accuracy=np.pad(accuracy, (0, missed)),
        matched=len(matched),
        missed=missed,
        false_positive=len(prediction.keys() - truth.keys()),
    )


def official_pairs(
    images: Sequence[OfficialImage], options: OfficialOptions, frame_side: int
) -> Iterator[tuple[Values, Values]]:
    """The (n,) IoUs and accuracies that the released evaluator averages, one entry per image it scores.

    Args:
        images: all images with a truth, in the order of the data set.
        options: batches and ranks to imitate.
        frame_side: S, side of the square frame.
    """
    for batch in _official_batches(len(images), options):
        answered = [position for position in batch if len(images[position].prediction)]
        # `answered` is the shorter list: zip moves predictions up and drops the last images, as released.
        for scored, source in zip(batch, answered, strict=False):
            image = images[scored]
            if scored == source or not len(image.prediction):
                # An image whose queries are all background has every category missed, whatever masks it is given.
                yield image.own.iou, image.own.accuracy
            else:
                yield _scores_of_other_image(image, images[source].prediction, frame_side)


def mean_figures(pairs: Iterable[tuple[Values, Values]]) -> Figures:
    """Plain mean over all pairs; exactly rounded, so it does not depend on their order. NaN without pairs."""
    ious: list[float] = []
    accuracies: list[float] = []
    for iou, accuracy in pairs:
        ious.extend(iou.tolist())
        accuracies.extend(accuracy.tolist())
    if not ious:
        return Figures(math.nan, math.nan)
    return Figures(math.fsum(ious) / len(ious), math.fsum(accuracies) / len(accuracies))


def binary_scores(truth: Masks, prediction: Masks) -> tuple[Values, Values]:
    """IoU and pixel accuracy of K pairs of binary masks.

    Args:
        truth: (K, H, W) bool.
        prediction: (K, H, W) bool.

    Returns:
        (K,) IoU, 1 where both masks are empty, and (K,) accuracy (TP + TN) / (H * W).
    """
    if not len(truth):
        return np.zeros(0), np.zeros(0)
    width = truth.shape[2]
    common, union = (counts.sum(1) for counts in _row_counts(truth, prediction, np.ones(width, np.float32)))
    return _fraction(common, union), 1 - (union - common) / (truth.shape[1] * width)


def rowwise_scores(truth: Masks, prediction: Masks, frame_side: int) -> tuple[Values, Values]:
    """Row-mean "IoU" and pixel accuracy of K pairs of masks in the padded square frame.

    ``IoU = (1 / S) * sum over rows r of (|p_r & g_r| / |p_r | g_r| if the union is not empty, else 1)``.

    The frame is never built. Nearest resizing repeats whole rows and columns, so the counts of an image row are
    weighted by how often each column and row appears in the frame; padding rows are empty and score 1 wherever they
    lie, so centring needs no arithmetic. :func:`to_frame` builds the frame and gives the same figures.

    Args:
        truth: (K, H, W) bool.
        prediction: (K, H, W) bool.
        frame_side: S.

    Returns:
        (K,) IoU and (K,) accuracy over all S * S pixels, padding included.
    """
    if not len(truth):
        return np.zeros(0), np.zeros(0)
    size = truth.shape[1:]
    height, width = _content_size((size[0], size[1]), frame_side)
    rows = np.bincount(_nearest(size[0], height), minlength=size[0]).astype(np.float64)
    columns = np.bincount(_nearest(size[1], width), minlength=size[1]).astype(np.float32)
    common, union = _row_counts(truth, prediction, columns)
    iou = (_fraction(common, union) @ rows + (frame_side - height)) / frame_side
    return iou, 1 - (union - common) @ rows / frame_side**2


def to_frame(masks: Masks, frame_side: int) -> Masks:
    """Resize the longest side of (K, H, W) masks to S (nearest) and centre them in (K, S, S), False elsewhere.

    Sizes are rounded half up and an odd row or column of padding goes to the bottom or right, as the released
    pre-processing does.
    """
    size = masks.shape[1:]
    height, width = _content_size((size[0], size[1]), frame_side)
    top, left = (frame_side - height) // 2, (frame_side - width) // 2
    frame = np.zeros((len(masks), frame_side, frame_side), bool)
    resized = masks[:, _nearest(size[0], height)[:, None], _nearest(size[1], width)]
    frame[:, top : top + height, left : left + width] = resized
    return frame


def stack(masks: Mapping[int, Mask], categories: Sequence[int]) -> Masks:
    """(K, H, W) masks of these categories, in their order; (0, 0, 0) without categories."""
    if not categories:
        return np.zeros((0, 0, 0), bool)
    # Decoded COCO masks are stored column by column: stacking the transposes copies them contiguously.
    return np.stack([masks[category].T for category in categories]).transpose(0, 2, 1)


def _official_batches(count: int, options: OfficialOptions) -> Iterator[list[int]]:
    """Positions of the images in each batch: dealt out to ranks in turn, the first ones repeated to even them out."""
    total = math.ceil(count / options.world_size) * options.world_size
    ranks = range(options.world_size) if options.rank == "all" else (options.rank,)
    for rank in ranks:
        shard = [position % count for position in range(rank, total, options.world_size)]
        for start in range(0, len(shard), options.batch_size):
            yield shard[start : start + options.batch_size]


def _scores_of_other_image(image: OfficialImage, prediction: Segmentation, frame_side: int) -> tuple[Values, Values]:
    """Score an image with the masks of another one, which may have another size.

    Which categories count as predicted is read from the image's own labels; a category that the other image lacks
    has an empty mask.
    """
    truth, other = image.truth.category_masks(), prediction.category_masks()
    matched = sorted(truth.keys() & set(image.prediction.labels.tolist()))
    if not matched:
        return np.zeros(len(truth)), np.zeros(len(truth))
    nothing = np.zeros(prediction.size, bool)
    framed_truth = to_frame(stack(truth, matched), frame_side)
    framed_other = to_frame(
        stack({category: other.get(category, nothing) for category in matched}, matched), frame_side
    )
    iou, accuracy = rowwise_scores(framed_truth, framed_other, frame_side)
    missed = len(truth) - len(matched)
    return np.pad(iou, (0, missed)), np.pad(accuracy, (0, missed))


def _row_counts(truth: Masks, prediction: Masks, columns: NDArray[np.float32]) -> tuple[Values, Values]:
    """(K, H) pixels of each row in both and in either of (K, H, W) masks, columns weighted by (W,) counts."""
    # float32 sums are exact below 2 ** 24 pixels a row, and run as matrix products.
    common = (truth & prediction).astype(np.float32) @ columns
    union = (truth | prediction).astype(np.float32) @ columns
    return common.astype(np.float64), union.astype(np.float64)


def _fraction(common: Values, union: Values) -> Values:
    """IoU, 1 where there is nothing to find and nothing found."""
    return np.divide(common, union, out=np.ones_like(union), where=union > 0)


def _content_size(size: tuple[int, int], frame_side: int) -> tuple[int, int]:
    """(height, width) with the longest side resized to S, rounded half up."""
    scale = frame_side / max(size)
    return max(1, int(size[0] * scale + 0.5)), max(1, int(size[1] * scale + 0.5))


def _nearest(source: int, target: int) -> NDArray[np.intp]:
    """(target,) source pixel under the centre of each target pixel."""
    return (2 * np.arange(target) + 1) * source // (2 * target)
