"""SAMS: which masks become quasi-superpixels, what class each gets, and the map painted from them.

Numbers in the worked examples are those of FMA-WSSS's sections 3.3 and 3.4 by hand; `naive_seed` is the whole procedure
mask by mask.
"""

from __future__ import annotations

import cv2
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from weakly.errors import UserError
from weakly.foundation.automatic_masks import PART, SUB_PART, WHOLE, AutomaticMasks
from weakly.foundation.mask_settings import MASK_PRESETS
from weakly.methods.fma import superpixels as module
from weakly.methods.fma.superpixels import (
    PUBLISHED_EPS,
    TABLE_4,
    Superpixels,
    classify,
    intersections,
    mask_means,
    occupation_filter,
    paint,
    quasi_superpixels,
    refine,
    seed_map,
    vote,
)
from weakly.segmentation import encode_masks


def random_ellipses(rng: np.random.Generator, count: int, size: tuple[int, int]) -> np.ndarray:
    """(S, H, W) bool ellipses of all sizes, at least one pixel each."""
    y, x = np.mgrid[: size[0], : size[1]]
    masks = []
    for _ in range(count):
        cy, cx = rng.uniform(0, size[0] - 1), rng.uniform(0, size[1] - 1)
        ry, rx = rng.uniform(1.5, size[0] / 3), rng.uniform(1.5, size[1] / 3)
        masks.append(((y - cy) / ry) ** 2 + ((x - cx) / rx) ** 2 <= 1)
    return np.stack(masks)


def smooth_cam(rng: np.random.Generator, classes: int, size: tuple[int, int]) -> np.ndarray:
    """(P, h, w) float32, signed and smooth."""
    noise = rng.normal(size=(classes, *size)).astype(np.float32)
    return np.stack([cv2.GaussianBlur(channel, (0, 0), 1) for channel in noise])


def naive_filter(masks: np.ndarray, levels: np.ndarray, ratio: float) -> list[int]:
    kept = [i for i in range(len(masks)) if levels[i] == WHOLE]
    for level in (PART, SUB_PART):
        new = []
        for i in np.flatnonzero(levels == level):
            occupied = [(masks[i] & masks[j]).sum() / masks[i].sum() for j in kept]
            if max(occupied, default=0) < ratio:
                new.append(int(i))
        kept += new
    return sorted(kept)


def naive_seed(
    cam: np.ndarray, categories: list[int], masks: np.ndarray, levels: np.ndarray, alpha: float, eps: float
) -> np.ndarray:
    """One mask after the other, as the text says it."""
    height, width = masks.shape[1:]
    large = [np.maximum(cv2.resize(channel, (width, height), interpolation=cv2.INTER_LINEAR), 0) for channel in cam]
    means = np.array([[channel[mask].mean(dtype=np.float64) for channel in large] for mask in masks], np.float32)
    scores = (means - means.min(0)) / (means.max(0) - means.min(0) + np.float32(eps))
    painted = []
    for index, score in enumerate(scores):
        best = int(score.argmax())
        background = (1 - score[best]) ** alpha
        value, confidence = (categories[best] + 1, score[best]) if score[best] > background else (0, background)
        painted.append((levels[index], confidence, index, value))
    seed = np.zeros((height, width), np.uint8)
    for _, _, index, value in sorted(painted):
        seed[masks[index]] = value
    return seed


def rows_of(*spans: tuple[int, int], length: int = 20) -> Tensor:
    """Masks (S, 1, length) that cover the pixels first to last (exclusive)."""
    masks = torch.zeros(len(spans), 1, length, dtype=torch.bool)
    for mask, (first, last) in zip(masks, spans, strict=True):
        mask[:, first:last] = True
    return masks


def levels_of(*levels: int) -> Tensor:
    return torch.tensor(levels, dtype=torch.int64)


