"""The confusion matrix: exact, streaming, mergeable, and void is never counted."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from worked_example import BACKGROUND, PREDICTIONS, TRUTHS

from weakly.errors import UserError
from weakly.evaluation.confusion import VOID, ConfusionMatrix


@pytest.fixture
def worked() -> ConfusionMatrix:
    matrix = ConfusionMatrix(3)
    for truth, prediction in zip(TRUTHS, PREDICTIONS, strict=True):
        matrix.update(truth.to_label_map(BACKGROUND), prediction.to_label_map(BACKGROUND))
    return matrix


def random_maps(seed: int, images: int, categories: int) -> tuple[np.ndarray, np.ndarray]:
    generator = np.random.default_rng(seed)
    truth = generator.integers(0, categories + 1, (images, 9, 7)).astype(np.uint8)
    prediction = np.where(
        generator.random(truth.shape) < 0.5, truth, generator.integers(0, categories + 1, truth.shape)
    )
    truth[generator.random(truth.shape) < 0.1] = VOID
    return truth, prediction.astype(np.uint8)


def matrix_of(truth: np.ndarray, prediction: np.ndarray, categories: int) -> ConfusionMatrix:
    matrix = ConfusionMatrix(categories)
    matrix.update(truth, prediction)
    return matrix


def test_worked_example_per_class(worked: ConfusionMatrix) -> None:
    assert worked.iou() == pytest.approx([20 / 36, 0, 0, 68 / 108], abs=1e-4)
    assert worked.accuracy() == pytest.approx([0.625, 0, math.nan, 0.85], abs=1e-4, nan_ok=True)


def test_worked_example_with_background(worked: ConfusionMatrix) -> None:
    assert worked.dataset41().miou == pytest.approx(0.2963, abs=1e-4)
    assert worked.dataset41().macc == pytest.approx(0.4917, abs=1e-4)


def test_worked_example_parts_only(worked: ConfusionMatrix) -> None:
    assert worked.dataset40().miou == pytest.approx(0.1852, abs=1e-4)
    assert worked.dataset40().macc == pytest.approx(0.3125, abs=1e-4)


def test_worked_example_classes_of_the_truth_alone(worked: ConfusionMatrix) -> None:
    assert worked.dataset_present().miou == pytest.approx(0.3951, abs=1e-4)
    assert worked.dataset_present().macc == pytest.approx(0.4917, abs=1e-4)


def test_worked_example_pixel_accuracy(worked: ConfusionMatrix) -> None:
    assert worked.pixel_accuracy() == pytest.approx(0.6875, abs=1e-4)


def test_frequency_weighted_iou_weighs_by_true_pixels(worked: ConfusionMatrix) -> None:
    # A 32 px, B 16 px, background 80 px of 128.
    assert worked.frequency_weighted_iou() == pytest.approx((32 * 20 / 36 + 80 * 68 / 108) / 128)


def test_per_class_rows_name_every_category_and_background(worked: ConfusionMatrix) -> None:
    rows = worked.per_class(("A", "B", "C"))
    assert [row["name"] for row in rows] == ["A", "B", "C", "background"]
    assert rows[2] == {"name": "C", "iou": 0.0, "acc": None, "true_pixels": 0, "predicted_pixels": 8}


@given(seed=st.integers(0, 10**6), categories=st.integers(1, 6))
@settings(max_examples=25, deadline=None)
def test_equals_sets_of_pixels_counted_one_by_one(seed: int, categories: int) -> None:
    truth, prediction = random_maps(seed, 2, categories)
    matrix = matrix_of(truth, prediction, categories)
    seen = truth != VOID
    for category in range(categories + 1):
        true, predicted = (truth == category) & seen, (prediction == category) & seen
        union = (true | predicted).sum()
        expected = (true & predicted).sum() / union if union else math.nan
        assert matrix.iou()[category] == pytest.approx(expected, nan_ok=True)
        recall = (true & predicted).sum() / true.sum() if true.any() else math.nan
        assert matrix.accuracy()[category] == pytest.approx(recall, nan_ok=True)
    assert matrix.pixel_accuracy() == pytest.approx((truth == prediction)[seen].mean())


@given(seed=st.integers(0, 10**6), order=st.permutations(range(8)), batch=st.integers(1, 8), ranks=st.integers(1, 5))
@settings(max_examples=25, deadline=None)
def test_independent_of_batch_size_order_and_ranks(seed: int, order: list[int], batch: int, ranks: int) -> None:
    truth, prediction = random_maps(seed, 8, 4)
    one_shot = matrix_of(truth, prediction, 4)
    shards = [ConfusionMatrix(4) for _ in range(ranks)]
    for step, start in enumerate(range(0, 8, batch)):
        chosen = order[start : start + batch]
        shards[step % ranks].update(truth[chosen], prediction[chosen])
    merged = sum(shards[1:], shards[0])
    assert np.array_equal(merged.counts, one_shot.counts)


def test_perfect_prediction_scores_one() -> None:
    truth, _ = random_maps(0, 3, 4)
    matrix = matrix_of(truth, np.where(truth == VOID, 0, truth), 4)
    assert matrix.dataset41().to_dict() == {"miou": 1.0, "macc": 1.0}


def test_void_is_never_counted_whatever_is_predicted_there() -> None:
    truth = np.full((4, 4), VOID, np.uint8)
    truth[0] = 0
    guess = np.zeros((4, 4), np.uint8)
    other = guess.copy()
    other[1:] = 200  # Even a label outside the vocabulary.
    assert matrix_of(truth, guess, 2).counts.sum() == 4
    assert np.array_equal(matrix_of(truth, guess, 2).counts, matrix_of(truth, other, 2).counts)


def test_nothing_counted_is_undefined_not_zero() -> None:
    matrix = ConfusionMatrix(2)
    matrix.update(np.full((2, 2), VOID), np.zeros((2, 2), int))
    assert matrix.dataset41().to_dict() == {}
    assert math.isnan(matrix.pixel_accuracy())
    assert math.isnan(matrix.frequency_weighted_iou())


@pytest.mark.parametrize(("truth", "prediction", "message"), [(3, 0, "truth label 3"), (0, -1, "prediction label -1")])
def test_labels_outside_the_vocabulary_are_refused(truth: int, prediction: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        matrix_of(np.full((2, 2), truth), np.full((2, 2), prediction), 2)


def test_maps_and_matrices_of_different_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match="shape"):
        matrix_of(np.zeros((2, 2), int), np.zeros((2, 3), int), 2)
    with pytest.raises(ValueError, match="do not add up"):
        ConfusionMatrix(2) + ConfusionMatrix(3)
    with pytest.raises(ValueError, match="counts of shape"):
        ConfusionMatrix(2, np.zeros((2, 2), np.int64))


def test_so_many_categories_that_void_would_be_one_are_refused() -> None:
    assert ConfusionMatrix(254).counts.shape == (255, 255)
    with pytest.raises(UserError, match="at most 254"):
        ConfusionMatrix(255)
