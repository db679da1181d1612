"""The protocols once more, as slowly as their description reads (spec wps-sam section 4), to compare with.

Nothing here is shared with the package but the data: label maps are walked pixel by pixel, frames are built, ranks are
dealt by torch's own sampler and rows are scored by segmentation-models-pytorch, as in the released evaluator.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from hypothesis import strategies as st
from numpy.typing import NDArray
from segmentation_models_pytorch import metrics
from torch.utils.data import BatchSampler, DistributedSampler

from weakly.segmentation import Segmentation

VOID = 255
CATEGORIES = 3
Query = tuple[int, NDArray[np.bool_]]
Pairs = list[tuple[float, float]]


@dataclass(frozen=True)
class Case:
    """One image: (label, mask) of its true parts and kept queries, and both label maps."""

    size: tuple[int, int]
    truth: list[Query]
    queries: list[Query]
    true_map: NDArray[np.uint8]
    predicted_map: NDArray[np.uint8]

    def segmentations(self) -> tuple[Segmentation, Segmentation]:
        return (
            _segmentation(self.truth, self.true_map, self.size),
            _segmentation(self.queries, self.predicted_map, self.size),
        )


def _segmentation(queries: list[Query], label_map: NDArray[np.uint8], size: tuple[int, int]) -> Segmentation:
    if not queries:
        return Segmentation(size, label_map=label_map)
    masks = np.stack([mask for _, mask in queries])
    return Segmentation.from_masks(masks, [label for label, _ in queries], label_map=label_map)


@st.composite
def cases(draw: st.DrawFn, count: int) -> list[Case]:
    """Images of several sizes: null ones, unannotated ones, empty masks, overlaps, void, random label maps."""
    generator = np.random.default_rng(draw(st.integers(0, 2**32)))
    return [_case(generator, draw(st.sampled_from([(4, 6), (6, 4), (5, 5), (2, 6)]))) for _ in range(count)]


def _case(generator: np.random.Generator, size: tuple[int, int]) -> Case:
    truth, queries = (_queries(generator, size) for _ in range(2))
    true_map, predicted_map = (generator.integers(0, CATEGORIES + 1, size).astype(np.uint8) for _ in range(2))
    predicted_map = np.where(generator.random(size) < 0.5, true_map, predicted_map)
    true_map[generator.random(size) < generator.choice([0, 0.3, 1], p=[0.5, 0.4, 0.1])] = VOID
    # Without masks the package takes those of the label map: keep the two of one opinion.
    true_map = true_map if truth else np.where(true_map == VOID, VOID, CATEGORIES).astype(np.uint8)
    predicted_map = predicted_map if queries else np.full(size, CATEGORIES, np.uint8)
    return Case(size, truth, queries, true_map, predicted_map)


def _queries(generator: np.random.Generator, size: tuple[int, int]) -> list[Query]:
    found = []
    for _ in range(generator.choice([0, 1, 2, 4])):
        mask = generator.random(size) < generator.choice([0, 0.3, 0.8])
        mask &= generator.random((size[0], 1)) < 0.7  # empty rows
        found.append((int(generator.integers(CATEGORIES)), mask))
    return found


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else float("nan")


def union(queries: list[Query], category: int, size: tuple[int, int]) -> NDArray[np.bool_]:
    found = np.zeros(size, bool)
    for label, mask in queries:
        if label == category:
            found |= mask
    return found


def categories(queries: list[Query]) -> list[int]:
    return sorted({label for label, _ in queries})


def dataset_counts(images: list[Case]) -> dict[tuple[int, int], int]:
    """{(true category, predicted category): pixels}; void pixels of the truth are not counted."""
    counts: dict[tuple[int, int], int] = {}
    for image in images:
        for y in range(image.size[0]):
            for x in range(image.size[1]):
                pair = int(image.true_map[y, x]), int(image.predicted_map[y, x])
                if pair[0] != VOID:
                    counts[pair] = counts.get(pair, 0) + 1
    return counts


def dataset_figures(images: list[Case], classes: Sequence[int]) -> tuple[float, float]:
    """Section 4.4: IoU = TP / (GT + Pred - TP) over classes with GT + Pred > 0; accuracy = TP / GT where GT > 0."""
    counts = dataset_counts(images)
    ious, recalls = [], []
    for c in classes:
        hits = counts.get((c, c), 0)
        true = sum(n for (t, _), n in counts.items() if t == c)
        predicted = sum(n for (_, p), n in counts.items() if p == c)
        if true + predicted > 0:
            ious.append(hits / (true + predicted - hits))
        if true > 0:
            recalls.append(hits / true)
    return mean(ious), mean(recalls)


def binary_pairs(image: Case) -> Pairs:
    """Section 4.6, `pair_binary`: every true category that has a pixel; missed ones (null images included) are 0."""
    pairs = []
    for category in categories(image.truth):
        true = union(image.truth, category, image.size)
        predicted = union(image.queries, category, image.size)
        if not true.any():
            continue
        right = iou = 0.0
        if predicted.any():
            both = sum(bool(t and p) for t, p in zip(true.flat, predicted.flat, strict=True))
            either = sum(bool(t or p) for t, p in zip(true.flat, predicted.flat, strict=True))
            right = sum(bool(t == p) for t, p in zip(true.flat, predicted.flat, strict=True)) / true.size
            iou = both / either
        pairs.append((iou, right))
    return pairs


def padded(mask: NDArray[np.bool_], side: int) -> NDArray[np.bool_]:
    """Section 1.1: longest side to ``side`` (a multiple of it, so that no resampling rule matters), then centred."""
    scale, remainder = divmod(side, max(mask.shape))
    assert remainder == 0
    large = mask.repeat(scale, 0).repeat(scale, 1)
    height, width = large.shape
    frame = np.zeros((side, side), bool)
    top, left = (side - height) // 2, (side - width) // 2
    frame[top : top + height, left : left + width] = large
    return frame


def smp_scores(true: NDArray[np.bool_], predicted: NDArray[np.bool_]) -> tuple[float, float]:
    """The released call: 2-D masks, threshold 0.5, ``micro-imagewise``."""
    output, target = (torch.from_numpy(mask.copy()).long() for mask in (predicted, true))
    stats = metrics.get_stats(output, target, mode="binary", threshold=0.5)
    found = (getattr(metrics, name)(*stats, reduction="micro-imagewise") for name in ("iou_score", "accuracy"))
    iou, accuracy = (float(value) for value in found)
    return iou, accuracy


def released_pairs(images: list[Case], side: int, batch_size: int, world_size: int, rank: int) -> Pairs:
    """Sections 4.1 to 4.3: what the released loop averages on one rank.

    Images without annotations are not in its data set. Predictions of images without a foreground query are not in
    its list of predictions, which is zipped with the list of images all the same.
    """
    annotated = [image for image in images if image.truth]
    sampler = DistributedSampler(annotated, num_replicas=world_size, rank=rank, shuffle=False)
    pairs = []
    for indices in BatchSampler(sampler, batch_size, drop_last=False):
        batch = [annotated[index] for index in indices]
        predictions = [image for image in batch if image.queries]
        for image, answer in zip(batch, predictions, strict=False):
            for category in categories(image.truth):
                if category not in categories(image.queries):
                    pairs.append((0.0, 0.0))
                    continue
                true = padded(union(image.truth, category, image.size), side)
                predicted = padded(union(answer.queries, category, answer.size), side)
                pairs.append(smp_scores(true, predicted))
    return pairs
