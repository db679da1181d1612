"""Recall of proposals: spec weaksam, sections 7.4 and 11 (item 13)."""

from __future__ import annotations

import math
from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from weakly.errors import UserError
from weakly.evaluation.proposals import box_iou, match, proposal_recall


def exclusive(*boxes: tuple[float, float, float, float]) -> np.ndarray:
    """Boxes whose bounds are inclusive pixels, as the spec writes them, in our convention."""
    return np.array(boxes, np.float32).reshape(-1, 4) + np.array([0, 0, 1, 1], np.float32)


WORKED = [
    (exclusive((0, 0, 9, 9), (0, 0, 9, 8), (22, 22, 39, 39)), exclusive((0, 0, 9, 9), (20, 20, 39, 39))),
    (exclusive((100, 100, 120, 120)), exclusive((5, 5, 50, 50))),
]


def test_the_worked_example():
    scores = proposal_recall(WORKED, [1, 2, 3, None], [0.5, 0.75, 0.9])
    third = 1 / 3
    for first in (1, 2):
        assert list(scores.recall[first].values()) == pytest.approx([third] * 3)
    for first in (3, None):
        assert list(scores.recall[first].values()) == pytest.approx([2 * third, 2 * third, third])
    assert (scores.images, scores.true_boxes, scores.proposals_per_image) == (2, 3, 2.0)


def test_an_image_without_proposals_counts_as_missed():
    nothing = (np.zeros((0, 4), np.float32), exclusive((0, 0, 9, 9), (3, 3, 5, 5)))
    scores = proposal_recall([*WORKED, nothing])
    assert scores.recall[None][0.5] == pytest.approx(2 / 5)
    assert scores.images_without_proposals == 1
    assert scores.proposals_per_image == pytest.approx(4 / 3)


def test_an_image_without_true_boxes_counts_for_the_number_of_proposals_alone():
    scores = proposal_recall([*WORKED, (exclusive((0, 0, 4, 4)), np.zeros((0, 4), np.float32))])
    assert scores.recall == proposal_recall(WORKED).recall
    assert scores.proposals_per_image == pytest.approx(5 / 3)


def test_one_proposal_finds_one_box():
    twice = exclusive((0, 0, 9, 9), (0, 0, 9, 9))
    assert proposal_recall([(twice[:1], twice)]).recall[None][0.5] == 0.5
    assert proposal_recall([(twice, twice)]).recall[None][0.5] == 1


def test_an_iou_of_exactly_the_threshold_is_found():
    pair = (exclusive((0, 0, 9, 4)), exclusive((0, 0, 9, 9)))
    assert proposal_recall([pair], thresholds=[0.5, 0.51]).recall[None] == {0.5: 1.0, 0.51: 0.0}


def test_boxes_of_whole_pixels_have_the_iou_of_the_released_code():
    """IoU + 1 of inclusive [0, 0, 9, 9] with [5, 0, 14, 9] is 1/3, with [10, 0, 19, 9] 0 (item 15)."""
    overlap = box_iou(exclusive((0, 0, 9, 9)), exclusive((5, 0, 14, 9), (10, 0, 19, 9)))
    np.testing.assert_allclose(overlap, [[1 / 3, 0]])
    assert box_iou(np.zeros((1, 4)), np.zeros((1, 4))).tolist() == [[0]]


@settings(max_examples=50, deadline=None)
@given(seed=st.integers(0, 10**6), n=st.integers(0, 5), m=st.integers(0, 4))
def test_matching_is_greedy_and_one_to_one(seed, n, m):
    """The largest IoU of all is always matched, and what is matched is part of some one-to-one assignment."""
    overlap = np.random.default_rng(seed).random((n, m)).round(2)
    matched = match(overlap)
    assert matched.shape == (m,)
    assert (matched > 0).sum() <= min(n, m)
    if overlap.size:
        assert matched.max() == overlap.max()
    padded = np.concatenate([overlap, np.zeros((m, m))])
    assignments = permutations(range(n + m), m)
    assert any(all(padded[row, column] == matched[column] for column, row in enumerate(rows)) for rows in assignments)


def test_more_proposals_find_at_least_as_many():
    rng = np.random.default_rng(0)
    corner = rng.integers(0, 60, (40, 2))
    boxes = np.concatenate([corner, corner + rng.integers(5, 40, (40, 2))], 1).astype(np.float32)
    recall = proposal_recall([(boxes, boxes[::4] + 2)], [1, 5, 20, None]).recall
    for threshold in (0.5, 0.6, 0.75, 0.9):
        values = [recall[first][threshold] for first in (1, 5, 20, None)]
        assert values == sorted(values)
    assert recall[None][0.5] > recall[1][0.5]


def test_names_in_json():
    told = proposal_recall(WORKED, [1, None]).to_dict()
    assert list(told["recall"]) == ["1", "all"]
    assert list(told["recall"]["all"]) == ["0.5", "0.6", "0.75", "0.9"]
    assert told["proposals_per_image"] == 2.0


def test_what_cannot_be_scored():
    assert math.isnan(proposal_recall([(exclusive((0, 0, 4, 4)), np.zeros((0, 4)))]).recall[None][0.5])
    with pytest.raises(UserError, match="no image"):
        proposal_recall([])
    with pytest.raises(UserError, match="thresholds"):
        proposal_recall(WORKED, thresholds=[1.5])
    with pytest.raises(UserError, match="first"):
        proposal_recall(WORKED, [0])
