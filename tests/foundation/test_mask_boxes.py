"""The geometry of automatic masks: crops, point grids, non-maximum suppression and the clean-up of small regions."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from weakly.foundation.mask_boxes import Crop, clean_regions, crop_grid, cut_by_crop, nms, point_grid
from weakly.foundation.mask_settings import AutomaticMaskSettings


class TestGeometry:
    def test_crops_of_375x500(self):
        assert [crop.box for crop in crop_grid((375, 500), 1)] == [
            (0, 0, 500, 375),
            (0, 0, 314, 252),
            (0, 124, 314, 375),
            (186, 0, 500, 252),
            (186, 124, 500, 375),
        ]

    def test_default_prompts_are_1024_and_4_times_256(self):
        default = AutomaticMaskSettings()
        grids = [len(point_grid(default.points_on(crop.layer))) for crop in crop_grid((375, 500), 1)]
        assert grids == [1024, 256, 256, 256, 256]

    def test_points_are_cell_centres_row_by_row(self):
        np.testing.assert_allclose(point_grid(2), [[0.25, 0.25], [0.75, 0.25], [0.25, 0.75], [0.75, 0.75]])

    @given(st.integers(1, 80), st.integers(1, 80), st.integers(0, 3), st.floats(0, 0.9))
    @settings(deadline=None, max_examples=60)
    def test_the_crops_of_every_layer_cover_the_image_and_are_not_empty(self, height, width, layers, overlap):
        crops = crop_grid((height, width), layers, overlap)
        for layer in range(layers + 1):
            covered = np.zeros((height, width), bool)
            for crop in crops:
                x0, y0, x1, y1 = crop.box
                assert 0 <= x0 < x1 <= width
                assert 0 <= y0 < y1 <= height
                if crop.layer == layer:
                    covered[y0:y1, x0:x1] = True
            assert covered.all()

    def test_a_mask_is_cut_where_the_crop_ends_but_not_where_the_image_does(self):
        crop = Crop((0, 0, 314, 252), 1)
        boxes = np.array([[0, 0, 100, 100], [50, 50, 293, 200], [50, 50, 294, 200], [50, 50, 200, 252]], np.float32)
        assert cut_by_crop(boxes, crop, (375, 500)).tolist() == [False, False, True, True]
        assert not cut_by_crop(boxes, Crop((0, 0, 500, 375), 0), (375, 500)).any()


class TestNms:
    @given(
        st.lists(
            st.tuples(*[st.integers(0, 12)] * 2, *[st.integers(1, 12)] * 2, st.integers(0, 3)), min_size=0, max_size=30
        ),
        st.sampled_from([0.3, 0.5, 0.7]),
    )
    @settings(deadline=None, max_examples=100)
    def test_is_greedy_and_stable(self, rows, threshold):
        table = np.array(rows, np.float64).reshape(-1, 5)
        boxes, scores = np.concatenate([table[:, :2], table[:, :2] + table[:, 2:4]], 1), table[:, 4]
        kept: list[int] = []
        for i in sorted(range(len(boxes)), key=lambda i: -scores[i]):  # sorted() is stable
            if all(self._iou(boxes[i], boxes[j]) <= threshold for j in kept):
                kept.append(i)
        assert nms(boxes, scores, threshold).tolist() == kept

    @staticmethod
    def _iou(a: np.ndarray, b: np.ndarray) -> float:
        sides = np.clip(np.minimum(a[2:], b[2:]) - np.maximum(a[:2], b[:2]), 0, None)
        shared = float(sides.prod())
        return shared / (float((a[2:] - a[:2]).prod()) + float((b[2:] - b[:2]).prod()) - shared)

    def test_tells_the_crops_of_a_huge_image_apart(self):
        """1 + 1 / area differs by less than float32 sees."""
        boxes = np.array([[0, 0, 10, 10], [0, 0, 10, 10]])
        assert nms(boxes, 1 + 1 / np.array([4e7, 1e7]), 0.7).tolist() == [1]

    def test_stays_stable_for_thousands_of_equal_scores(self):
        boxes = np.repeat(np.arange(2000)[:, None] * 10.0, 4, 1) + np.array([0, 0, 5, 5])
        assert nms(np.tile(boxes, (2, 1)), np.ones(4000), 0.7).tolist() == list(range(2000))


class TestCleanRegions:
    def test_small_holes_are_filled_and_small_islands_dropped(self):
        mask = np.zeros((40, 40), bool)
        mask[5:30, 5:30] = True
        expected = mask.copy()
        mask[10:12, 10:12] = False
        mask[35:37, 35:37] = True
        cleaned, changed = clean_regions(mask, 10)
        assert changed
        np.testing.assert_array_equal(cleaned, expected)

    def test_regions_of_the_minimum_stay(self):
        mask = np.zeros((40, 40), bool)
        mask[5:30, 5:30] = True
        mask[10:12, 10:12] = False
        mask[35:37, 35:37] = True
        cleaned, changed = clean_regions(mask, 4)
        assert not changed
        np.testing.assert_array_equal(cleaned, mask)

    def test_diagonal_neighbours_are_connected(self):
        mask = np.eye(12, dtype=bool)
        assert not clean_regions(mask, 12)[1]

    def test_the_largest_island_stays_if_all_are_small(self):
        mask = np.zeros((40, 40), bool)
        mask[2:5, 2:5] = True
        mask[20:24, 20:24] = True
        cleaned, _ = clean_regions(mask, 100)
        assert np.argwhere(cleaned).min() == 20
        assert cleaned.sum() == 16

    def test_an_empty_mask_stays_empty_and_zero_changes_nothing(self):
        assert not clean_regions(np.zeros((20, 20), bool), 100)[1]
        noise = np.random.default_rng(0).random((30, 30)) < 0.5
        assert not clean_regions(noise, 0)[1]

    @given(st.integers(0, 1000), st.integers(1, 60))
    @settings(deadline=None, max_examples=40)
    def test_is_idempotent(self, seed, min_area):
        noise = np.random.default_rng(seed).random((24, 24)) < 0.6
        once, _ = clean_regions(noise, min_area)
        twice, changed = clean_regions(once, min_area)
        assert not changed or once.sum() < min_area  # a lone small island encloses background anew
