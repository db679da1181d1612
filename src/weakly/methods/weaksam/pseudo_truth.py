"""Boxes to retrain on, chosen among detections of the tagged categories (spec weaksam, section 4).

Symbols: n detections of one image, C categories. Every choice is made within one category of one image, by comparing
all its detections at once. Boxes are ``x0, y0, x1, y1``.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from weakly.errors import UserError
from weakly.files import write_json
from weakly.labels import Sample
from weakly.methods.weaksam.detectors import Detections
from weakly.methods.weaksam.wsod_inference import to_xywh
from weakly.vocabulary import Vocabulary

RANGE_EPS = 1e-8
"""Added to the range of scores by the released code."""

INSIDE_EPS = 1e-6
"""Added to the share of a box inside another by the released code."""

Bools = NDArray[np.bool_]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class PseudoTruthSettings:
    """Which detections become truth.

    Attributes:
        mode: ``adaptive``: the published idea made robust, the default; ``published``: Algorithm 2 of the paper;
            ``released``: what the code does, order of the detections included; ``top1``: the best of every tag;
            ``threshold``: all above a fixed score.
        norm: of scores within a category, for ``adaptive``: ``minmax`` to [0, 1]; ``range`` divides by the range alone.
        tau_score: normalised score from which on a detection is kept.
        tau_inside: share of a box inside another of its category from which on it goes.
        threshold: of ``threshold``.
    """

    mode: Literal["adaptive", "published", "released", "top1", "threshold"] = "adaptive"
    norm: Literal["minmax", "range"] = "minmax"
    tau_score: float = 0.3
    tau_inside: float = 0.85
    threshold: float = 0.5

    def __post_init__(self) -> None:
        for name in ("tau_score", "threshold"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"pseudo_truth.{name} is {getattr(self, name)}; give a number in [0, 1].")
        if not 0 < self.tau_inside <= 1:
            raise UserError(f"pseudo_truth.tau_inside is {self.tau_inside}; give a fraction above 0 and at most 1.")


class PseudoTruth(NamedTuple):
    """The boxes of one image that count as truth.

    Attributes:
        boxes: (m, 4) float32.
        labels: (m,) int64, ascending.
        scores: (m,) float32, normalised as the mode has it; within a category descending (``released``: as listed).
        confidence: (m,) float32, what the detector said: normalised scores rank nothing across images, since the best
            box of every tag has the same.
        missing: (t,) int64 tags of the image that no box stands for.
    """

    boxes: NDArray[np.float32]
    labels: NDArray[np.int64]
    scores: NDArray[np.float32]
    confidence: NDArray[np.float32]
    missing: NDArray[np.int64]


class Choice(NamedTuple):
    """Which of n detections are kept, and the scores they are kept with."""

    kept: Bools
    scores: Floats


def pseudo_truth(found: Detections, tags: NDArray[np.bool_], settings: PseudoTruthSettings) -> PseudoTruth:
    """The detections of an image that count as truth.

    Args:
        found: of any category; boxes without area are no truth.
        tags: (C,) bool.
        settings: how they are chosen.
    """
    usable = tags[found.labels] & (found.boxes[:, 2:] > found.boxes[:, :2]).all(1)
    boxes, labels = found.boxes[usable], found.labels[usable]
    scores = found.scores[usable].astype(np.float64)
    kept, values = _choose(boxes.astype(np.float64), labels, scores, settings)
    boxes, labels, values, said = boxes[kept], labels[kept], values[kept], scores[kept]
    # Ties in score are ordered by the boxes, so that the order of the detections leaves no trace.
    keys = (labels,) if settings.mode == "released" else (*boxes.T[::-1], -values, labels)
    order = np.lexsort(keys)
    missing = np.setdiff1d(np.flatnonzero(tags), labels)
    chosen = (values[order].astype(np.float32), said[order].astype(np.float32))
    return PseudoTruth(boxes[order], labels[order], *chosen, missing)


def adaptive_choice(
    boxes: Floats,
    labels: NDArray[np.int64],
    scores: Floats,
    *,
    tau_score: float,
    tau_inside: float,
    norm: Literal["minmax", "range"] = "minmax",
) -> Choice:
    """The robust form (section 4.3); it depends on no order, and every category keeps a box.

    Boxes are visited by rising area, of equal ones the lower score first; one goes if most of it lies in a box that is
    still there. That box is always a later one, which lets all be compared at once: an earlier one, of no more area,
    would lie in it by at least the same share and had gone at its own visit. The last of a category always stays.

    Args:
        boxes: (n, 4).
        labels: (n,).
        scores: (n,).
        tau_score: of normalised scores; the best detection of a category is kept whatever it says.
        tau_inside: share of a box inside another.
        norm: of the scores.
    """
    lowest, highest = _extremes(labels, scores)
    span = highest - lowest
    above = scores - lowest if norm == "minmax" else scores
    values = np.where(span > 0, above / np.where(span > 0, span, 1), 1)
    chosen = (values >= tau_score) | (scores == highest)
    area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    visit = np.empty(len(boxes), np.int64)
    visit[np.lexsort((*boxes.T, scores, area))] = np.arange(len(boxes))
    inside = shares_inside(boxes) >= tau_inside
    rivals = (labels[:, None] == labels) & chosen & (visit[:, None] < visit)
    return Choice(chosen & ~(inside & rivals).any(1), values)


def published_choice(
    boxes: Floats, labels: NDArray[np.int64], scores: Floats, *, tau_score: float, tau_inside: float
) -> Choice:
    """Algorithm 2: scores above ``tau_score`` after min-max, then no box mostly inside any other of those.

    The worst box of a category goes, whatever its score; equal scores (0 / 0 there) are ones. Two boxes mostly inside
    each other both go.
    """
    lowest, highest = _extremes(labels, scores)
    span = highest - lowest
    values = np.where(span > 0, (scores - lowest) / np.where(span > 0, span, 1), 1)
    kept = values > tau_score
    inside = shares_inside(boxes) >= tau_inside
    rivals = (labels[:, None] == labels) & kept & ~np.eye(len(boxes), dtype=bool)
    return Choice(kept & ~(inside & rivals).any(1), values)


def released_choice(
    boxes: Floats, labels: NDArray[np.int64], scores: Floats, *, tau_score: float, tau_inside: float
) -> Choice:
    """The released code (section 4.2): divides by the range alone, and keeps what is *listed* first whatever its score.

    Values may exceed 1. Two boxes mostly inside each other both go, so a category may vanish.
    """
    lowest, highest = _extremes(labels, scores)
    values = scores / (highest - lowest + RANGE_EPS)
    first = np.zeros(len(labels), bool)
    first[np.unique(labels, return_index=True)[1]] = True
    kept = first | (values >= tau_score)
    inside = shares_inside(boxes) + INSIDE_EPS >= tau_inside
    rivals = (labels[:, None] == labels) & kept & ~np.eye(len(boxes), dtype=bool)
    return Choice(kept & ~(inside & rivals).any(1), values)


def best_choice(boxes: Floats, labels: NDArray[np.int64], scores: Floats) -> Choice:
    """The best detection of every category; of equal ones that with the lowest coordinates."""
    order = np.lexsort((*boxes.T[::-1], -scores))
    kept = np.zeros(len(labels), bool)
    kept[order[np.unique(labels[order], return_index=True)[1]]] = True
    return Choice(kept, scores)


def shares_inside(boxes: Floats) -> Floats:
    """(n, n): the share of box i that lies inside box j."""
    corner, end = np.maximum(boxes[:, None, :2], boxes[:, :2]), np.minimum(boxes[:, None, 2:], boxes[:, 2:])
    common = (end - corner).clip(0).prod(-1)
    area = (boxes[:, 2:] - boxes[:, :2]).prod(-1)
    return common / area[:, None]


def write_pseudo_truth(
    path: Path, truths: Sequence[PseudoTruth], samples: Sequence[Sample], vocabulary: Vocabulary
) -> None:
    """Write the pseudo truth of n images as a COCO document with scores, atomically.

    Args:
        path: the file.
        truths: n images'.
        samples: n images; file names are written, not paths.
        vocabulary: turns category indices into the data set's ids.
    """
    annotations: list[dict[str, Any]] = []
    for sample, truth in zip(samples, truths, strict=True):
        for box, label, score in zip(truth.boxes, truth.labels, truth.scores.tolist(), strict=True):
            xywh = to_xywh(box)
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": sample.image_id,
                    "category_id": vocabulary.source_id(int(label)),
                    "bbox": xywh,
                    "area": xywh[2] * xywh[3],
                    "iscrowd": 0,
                    "score": score,
                }
            )
    images = [
        {"id": sample.image_id, "file_name": sample.path.name, "height": sample.size[0], "width": sample.size[1]}
        for sample in samples
    ]
    categories = [{"id": vocabulary.source_id(index), "name": name} for index, name in enumerate(vocabulary.names)]
    write_json(path, {"images": images, "annotations": annotations, "categories": categories}, indent=None)


def _choose(boxes: Floats, labels: NDArray[np.int64], scores: Floats, settings: PseudoTruthSettings) -> Choice:
    tau_score, tau_inside = settings.tau_score, settings.tau_inside
    if settings.mode == "adaptive":
        return adaptive_choice(boxes, labels, scores, tau_score=tau_score, tau_inside=tau_inside, norm=settings.norm)
    if settings.mode == "published":
        return published_choice(boxes, labels, scores, tau_score=tau_score, tau_inside=tau_inside)
    if settings.mode == "released":
        return released_choice(boxes, labels, scores, tau_score=tau_score, tau_inside=tau_inside)
    if settings.mode == "top1":
        return best_choice(boxes, labels, scores)
    return Choice(scores >= settings.threshold, scores)


def _extremes(labels: NDArray[np.int64], scores: Floats) -> tuple[Floats, Floats]:
    """(n,) lowest and (n,) highest score of every detection's category."""
    _, group = np.unique(labels, return_inverse=True)
    lowest, highest = np.full(len(labels), np.inf), np.full(len(labels), -np.inf)
    np.minimum.at(lowest, group, scores)
    np.maximum.at(highest, group, scores)
    return lowest[group], highest[group]
