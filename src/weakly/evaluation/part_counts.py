"""Pixel counts of label maps, and the figures read off them (spec partclipseg sections 6.2, 6.4 and 6.7).

Labels are int64: category 0..C-1, C for background, and in a truth ``C + 1`` for void.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from weakly.evaluation.boundary import inner_bands

SHORTEST, LONGEST = 800, 1333
"""Sides in pixels that the released code resizes labels to: the shorter one, unless the longer one would pass."""

SIZES: Mapping[str, int] = {"small": 32**2, "medium": 96**2}
"""COCO's areas in pixels below which a region is small or medium; others are large."""

Counts = NDArray[np.int64]
Values = NDArray[np.float64]


def resized_and_back(labels: NDArray[Any], shortest: int = SHORTEST, longest: int = LONGEST) -> NDArray[Any]:
    """(H, W) labels after a resizing to ``shortest`` and back, each to the nearest pixel towards the origin."""
    scale = min(shortest / min(labels.shape), longest / max(labels.shape))
    height, width = labels.shape
    return np.asarray(labels[_there_and_back(height, scale)[:, None], _there_and_back(width, scale)])


def _there_and_back(side: int, scale: float) -> Counts:
    """(side,) the row or column that each one is taken from."""
    between = int(side * scale + 0.5)
    return np.arange(side) * between // side * side // between


def label_pairs(true: NDArray[np.int64], predicted: NDArray[np.int64], background: int) -> Counts:
    """(C + 1, C + 1) pixels of every pair of labels; those with a true label above C are left out."""
    square, counted = background + 1, true <= background
    pairs = true[counted] * square + predicted[counted]
    return np.bincount(pairs, minlength=square * square).reshape(square, square)


def band_pixels(true: NDArray[np.int64], predicted: NDArray[np.int64], width: int, background: int) -> Counts:
    """(3, C) pixels of each class's inner band: in truth and prediction, in the truth, in the prediction."""
    bands = inner_bands(true, width), inner_bands(predicted, width)
    chosen = (true[bands[0] & bands[1] & (true == predicted)], true[bands[0]], predicted[bands[1]])
    return np.stack([np.bincount(labels, minlength=background + 1)[:background] for labels in chosen])


def pixels_by_size(true: NDArray[np.int64], predicted: NDArray[np.int64], background: int) -> Counts:
    """(2, number of sizes, C) true pixels, and those found, each at the size of its class's region in this image."""
    pixels = np.stack(
        [np.bincount(true[chosen], minlength=background + 2)[:background] for chosen in (true >= 0, true == predicted)]
    )
    size = np.searchsorted([*SIZES.values()], pixels[0], side="right")
    return np.where(size == np.arange(len(SIZES) + 1)[:, None], pixels[:, None], 0)


def class_iou(counts: Counts, *, only_true: bool = True) -> Values:
    """(n,) IoU of the n rows of an (n, m >= n) matrix, truth in rows; NaN for classes without a true pixel.

    With ``only_true`` false, NaN only for classes that are in neither truth nor prediction.
    """
    classes = len(counts)
    true, predicted, both = counts.sum(1), counts[:, :classes].sum(0), counts.diagonal()
    iou = ratio(both, true + predicted - both)
    return np.where(true > 0, iou, np.nan) if only_true else iou


def class_recall(counts: Counts) -> Values:
    """(C,) share of the true pixels found; NaN for classes without any."""
    return ratio(counts.diagonal(), counts.sum(1))[:-1]


def harmonic_mean(seen: float, unseen: float) -> float:
    """2 s u / (s + u); NaN where one is undefined, 0 where both are 0."""
    total = seen + unseen
    return 2 * seen * unseen / total if total > 0 else total


def grouped_means(values: Values, seen: NDArray[np.bool_]) -> dict[str, float]:
    """``{"all", "seen", "unseen", "harmonic"}`` means of the defined ones of (n,) values."""
    means = {"all": defined_mean(values), "seen": defined_mean(values[seen]), "unseen": defined_mean(values[~seen])}
    return {**means, "harmonic": harmonic_mean(means["seen"], means["unseen"])}


def ratio(part: Counts, whole: Counts) -> Values:
    """``part / whole``, NaN where the whole is nothing."""
    return np.divide(part, whole, out=np.full(whole.shape, np.nan), where=whole > 0)


def defined_mean(values: Values) -> float:
    """Mean of the defined values; NaN where there is none."""
    defined = values[~np.isnan(values)]
    return float(defined.mean()) if defined.size else math.nan
