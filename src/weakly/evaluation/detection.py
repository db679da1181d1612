"""How detections are scored: VOC's average precision and CorLoc (weaksam, section 7).

Everything here goes through a stream of (truth, prediction), one pair of :class:`Segmentation` per image, and scores
their ``boxes``. All figures are fractions; NaN where nothing could be averaged.

A true instance whose provenance says ``{"difficult": True}`` counts neither as found nor as missed, and what finds it
is no error.

VOC's tools count the pixels of corners that are both inside the box, hence their ``+ 1``. The boxes of this package
end one past their last pixel: the plain IoU of (0, 0, 10, 10) is what those tools compute for (0, 0, 9, 9). Published
detectors differ in the details; wetectron, for one, adds 1 twice, which is slightly lenient.

Symbols: D predictions and G true instances of an image, T thresholds, C categories.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from weakly.segmentation import Segmentation
from weakly.vocabulary import Vocabulary

Pairs = Iterable[tuple[Segmentation, Segmentation]]
"""Truth and prediction of one image after another."""

Interpolation = Literal["11point", "area"]


@dataclass(frozen=True)
class DetectionScores:
    """What was found.

    Attributes:
        figures: fractions by name, e.g. ``{"ap50": 0.4}``.
        per_class: one row per category: ``name``, the same figures, ``truths`` and ``predictions``.
        images: images scored.
    """

    figures: Mapping[str, float]
    per_class: list[dict[str, Any]]
    images: int


@dataclass(frozen=True, eq=False)
class Matched:
    """The predictions of a split after matching.

    Attributes:
        scores: (N,).
        labels: (N,) categories.
        hits: (T, N) bool: right at each threshold.
        counted: (T, N) bool: right or wrong; False where a difficult instance was found.
        truths: (C,) instances that are not difficult.
        images: images scored.
    """

    scores: NDArray[np.float32]
    labels: NDArray[np.int64]
    hits: NDArray[np.bool_]
    counted: NDArray[np.bool_]
    truths: NDArray[np.int64]
    images: int


def voc_detection_ap(
    pairs: Pairs, vocabulary: Vocabulary, *, interpolation: Interpolation = "11point", iou: float = 0.5
) -> DetectionScores:
    """VOC's average precision of boxes: ``11point`` for VOC 2007, ``area`` for later years.

    Every prediction, best score first, goes to the true box of its category that it overlaps most. It is right if the
    IoU is at least ``iou`` and no better prediction was right about the same box.

    Args:
        pairs: truth and prediction of every image.
        vocabulary: C categories.
        interpolation: how precision is averaged over recall.
        iou: threshold.

    Returns:
        ``ap50`` (named for the threshold): mean over the categories that have a true box that is not difficult.
    """
    ious = ((truth, prediction, box_iou(prediction.boxes, truth.boxes)) for truth, prediction in pairs)
    return voc_scores(match_voc(ious, len(vocabulary), (iou,)), vocabulary, (iou,), interpolation)


def corloc(pairs: Pairs, vocabulary: Vocabulary) -> DetectionScores:
    """Correct localisation, on images whose tags are known.

    Per category, the fraction of the images that contain it whose best-scored box of that category overlaps a true box
    of it, a difficult one too, with an IoU above 0.5. Images without it never count; a category without a prediction
    in an image that contains it is wrong.

    Returns:
        ``corloc``: mean over the categories that are in any image.
    """
    hits, counts = np.zeros(len(vocabulary), np.int64), np.zeros(len(vocabulary), np.int64)
    predictions = np.zeros(len(vocabulary), np.int64)
    images = 0
    for truth, prediction in pairs:
        images += 1
        present = np.unique(truth.labels)
        counts[present] += 1
        predictions += np.bincount(prediction.labels, minlength=len(vocabulary))
        order = np.argsort(-prediction.scores, kind="stable")
        labels, first = np.unique(prediction.labels[order], return_index=True)
        same = labels[:, None] == truth.labels[None]
        overlaps = np.where(same, box_iou(prediction.boxes[order[first]], truth.boxes), 0)
        hits[labels[(overlaps > 0.5).any(1)]] += 1
    found = hits / np.where(counts, counts, np.nan)
    rows = [
        {"name": name, "corloc": float(found[i]), "images": int(counts[i]), "predictions": int(predictions[i])}
        for i, name in enumerate(vocabulary.names)
    ]
    return DetectionScores({"corloc": mean(found)}, rows, images)


def box_iou(first: NDArray[np.floating], second: NDArray[np.floating]) -> NDArray[np.float64]:
    """(D, G) IoU of (D, 4) and (G, 4) boxes; 0 where both have no area."""
    a, b = first.astype(np.float64), second.astype(np.float64)
    low, high = np.maximum(a[:, None, :2], b[None, :, :2]), np.minimum(a[:, None, 2:], b[None, :, 2:])
    shared = np.clip(high - low, 0, None).prod(2)
    areas = (np.clip(boxes[:, 2:] - boxes[:, :2], 0, None).prod(1) for boxes in (a, b))
    union = next(areas)[:, None] + next(areas)[None] - shared
    return np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)


def match_voc(
    images: Iterable[tuple[Segmentation, Segmentation, NDArray[np.float64]]], classes: int, thresholds: Sequence[float]
) -> Matched:
    """VOC's matching of a whole split.

    Args:
        images: truth, prediction and their (D, G) overlaps, image after image.
        classes: C.
        thresholds: T.
    """
    scores, labels = [np.zeros(0, np.float32)], [np.zeros(0, np.int64)]
    hits, counted = ([np.zeros((len(thresholds), 0), bool)] for _ in range(2))
    number = 0
    truths = np.zeros(classes, np.int64)
    for truth, prediction, overlaps in images:
        difficult = difficult_of(truth)
        truths += np.bincount(truth.labels[~difficult], minlength=classes)
        same = prediction.labels[:, None] == truth.labels[None]
        right, used = match_image(np.where(same, overlaps, -1.0), prediction.scores, difficult, thresholds)
        scores.append(prediction.scores)
        labels.append(prediction.labels)
        hits.append(right)
        counted.append(used)
        number += 1
    joined = (np.concatenate(scores), np.concatenate(labels), np.concatenate(hits, 1), np.concatenate(counted, 1))
    return Matched(*joined, truths, number)


def match_image(
    overlaps: NDArray[np.float64],
    scores: NDArray[np.floating],
    difficult: NDArray[np.bool_],
    thresholds: Sequence[float],
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """VOC's matching of an image.

    Args:
        overlaps: (D, G) IoU; negative between categories.
        scores: (D,).
        difficult: (G,).
        thresholds: T.

    Returns:
        (T, D) right, and (T, D) right or wrong.
    """
    if not overlaps.size:
        return np.zeros((len(thresholds), len(scores)), bool), np.ones((len(thresholds), len(scores)), bool)
    best, highest = overlaps.argmax(1), overlaps.max(1)
    found = highest >= np.asarray(thresholds)[:, None]
    order = np.argsort(-scores, kind="stable")
    rank = np.empty(len(order), np.int64)
    rank[order] = np.arange(len(order))
    # The best-ranked prediction that found each true instance is the right one; the others repeat it.
    first = np.full((len(thresholds), overlaps.shape[1]), len(order))
    for row, hits in zip(first, found, strict=True):
        np.minimum.at(row, best[hits], rank[hits])
    return found & ~difficult[best] & (first[:, best] == rank), ~(found & difficult[best])


def voc_scores(
    matched: Matched, vocabulary: Vocabulary, thresholds: Sequence[float], interpolation: Interpolation
) -> DetectionScores:
    """Average precision of every category at every threshold, as ``ap25``, ``ap50`` ..."""
    order = np.argsort(-matched.scores, kind="stable")
    labels, hits, counted = matched.labels[order], matched.hits[:, order], matched.counted[:, order]
    figures: dict[str, NDArray[np.float64]] = {}
    for threshold, right, used in zip(thresholds, hits, counted, strict=True):
        figures[f"ap{round(100 * threshold)}"] = np.array(
            [
                average_precision(right[(labels == label) & used], int(truths), interpolation)
                for label, truths in enumerate(matched.truths)
            ]
        )
    predictions = np.bincount(labels, minlength=len(vocabulary))
    return DetectionScores(
        {name: mean(values) for name, values in figures.items()},
        class_table(vocabulary, figures, matched.truths, predictions),
        matched.images,
    )


def average_precision(hits: NDArray[np.bool_], truths: int, interpolation: Interpolation) -> float:
    """Average precision of predictions by descending score.

    Args:
        hits: (N,) right or wrong.
        truths: instances to be found.
        interpolation: ``11point``: mean over recalls 0, 0.1 ... 1 of the best precision at that recall or a higher
            one. ``area``: area under the precision that is made to fall with recall.

    Returns:
        A fraction; NaN if there is nothing to be found.
    """
    if truths == 0:
        return float("nan")
    right = np.cumsum(hits)
    recall, precision = right / truths, right / np.arange(1, len(hits) + 1)
    best = np.maximum.accumulate(precision[::-1])[::-1]
    if interpolation == "11point":
        at = np.searchsorted(recall, np.arange(11) / 10, side="left")
        return float(np.append(best, 0.0)[at].mean())
    return float((np.diff(recall, prepend=0.0) * best).sum())


def difficult_of(truth: Segmentation) -> NDArray[np.bool_]:
    """(G,) bool: which true instances are said to be difficult."""
    return np.array([bool(origin.get("difficult")) for origin in truth.provenance], bool)


def mean(values: NDArray[np.float64]) -> float:
    """Mean of what is no NaN; NaN if nothing is left."""
    defined = values[~np.isnan(values)]
    return float(defined.mean()) if len(defined) else float("nan")


def class_table(
    vocabulary: Vocabulary,
    figures: Mapping[str, NDArray[np.float64]],
    truths: NDArray[np.int64],
    predictions: NDArray[np.int64],
) -> list[dict[str, Any]]:
    """One row per category: its name, (C,) figures, true instances and predictions."""
    return [
        {
            "name": name,
            **{figure: float(values[i]) for figure, values in figures.items()},
            "truths": int(truths[i]),
            "predictions": int(predictions[i]),
        }
        for i, name in enumerate(vocabulary.names)
    ]
