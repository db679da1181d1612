"""Scores, boxes and the class-aware affinity (spec fma-wsss sections 3.4 and 3.5, parity checks 8 and 9)."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from weakly.methods.fma.affinity import (
    SCORE_PARITY_EPS,
    affinity,
    map_scores,
    region_boxes,
    score_boxes,
    spread,
)


def random_maps(count: int, size: tuple[int, int], seed: int = 0) -> Tensor:
    """Smooth signed maps."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.randn(1, count, 4, 4, generator=generator)
    return torch.nn.functional.interpolate(coarse, size, mode="bicubic")[0]


def random_attention(patches: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (2 * torch.randn(patches, patches, generator=generator)).softmax(-1)


def contour_boxes(score: np.ndarray, threshold: float) -> np.ndarray:
    """Section 3.5 step 2 for one map, contour by contour."""
    height, width = score.shape
    steps = (score * 255).astype(np.uint8)
    binary = np.where(steps > int(threshold * steps.max()), 255, 0).astype(np.uint8)
    inside = np.zeros((height, width), bool)
    for contour in cv2.findContours(binary, cv2.RETR_TREE, cv2.CHAIN_APPROX_SIMPLE)[0]:
        x, y, w, h = cv2.boundingRect(contour)
        inside[y : min(y + h, height - 1), x : min(x + w, width - 1)] = True
    return inside


def plain_affinity(attention: Tensor, iterations: int, power: int) -> Tensor:
    """R of section 3.5 step 1, as a matrix, in double precision."""
    matrix = attention.double()
    for _ in range(iterations):
        matrix = matrix / matrix.sum(0, keepdim=True)
        matrix = matrix / matrix.sum(1, keepdim=True)
    return torch.linalg.matrix_power((matrix + matrix.T) / 2, power)


class TestScores:
    def test_negative_values_count_as_zero_and_the_range_becomes_one(self):
        scores = map_scores(torch.tensor([[[-3.0, 0.0], [1.0, 4.0]], [[2.0, 4.0], [3.0, 6.0]]]))
        assert scores.tolist() == [[[0, 0], [0.25, 1]], [[0, 0.5], [0.25, 1]]]

    @pytest.mark.parametrize("scale", [1e-20, 1e-8, 1.0, 1e8])
    def test_without_an_epsilon_the_scale_does_not_matter(self, scale):
        maps = random_maps(3, (6, 8))
        torch.testing.assert_close(map_scores(maps * scale), map_scores(maps), atol=1e-6, rtol=1e-5)

    def test_the_released_epsilon_costs_nine_per_cent_at_a_maximum_of_1e_6(self):
        tiny = torch.tensor([[[0.0, 1e-6]]])
        assert map_scores(tiny, eps=SCORE_PARITY_EPS).max().item() == pytest.approx(1 / 1.1, abs=1e-4)
        assert map_scores(tiny).max().item() == 1

    @pytest.mark.parametrize("value", [-1.0, 0.0, 2.0])
    @pytest.mark.parametrize("eps", [0.0, SCORE_PARITY_EPS])
    def test_a_constant_map_scores_nothing(self, value, eps):
        assert (map_scores(torch.full((1, 3, 4), value), eps=eps) == 0).all()

    def test_the_range_has_no_gradient(self):
        maps = torch.tensor([[[0.0, 1.0, 4.0]]], requires_grad=True)
        map_scores(maps)[0, 0, 2].backward()
        assert maps.grad.tolist() == [[[0, 0, 0.25]]]


class TestBoxes:
    def test_an_all_ones_map_is_a_box_but_for_its_last_row_and_column(self):
        expected = torch.ones(1, 6, 8, dtype=torch.bool)
        expected[:, -1] = False
        expected[:, :, -1] = False
        assert torch.equal(score_boxes(torch.ones(1, 6, 8), 0.4), expected)

    def test_nothing_is_strong(self):
        assert not score_boxes(torch.zeros(2, 6, 8), 0.4).any()
        assert not score_boxes(map_scores(random_maps(2, (6, 8))), 1.0).any()

    def test_no_maps_have_no_boxes(self):
        assert score_boxes(torch.zeros(0, 6, 8), 0.4).shape == (0, 6, 8)

    def test_two_regions_have_two_boxes_and_neighbouring_maps_do_not_touch(self):
        scores = torch.zeros(2, 5, 6)
        scores[0, 0, 0] = scores[0, 2, 3] = scores[0, 3, 4] = 1.0  # a corner, and two pixels that meet at a corner
        scores[0, 4, 1] = 1.0  # in the last row: its box is empty
        scores[1, 0, 1] = 1.0  # just below it, in the next map
        expected = torch.zeros(2, 5, 6, dtype=torch.bool)
        expected[0, 0, 0] = expected[1, 0, 1] = True
        expected[0, 2:4, 3:5] = True
        assert torch.equal(score_boxes(scores, 0.4), expected)

    @settings(max_examples=100, deadline=None)
    @given(
        count=st.integers(1, 4),
        size=st.tuples(st.integers(1, 12), st.integers(1, 12)),
        threshold=st.floats(0, 1),
        seed=st.integers(0, 1000),
        smooth=st.booleans(),
    )
    def test_they_are_the_rectangles_of_all_contours(self, count, size, threshold, seed, smooth):
        noise = torch.rand(count, *size, generator=torch.Generator().manual_seed(seed))
        scores = map_scores(random_maps(count, size, seed) if smooth else noise)
        expected = [contour_boxes(score, threshold) for score in scores.numpy()]
        assert np.array_equal(score_boxes(scores, threshold).numpy(), np.stack(expected))

    def test_holes_and_islands_in_holes_add_nothing(self):
        mask = np.ones((1, 9, 9), bool)
        mask[0, 2:7, 2:7] = False
        mask[0, 4, 4] = True
        assert region_boxes(mask).sum() == 64


class TestSpread:
    @pytest.mark.parametrize("iterations", [0, 1, 3])
    def test_the_affinity_is_symmetric_and_nears_a_doubly_stochastic_matrix(self, iterations):
        matrix = affinity(random_attention(30), iterations)
        assert torch.equal(matrix, matrix.T)
        torch.testing.assert_close(
            matrix.double(), plain_affinity(random_attention(30), iterations, 1), atol=1e-6, rtol=1e-5
        )
        errors = [(affinity(random_attention(30), n).sum(0) - 1).abs().max() for n in (0, 1, 3, 10)]
        assert errors == sorted(errors, reverse=True)
        assert errors[-1] < 1e-3

    @pytest.mark.parametrize(
        ("values", "iterations", "threshold", "power"),
        [("score", 1, 0.4, 2), ("cam", 1, 0.5, 2), ("cam", 1, 0.6, 2), ("score", 3, 0.4, 2), ("score", 1, 0.4, 3)],
    )
    def test_it_is_the_affinity_times_the_masked_values(self, values, iterations, threshold, power):
        maps, attention = random_maps(3, (9, 11)), random_attention(99)
        scores = map_scores(maps)
        boxes = torch.from_numpy(np.stack([contour_boxes(s, threshold) for s in scores.numpy()]))
        v = (scores if values == "score" else maps).double()
        matrix = plain_affinity(attention, iterations, power)
        expected = (matrix @ (v * boxes).flatten(1).T).T.reshape(3, 9, 11)
        ours = spread(maps, attention, threshold=threshold, values=values, iterations=iterations, power=power)
        assert ours.dtype == torch.float32
        torch.testing.assert_close(ours.double(), expected, atol=1e-6, rtol=1e-6)
        after = boxes * (matrix @ v.flatten(1).T).T.reshape(3, 9, 11)
        assert (ours - after).norm() > 0.1 * after.norm()  # the paper's order is another map

    def test_the_released_epsilon_only_scales_the_result(self):
        """Below one step of 1/255 the boxes stay; both codes agree once divided by their maxima."""
        maps, attention = random_maps(3, (9, 11)), random_attention(99)
        ours, released = (spread(maps, attention, threshold=0.4, iterations=3, eps=eps) for eps in (0.0, 1e-7))
        peaks = [result.amax((1, 2), keepdim=True) for result in (ours, released)]
        torch.testing.assert_close(ours / peaks[0], released / peaks[1], atol=2e-6, rtol=0)

    def test_every_map_is_spread_by_itself(self):
        maps, attention = random_maps(3, (9, 11)), random_attention(99)
        whole = spread(maps, attention, threshold=0.4)
        alone = spread(maps[1:2], attention, threshold=0.4)
        torch.testing.assert_close(whole[1:2], alone, atol=1e-7, rtol=1e-5)
        assert spread(maps[:0], attention, threshold=0.4).shape == (0, 9, 11)
