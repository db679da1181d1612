"""Every protocol equals a naive reading of its description, on random images (spec wps-sam section 4)."""

from __future__ import annotations

import itertools
from typing import Literal

import numpy as np
import pytest
from brute_force import (
    CATEGORIES,
    VOID,
    Case,
    binary_pairs,
    cases,
    categories,
    dataset_counts,
    dataset_figures,
    mean,
    padded,
    released_pairs,
    smp_scores,
    union,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from weakly.evaluation.confusion import ConfusionMatrix, Figures
from weakly.evaluation.pairs import OfficialOptions, rowwise_scores
from weakly.evaluation.protocols import Evaluator, Scores
from weakly.evaluation.semantic import SemanticEvaluator
from weakly.vocabulary import Vocabulary

SIDE = 60
"""A multiple of every longest side of the random images."""

VOCABULARY = Vocabulary.from_names("ABC")
WITH_BACKGROUND, PARTS = range(CATEGORIES + 1), range(CATEGORIES)


def score(images: list[Case], official: OfficialOptions | None = None) -> Scores:
    evaluator = Evaluator(VOCABULARY, SIDE, official or OfficialOptions())
    for image in images:
        evaluator.update(*image.segmentations())
    return evaluator.compute()


def numbers(figures: Figures) -> tuple[float, float]:
    return figures.miou, figures.macc


def exactly(expected: tuple[float, float]) -> object:
    return pytest.approx(expected, rel=1e-12, nan_ok=True)


@given(images=cases(4))
@settings(max_examples=60, deadline=None)
def test_dataset_protocols_and_everything_read_off_the_matrix(images: list[Case]) -> None:
    """`dataset41`: all classes in truth or prediction; `dataset40`: without background; accuracy is mean recall."""
    scores = score(images)
    assert numbers(scores.protocols["dataset41"]) == exactly(dataset_figures(images, WITH_BACKGROUND))
    assert numbers(scores.protocols["dataset40"]) == exactly(dataset_figures(images, PARTS))
    counts = dataset_counts(images)
    total = sum(counts.values())
    right = sum(n for (true, predicted), n in counts.items() if true == predicted)
    assert scores.pixel_accuracy == pytest.approx(right / total if total else np.nan, nan_ok=True)
    weighted = 0.0
    for row, c in zip(scores.per_class, WITH_BACKGROUND, strict=True):
        iou, recall = dataset_figures(images, [c])
        true = sum(n for (t, _), n in counts.items() if t == c)
        assert row["true_pixels"] == true
        assert row["predicted_pixels"] == sum(n for (_, p), n in counts.items() if p == c)
        assert (row["iou"] is None) == np.isnan(iou) and (row["acc"] is None) == np.isnan(recall)
        assert row["iou"] is None or row["iou"] == pytest.approx(iou)
        assert row["acc"] is None or row["acc"] == pytest.approx(recall)
        weighted += iou * true / total if true else 0.0
    assert scores.frequency_weighted_iou == pytest.approx(weighted if total else np.nan, nan_ok=True)


@given(images=cases(3))
@settings(max_examples=40, deadline=None)
def test_classes_of_the_truth_alone(images: list[Case]) -> None:
    """`semantic`: a class that is only falsely predicted costs nothing; in `dataset41` it is a 0."""
    present = sorted({true for true, _ in dataset_counts(images)})
    evaluator = SemanticEvaluator(VOCABULARY)
    for image in images:
        evaluator.update(*image.segmentations())
    protocols = evaluator.compute().protocols
    assert numbers(protocols["semantic"]) == exactly(dataset_figures(images, present))
    assert numbers(protocols["dataset41"]) == exactly(dataset_figures(images, WITH_BACKGROUND))


@given(images=cases(4), seed=st.integers(0, 10**6))
@settings(max_examples=30, deadline=None)
def test_what_is_predicted_on_void_changes_nothing(images: list[Case], seed: int) -> None:
    generator = np.random.default_rng(seed)
    one, other = ConfusionMatrix(CATEGORIES), ConfusionMatrix(CATEGORIES)
    for image in images:
        elsewhere = generator.integers(0, 256, image.size).astype(np.uint8)
        one.update(image.true_map, image.predicted_map)
        other.update(image.true_map, np.where(image.true_map == VOID, elsewhere, image.predicted_map))
    assert np.array_equal(one.counts, other.counts)
    assert one.counts.sum() == sum((image.true_map != VOID).sum() for image in images)


@given(images=cases(5))
@settings(max_examples=60, deadline=None)
def test_pair_binary(images: list[Case]) -> None:
    """Pairs of an image and a true category with a pixel: missed ones are 0, null images miss all of theirs."""
    scores = score(images)
    pairs = [pair for image in images for pair in binary_pairs(image)]
    expected = mean([iou for iou, _ in pairs]), mean([right for _, right in pairs])
    assert numbers(scores.protocols["pair_binary"]) == exactly(expected)
    assert scores.matched + scores.missed == len(pairs)
    drawn, predicted, empty = [], [], 0
    for image in images:
        drawn.append({c for c in categories(image.truth) if union(image.truth, c, image.size).any()})
        predicted.append({c for c in categories(image.queries) if union(image.queries, c, image.size).any()})
        empty += len(categories(image.truth)) - len(drawn[-1])
    assert scores.matched == sum(len(d & p) for d, p in zip(drawn, predicted, strict=True))
    stated = [{*categories(image.truth)} for image in images]
    assert scores.false_positive == sum(len(p - s) for p, s in zip(predicted, stated, strict=True))
    assert scores.empty_truth == empty
    assert scores.null_images == sum(not p for p in predicted)


@given(images=cases(1), side=st.sampled_from([30, 60]))
@settings(max_examples=60, deadline=None)
def test_a_row_wise_score_is_that_of_the_released_call(images: list[Case], side: int) -> None:
    """Parity check 12 through the whole frame, resized and padded."""
    (image,) = images
    for true, predicted in itertools.product(PARTS, repeat=2):
        masks = union(image.truth, true, image.size), union(image.queries, predicted, image.size)
        iou, accuracy = rowwise_scores(masks[0][None], masks[1][None], side)
        expected = smp_scores(*(padded(mask, side) for mask in masks))
        assert (iou[0], accuracy[0]) == pytest.approx(expected, abs=1e-6)


@given(
    images=cases(12),
    batch_size=st.sampled_from([1, 2, 4, 6]),
    world_size=st.sampled_from([1, 2, 5]),
    which=st.sampled_from(["first", "last", "all"]),
)
@settings(max_examples=60, deadline=None)
def test_official_rowwise_is_the_released_loop(
    images: list[Case], batch_size: int, world_size: int, which: Literal["first", "last", "all"]
) -> None:
    """Null images, mis-zipped lists, shards that repeat images, unannotated images: all of sections 4.1 to 4.3."""
    rank: int | Literal["all"] = {"first": 0, "last": world_size - 1}.get(which, "all")
    scores = score(images, OfficialOptions(batch_size, world_size, rank))
    ranks = range(world_size) if rank == "all" else [rank]
    annotated = any(image.truth for image in images)
    pairs = [pair for r in ranks if annotated for pair in released_pairs(images, SIDE, batch_size, world_size, r)]
    assert scores.official_pairs == len(pairs)
    expected = mean([iou for iou, _ in pairs]), mean([right for _, right in pairs])
    assert numbers(scores.protocols["official_rowwise"]) == pytest.approx(expected, abs=1e-6, nan_ok=True)


@given(nulls=st.lists(st.booleans(), min_size=1, max_size=6), batch_size=st.integers(1, 4))
@settings(max_examples=60, deadline=None)
def test_which_image_is_scored_with_whose_masks(nulls: list[bool], batch_size: int) -> None:
    """Section 4.3's list of pairs, for every pattern of null images: told apart by the rows each image predicts."""
    count = len(nulls)
    side = 2 * count
    truth, images = np.ones((side, side), bool), []
    for position, null in enumerate(nulls):
        rows = np.zeros((side, side), bool)
        rows[: position + 1] = True  # an IoU of (position + 1) / side names the image whose masks these are
        background = np.full((side, side), CATEGORIES, np.uint8)
        queries = [] if null else [(0, rows)]
        images.append(Case((side, side), [(0, truth)], queries, np.where(truth, 0, background), background))
    evaluator = Evaluator(VOCABULARY, side, OfficialOptions(batch_size, 1))
    for image in images:
        evaluator.update(*image.segmentations())
    expected = []
    for start in range(0, count, batch_size):
        batch = range(start, min(start + batch_size, count))
        for scored, source in zip(batch, [i for i in batch if not nulls[i]], strict=False):
            expected.append(0.0 if nulls[scored] else (source + 1) / side)
    scores = evaluator.compute()
    assert scores.official_pairs == len(expected)
    assert scores.protocols["official_rowwise"].miou == pytest.approx(mean(expected), nan_ok=True)
    assert scores.protocols["pair_binary"].miou == pytest.approx(
        mean([0.0 if null else (i + 1) / side for i, null in enumerate(nulls)])
    )


@pytest.mark.parametrize(
    ("nulls", "pairs"),
    [
        ((1, 0), [(0, 1)]),  # image 1 is dropped, image 0 scores 0 with image 1's masks
        ((0, 1), [(0, 0)]),
        ((1, 1), []),
        ((0, 1, 0, 0), [(0, 0), (1, 2), (2, 3)]),
    ],
)
def test_the_four_batch_patterns_of_the_description(nulls: tuple[int, ...], pairs: list[tuple[int, int]]) -> None:
    """Parity check 14: image i is scored with the predictions of image j."""
    size = (4, 4)
    background = np.full(size, CATEGORIES, np.uint8)
    images, right = [], []
    for position, null in enumerate(nulls):
        mask = np.zeros(size, bool)
        mask[:, : position + 1] = True
        right.append((position + 1) / 4)
        images.append(Case(size, [(0, np.ones(size, bool))], [] if null else [(0, mask)], background * 0, background))
    scores = score(images, OfficialOptions(batch_size=len(nulls), world_size=1))
    expected = [0.0 if nulls[i] else right[j] for i, j in pairs]
    assert scores.official_pairs == len(pairs)
    assert scores.protocols["official_rowwise"].miou == pytest.approx(mean(expected), nan_ok=True)