NOTHING = Superpixels(torch.zeros(0, 6, 8, dtype=torch.bool), levels_of())


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("eps", [None, PUBLISHED_EPS])
def test_filter_and_seed_equal_the_naive_procedure(seed, eps):
    rng = np.random.default_rng(seed)
    masks = random_ellipses(rng, int(rng.integers(40, 121)), (75, 100))
    levels = rng.integers(0, 3, len(masks))
    cam = smooth_cam(rng, 3, (5, 7))
    kept = occupation_filter(torch.from_numpy(masks), torch.from_numpy(levels))
    assert kept.tolist() == naive_filter(masks, levels, 0.3)
    assert 0 < len(kept) < len(masks)
    chosen = Superpixels(torch.from_numpy(masks)[kept], torch.from_numpy(levels)[kept])
    painted = seed_map(torch.from_numpy(cam), [2, 7, 14], chosen, alpha=0.6, eps=eps)
    expected = naive_seed(cam, [2, 7, 14], masks[kept.numpy()], levels[kept.numpy()], 0.6, eps or 0)
    np.testing.assert_array_equal(painted.numpy(), expected)
    assert set(np.unique(painted)) <= {0, 3, 8, 15}


class TestOccupationFilter:
    def test_a_part_stays_if_less_than_the_ratio_of_it_is_occupied(self):
        masks = rows_of((0, 10), (8, 18), (7, 17))  # 2 and 3 of 10 pixels in the whole
        assert occupation_filter(masks, levels_of(WHOLE, PART, PART), 0.3).tolist() == [0, 1]

    def test_masks_of_one_level_do_not_compete(self):
        masks = rows_of((0, 10), (0, 10), (12, 18), (12, 18))
        assert occupation_filter(masks, levels_of(WHOLE, WHOLE, PART, PART)).tolist() == [0, 1, 2, 3]

    def test_sub_parts_compete_with_kept_parts_only(self):
        masks = rows_of((0, 10), (2, 12), (10, 13), (14, 20), (14, 17))
        levels = levels_of(WHOLE, PART, SUB_PART, PART, SUB_PART)
        assert occupation_filter(masks, levels).tolist() == [0, 2, 3]

    def test_without_wholes_all_parts_stay(self):
        masks = rows_of((0, 10), (0, 10), (0, 5))
        assert occupation_filter(masks, levels_of(PART, PART, SUB_PART)).tolist() == [0, 1]
        assert occupation_filter(masks[2:], levels_of(SUB_PART)).tolist() == [0]

    def test_the_union_occupies_more_than_each_mask(self):
        masks = rows_of((0, 4), (6, 10), (2, 8), (10, 14))  # 2 + 2 of the part's 6 pixels
        levels = levels_of(WHOLE, WHOLE, PART, PART)
        assert occupation_filter(masks, levels, 0.4).tolist() == [0, 1, 2, 3]
        assert occupation_filter(masks, levels, 0.4, against="union").tolist() == [0, 1, 3]

    @pytest.mark.parametrize("against", ["each", "union"])
    def test_empty_masks_and_empty_lists(self, against):
        masks = rows_of((0, 0), (0, 10), (3, 3))
        kept = occupation_filter(masks, levels_of(WHOLE, PART, SUB_PART), against=against)
        assert kept.tolist() == [1]
        assert occupation_filter(masks[:0], levels_of(), against=against).tolist() == []

    @pytest.mark.parametrize("ratio", [0.0, -1.0, 1.1, float("nan")])
    def test_a_ratio_is_a_fraction(self, ratio):
        with pytest.raises(UserError, match="fraction in"):
            occupation_filter(rows_of((0, 3)), levels_of(WHOLE), ratio)

    def test_intersections_and_means_do_not_depend_on_the_chunks(self, monkeypatch):
        rng = np.random.default_rng(0)
        masks = torch.from_numpy(random_ellipses(rng, 9, (30, 41)))
        maps = torch.from_numpy(rng.normal(size=(4, 30, 41))).float()
        counted = (masks[:, None] & masks).sum((2, 3))
        averaged = torch.stack([maps[:, mask].mean(1) for mask in masks])
        for values in (1 << 24, 1000, 1):
            monkeypatch.setattr(module, "CHUNK_VALUES", values)
            assert torch.equal(intersections(masks), counted.double())
            torch.testing.assert_close(mask_means(maps, masks), averaged, atol=1e-6, rtol=1e-5)

    def test_automatic_masks_are_decoded_and_filtered(self):
        decoded, levels = rows_of((0, 10), (2, 12), (12, 18)), levels_of(WHOLE, PART, PART)
        masks = AutomaticMasks.from_rles((1, 20), encode_masks(decoded.numpy()), levels.numpy(), [0.9] * 3, [1.0] * 3)
        chosen = quasi_superpixels(masks)
        assert torch.equal(chosen.masks, decoded[[0, 2]])
        assert torch.equal(chosen.levels, levels[[0, 2]])
        assert torch.equal(quasi_superpixels(masks, None).masks, decoded)

    def test_the_rows_of_table_4_name_presets(self):
        assert {masks for masks, _ in TABLE_4.values()} <= set(MASK_PRESETS)
        assert [name for name, (_, ratio) in TABLE_4.items() if ratio] == ["l2_nmsf_s1_rsw3"]


