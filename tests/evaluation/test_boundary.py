"""Bands of Boundary IoU against distances counted out, and the label differences that were published in its place."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from weakly.evaluation.boundary import band_width, inner_bands, label_differences
from weakly.evaluation.part_counts import label_pairs

CAT_HEAD, CAT_TORSO, VOID = 43, 45, 116  # of Pascal-Part-116


def padded(labels: np.ndarray, width: int, fill: int) -> np.ndarray:
    return np.pad(labels.astype(int), width, constant_values=fill)


def windows(labels: np.ndarray, width: int, fill: int):
    """Every pixel with all labels at most ``width`` away, those beyond the image being ``fill``."""
    grown = padded(labels, width, fill)
    for y, x in np.ndindex(labels.shape):
        yield (y, x), grown[y : y + 2 * width + 1, x : x + 2 * width + 1]


@given(seed=st.integers(0, 10**6), width=st.integers(1, 3))
@settings(max_examples=20, deadline=None)
def test_a_band_is_what_lies_near_another_label_or_the_image_border(seed: int, width: int) -> None:
    labels = np.kron(np.random.default_rng(seed).integers(0, 3, (3, 4)), np.ones((4, 4), int))
    band = inner_bands(labels, width)
    for (y, x), window in windows(labels, width, -1):
        assert band[y, x] == (window != labels[y, x]).any()


@given(seed=st.integers(0, 10**6), width=st.integers(1, 3))
@settings(max_examples=20, deadline=None)
def test_label_differences_are_the_fall_to_the_smallest_number_around(seed: int, width: int) -> None:
    stack = np.random.default_rng(seed).integers(0, 300, (2, 6, 7))
    fallen = label_differences(stack, width)
    for labels, found in zip(stack, fallen, strict=True):
        for (y, x), window in windows(labels, width, 0):
            assert found[y, x] == labels[y, x] - window.min()


def test_cat_head_and_torso_leave_no_pixel_at_their_own_numbers() -> None:
    """Spec parity check 14: labels 0, 2, 71, 73 and 116 alone."""
    labels = np.full((60, 80), VOID)
    labels[20:40, 20:40] = CAT_HEAD
    labels[20:40, 40:60] = CAT_TORSO
    assert np.unique(label_differences(labels, 2)).tolist() == [0, 2, 71, 73, 116]


def test_the_numbers_of_the_classes_decide_the_published_statistic_and_not_boundary_iou() -> None:
    rng = np.random.default_rng(0)
    truth, prediction = (np.kron(rng.integers(0, 3, (6, 6)), np.ones((5, 5), int)) for _ in range(2))
    rename = np.array([2, 0, 1])

    def differences(true: np.ndarray, predicted: np.ndarray) -> list[int]:
        matrix = label_pairs(*(label_differences(m, 1).astype(np.int64) for m in (true, predicted)), 3)
        return sorted(matrix.diagonal().tolist())

    assert differences(truth, prediction) != differences(rename[truth], rename[prediction])
    assert np.array_equal(inner_bands(truth, 1), inner_bands(rename[truth], 1))


@pytest.mark.parametrize(("size", "width"), [((4, 5), 1), ((256, 256), 7), ((375, 500), 12), ((800, 1067), 27)])
def test_width_is_two_per_cent_of_the_diagonal(size: tuple[int, int], width: int) -> None:
    assert band_width(size) == width