class TestClassify:
    MASKS = rows_of((0, 5), (5, 10), (10, 15), (15, 20))

    def cam(self, *channels: list[float]) -> Tensor:
        """(P, 1, 20): every number over five pixels, i.e. the mean over one of MASKS."""
        return torch.tensor(channels).repeat_interleave(5, 1)[:, None]

    def test_worked_example(self):
        """Scores are 0, .25, .5, 1 and 1, 0, .4, .2; backgrounds are (1 - best)^2."""
        cam = self.cam([1.0, 2.0, 3.0, 5.0], [6.0, 1.0, 3.0, 2.0])
        labels, confidence = classify(cam, self.MASKS, alpha=2)
        assert labels.tolist() == [2, 0, 1, 1]
        torch.testing.assert_close(confidence, torch.tensor([1.0, 0.5625, 0.5, 1.0]))

    def test_a_tie_is_background(self):
        cam = self.cam([0.0, 1.0, 0.5, 0.25])
        assert classify(cam, self.MASKS, alpha=1).labels.tolist() == [0, 1, 0, 0]

    def test_negative_activations_count_where_they_are_averaged_first(self):
        cam = torch.tensor([[3.0, 3.0, -2.0, -2.0, -2.0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 2, 2, 2, 2, 2]])[:, None]
        clamped, signed = (classify(cam, self.MASKS, alpha=1, average=average) for average in ("clamped", "signed"))
        assert clamped.labels.tolist() == [1, 0, 0, 1]  # means 1.2, 0, 1, 2: scores .6, 0, .5, 1
        assert signed.labels.tolist() == [0, 0, 0, 1]  # means 0, 0, 1, 2

    def test_scores_that_are_probabilities_need_no_min_max(self):
        cam = self.cam([0.2, 0.3, 0.4, 0.6])
        assert classify(cam, self.MASKS, alpha=1, norm="none").labels.tolist() == [0, 0, 0, 1]
        assert classify(cam, self.MASKS, alpha=1).labels.tolist() == [0, 0, 0, 1]
        assert classify(cam, self.MASKS, alpha=2, norm="none").labels.tolist() == [0, 0, 1, 1]

    @given(st.integers(0, 10_000), st.floats(0.2, 4))
    @settings(deadline=None, max_examples=40)
    def test_the_best_mask_of_a_class_is_foreground_and_its_worst_scores_nothing(self, seed, alpha):
        rng = np.random.default_rng(seed)
        masks = torch.from_numpy(random_ellipses(rng, 8, (20, 24)))
        cam = torch.from_numpy(smooth_cam(rng, 2, (20, 24)))
        means = mask_means(cam.clamp(min=0), masks)
        labels, confidence = classify(cam, masks, alpha=alpha)
        for channel in range(2):
            if means[:, channel].max() > 0:
                best = means[:, channel].argmax()
                assert labels[best] > 0
                assert confidence[best] == 1
        (only,) = classify(cam[:1], masks, alpha=alpha).labels[means[:, :1].argmin(0)]
        assert only == 0

    @given(st.integers(0, 10_000), st.sampled_from([2.0**-40, 2.0**-20, 2.0**30]))
    @settings(deadline=None, max_examples=30)
    def test_the_scale_of_the_activations_does_not_matter(self, seed, scale):
        rng = np.random.default_rng(seed)
        masks = torch.from_numpy(random_ellipses(rng, 8, (20, 24)))
        cam = torch.from_numpy(smooth_cam(rng, 3, (4, 5)))
        a, b = classify(cam, masks), classify(cam * scale, masks)
        assert torch.equal(a.labels, b.labels)
        torch.testing.assert_close(a.confidence, b.confidence)

    def test_a_class_that_tells_no_mask_apart_is_nowhere(self):
        cam = torch.full((1, 3, 4), 0.3)
        masks = torch.from_numpy(random_ellipses(np.random.default_rng(0), 30, (60, 80)))
        assert not classify(cam, masks).labels.any()

    def test_empty_masks_are_background_and_do_not_move_the_others(self):
        cam = self.cam([2.0, 3.0, 4.0, 6.0])
        with_empty = torch.cat([self.MASKS, torch.zeros(1, 1, 20, dtype=torch.bool)])
        for eps in (None, PUBLISHED_EPS):
            plain, more = classify(cam, self.MASKS, eps=eps), classify(cam, with_empty, eps=eps)
            assert torch.equal(more.labels, torch.cat([plain.labels, torch.zeros(1, dtype=torch.int64)]))
            assert torch.equal(more.confidence[:-1], plain.confidence)

    @pytest.mark.parametrize("alpha", [0.0, -1.0, float("nan")])
    def test_alpha_is_positive(self, alpha):
        with pytest.raises(UserError, match="give a number above 0"):
            classify(self.cam([1.0, 2.0, 3.0, 4.0]), self.MASKS, alpha=alpha)


class TestPaint:
    def test_higher_levels_then_higher_confidence_overwrite(self):
        masks = rows_of((0, 8), (4, 12), (10, 16), (14, 18))
        painted = paint(
            torch.zeros(1, 20, dtype=torch.uint8),
            masks,
            levels_of(SUB_PART, WHOLE, PART, PART),
            torch.tensor([1, 2, 3, 4]),
            torch.tensor([0.99, 0.1, 0.5, 0.6]),
        )
        assert painted[0].tolist() == [1] * 4 + [2] * 8 + [3] * 2 + [4] * 4 + [0] * 2

    def test_of_equal_masks_the_later_stays_and_background_overwrites(self):
        masks = rows_of((0, 8), (4, 12), (10, 14))
        canvas = torch.full((1, 20), 9, dtype=torch.uint8)
        painted = paint(canvas, masks, levels_of(1, 1, 2), torch.tensor([1, 2, 0]), torch.tensor([0.5, 0.5, 0.5]))
        assert painted[0].tolist() == [1] * 4 + [2] * 6 + [0] * 4 + [9] * 6
        assert (canvas == 9).all()


class TestSeedMap:
    def test_values_are_categories_plus_one(self):
        chosen = Superpixels(rows_of((0, 5), (5, 10), (10, 15)), levels_of(2, 2, 2))
        cam = torch.tensor([[5.0, 1.0, 0.0, 0.0], [0.0, 1.0, 5.0, 0.0]]).repeat_interleave(5, 1)[:, None]
        painted = seed_map(cam, [0, 253], chosen)
        assert painted.dtype == torch.uint8
        assert painted[0].tolist() == [1] * 5 + [0] * 5 + [254] * 5 + [0] * 5

    def test_one_superpixel_is_background(self):
        chosen = Superpixels(torch.ones(1, 6, 8, dtype=torch.bool), levels_of(2))
        cam = torch.from_numpy(smooth_cam(np.random.default_rng(0), 2, (6, 8))).abs()
        for eps in (None, PUBLISHED_EPS):
            assert not seed_map(cam, [3, 4], chosen, eps=eps).any()

    def test_no_superpixels_and_no_classes_are_background(self):
        empty = seed_map(torch.rand(2, 3, 4), [3, 4], NOTHING)
        assert empty.shape == (6, 8)
        assert not empty.any()
        chosen = Superpixels(torch.ones(2, 6, 8, dtype=torch.bool), levels_of(2, 1))
        for norm in ("min_max", "none"):
            assert not seed_map(torch.zeros(0, 3, 4, dtype=torch.float16), [], chosen, norm=norm).any()

    def test_tiny_activations_vanish_in_the_released_code_only(self):
        rng = np.random.default_rng(3)
        chosen = Superpixels(torch.from_numpy(random_ellipses(rng, 30, (40, 50))), torch.from_numpy(np.arange(30) % 3))
        cam = torch.from_numpy(smooth_cam(rng, 2, (5, 6)))
        normal = seed_map(cam, [1, 5], chosen)
        assert normal.any()
        assert torch.equal(seed_map(cam * 1e-8, [1, 5], chosen), normal)
        assert not seed_map(cam * 1e-8, [1, 5], chosen, eps=PUBLISHED_EPS).any()

    def test_half_precision_activations_are_welcome(self):
        rng = np.random.default_rng(4)
        chosen = Superpixels(torch.from_numpy(random_ellipses(rng, 9, (40, 50))), torch.from_numpy(np.arange(9) % 3))
        cam = torch.from_numpy(smooth_cam(rng, 2, (5, 6))).half()
        assert torch.equal(seed_map(cam, [1, 5], chosen), seed_map(cam.float(), [1, 5], chosen))

    @pytest.mark.parametrize("categories", [[1], [1, 254], [-1, 2]])
    def test_categories_that_do_not_fit_are_refused(self, categories):
        with pytest.raises(ValueError):
            seed_map(torch.rand(2, 3, 4), categories, NOTHING)


class TestVote:
    def row(self, *labels: int) -> Tensor:
        return torch.tensor([labels])

    def test_a_mask_takes_the_label_of_most_of_its_pixels(self):
        labels = self.row(*[1] * 6, *[0] * 4, *[2] * 3, *[0] * 7)
        chosen = Superpixels(rows_of((0, 10), (10, 14)), levels_of(2, 0))
        assert vote(labels, chosen)[0].tolist() == [1] * 10 + [2] * 4 + [0] * 6

    def test_pixels_of_a_class_outside_its_masks_go_and_of_a_class_without_masks_stay(self):
        labels = self.row(*[1] * 6, *[2] * 2, *[0] * 6, 1, 2, *[0] * 4)
        chosen = Superpixels(rows_of((0, 5), (6, 12)), levels_of(2, 2))
        assert vote(labels, chosen)[0].tolist() == [1] * 5 + [0] + [2] * 2 + [0] * 7 + [2] + [0] * 4

    def test_of_equal_counts_background_stays(self):
        chosen = Superpixels(rows_of((0, 4)), levels_of(2))
        assert vote(self.row(*[1] * 2, *[0] * 18), chosen)[0].tolist() == [1] * 2 + [0] * 18

    def test_where_classes_meet_the_larger_share_stays_whatever_the_level(self):
        labels = self.row(*[1] * 6, *[2] * 8, *[0] * 6)
        chosen = Superpixels(rows_of((0, 10), (6, 14)), levels_of(2, 0))
        assert vote(labels, chosen)[0].tolist() == [1] * 6 + [2] * 8 + [0] * 6

    def test_without_masks_or_with_empty_ones_labels_stay(self):
        labels = torch.randint(0, 3, (6, 8), generator=torch.Generator().manual_seed(0))
        empty = Superpixels(torch.zeros(2, 6, 8, dtype=torch.bool), levels_of(2, 1))
        for chosen in (NOTHING, empty):
            assert torch.equal(vote(labels, chosen).long(), labels)

    def test_no_class_appears_that_the_labels_do_not_have(self):
        rng = np.random.default_rng(5)
        chosen = Superpixels(torch.from_numpy(random_ellipses(rng, 30, (40, 50))), torch.from_numpy(np.arange(30) % 3))
        labels = torch.from_numpy(rng.choice([0, 2, 5], (40, 50)))
        found = vote(labels, chosen)
        assert found.dtype == torch.uint8 and set(found.unique().tolist()) <= {0, 2, 5}


class TestRefine:
    def probabilities(self, *columns: tuple[int, float], classes: int = 16) -> Tensor:
        """(classes, 1, 4 * columns): each (class, p) over four pixels, the rest of the mass on class 0 or 2."""
        maps = torch.zeros(classes, 1, 4 * len(columns))
        for i, (winner, p) in enumerate(columns):
            maps[winner, :, 4 * i : 4 * i + 4] = p
            maps[0 if winner else 2, :, 4 * i : 4 * i + 4] = 1 - p
        return maps

    def test_each_mask_takes_the_largest_mean(self):
        maps = self.probabilities((1, 0.9), (1, 0.6), (0, 0.9), (15, 0.7))
        chosen = Superpixels(rows_of((0, 4), (4, 12), (12, 16), length=16), levels_of(2, 2, 2))
        assert refine(maps, chosen)[0].tolist() == [1] * 4 + [0] * 8 + [15] * 4

    def test_without_predicted_background_the_labels_stay_what_they_are(self):
        """The released code returns {0, 1} here: every label is shifted by one."""
        maps = self.probabilities((1, 0.9), (15, 0.8))
        chosen = Superpixels(rows_of((0, 4), (4, 8), length=8), levels_of(2, 2))
        assert refine(maps, chosen).unique().tolist() == [1, 15]

    def test_classes_that_win_no_pixel_do_not_compete(self):
        maps = torch.zeros(3, 1, 8)
        maps[:, 0, :4] = torch.tensor([0.6, 0.0, 0.4])[:, None]
        maps[:, 0, 4:] = torch.tensor([0.0, 0.6, 0.4])[:, None]  # class 2 has the largest mean, and no pixel
        chosen = Superpixels(torch.ones(1, 1, 8, dtype=torch.bool), levels_of(2))
        assert refine(maps, chosen)[0].tolist() == [0] * 8
        assert refine(maps, chosen, alpha=2)[0].tolist() == [1] * 8

    def test_pixels_outside_all_masks_keep_the_prediction(self):
        maps = self.probabilities((1, 0.9), (15, 0.8), (0, 0.8))
        chosen = Superpixels(rows_of((0, 6), length=12), levels_of(2))
        assert refine(maps, chosen)[0].tolist() == [1] * 6 + [15] * 2 + [0] * 4
        assert refine(maps, chosen, uncovered="background")[0].tolist() == [1] * 6 + [0] * 6

    def test_no_masks_leave_the_prediction(self):
        maps = torch.rand(4, 6, 8).softmax(0)
        assert torch.equal(refine(maps, NOTHING), maps.argmax(0))
        assert not refine(maps, NOTHING, uncovered="background").any()

    def test_maps_that_do_not_sum_to_one_are_divided_by_their_sum(self):
        """A faint pixel counts as much as a strong one; a second softmax would flatten both."""
        maps = self.probabilities((1, 0.9), (0, 0.6), (0, 0.6))
        faint = maps * torch.linspace(0.1, 2, 12)
        chosen = Superpixels(rows_of((0, 12), (0, 8), length=12), levels_of(1, 2))
        assert torch.equal(refine(faint, chosen), refine(maps, chosen))

    def test_alpha_is_positive(self):
        with pytest.raises(UserError, match="give a number above 0"):
            refine(torch.rand(4, 6, 8), NOTHING, alpha=0)
