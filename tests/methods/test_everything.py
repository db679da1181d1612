"""SAM's "everything" masks, named by the truth."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiny_fma import MASKS
from tiny_segmenter import rectangle_dataset, tiny_segmenter

from weakly.data.dataset import Dataset
from weakly.foundation.automatic_masks import AutomaticMasks, generate_masks
from weakly.foundation.sam import SamSegmenter
from weakly.methods.baselines.everything import SAM_EVERYTHING, everything, everything_scores, oracle_labels
from weakly.segmentation import encode_masks


@pytest.fixture(scope="module")
def segmenter(tmp_path_factory: pytest.TempPathFactory) -> SamSegmenter:
    return tiny_segmenter(tmp_path_factory.mktemp("sam"))


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    return rectangle_dataset(tmp_path, 4)


def automatic(masks: np.ndarray) -> AutomaticMasks:
    count = len(masks)
    return AutomaticMasks.from_rles(
        masks.shape[1:], encode_masks(masks), [0] * count, np.linspace(0.2, 1.1, count), [1] * count
    )


def test_each_mask_gets_the_category_it_overlaps_most() -> None:
    masks = np.zeros((4, 6, 6), bool)
    masks[0, :2], masks[1, :, :3], masks[2, 3, 3], masks[3, 3:] = True, True, True, True
    truth = np.zeros((3, 6, 6), bool)
    truth[0, :2, 1:], truth[1, 2:], truth[2, 5, 5] = True, True, True
    named = oracle_labels(automatic(masks), encode_masks(truth), np.array([7, 4, 1]), 0.5)
    assert named.labels.tolist() == [7, 4], "the second overlaps two by less than half, the third is a speck"
    assert np.array_equal(named.masks(), masks[[0, 3]])
    assert named.scores == pytest.approx([0.2, 1.0])
    assert [origin["true_iou"] for origin in named.provenance] == [pytest.approx(10 / 12, abs=1e-3), 0.75]
    assert len(oracle_labels(automatic(masks), (), np.zeros(0, np.int64))) == 0
    assert len(oracle_labels(automatic(masks[:0]), encode_masks(truth), np.array([7, 4, 1]))) == 0


@given(st.integers(0, 5), st.integers(0, 4), st.floats(0, 1), st.integers(0, 2**32))
def test_named_masks_reach_the_least_iou_and_no_true_mask_fits_better(
    count: int, true: int, least: float, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    masks, truth = rng.random((count, 5, 5)) < 0.5, rng.random((true, 5, 5)) < 0.5
    categories = rng.integers(0, 9, true)
    named = oracle_labels(automatic(masks), encode_masks(truth), categories, least)
    for mask, label, origin in zip(named.masks(), named.labels, named.provenance, strict=True):
        iou = [(mask & one).sum() / (mask | one).sum() for one in truth]
        assert max(iou) >= least and label in categories[np.isclose(iou, max(iou))]
        assert origin["true_iou"] == pytest.approx(max(iou), abs=1e-3)


def test_masks_are_those_of_the_segmenter(segmenter: SamSegmenter, dataset: Dataset) -> None:
    results = list(everything(segmenter, dataset, MASKS, min_iou=0.05))
    assert [result.size for result in results] == [sample.size for sample in dataset]
    assert sum(map(len, results)) > 0 and len(results[0]) == 0, "nothing is true of the first image"
    for index, result in enumerate(results):
        found = {rle["counts"] for rle in generate_masks(segmenter, dataset.image(index), MASKS).rles}
        assert {rle["counts"] for rle in result.rles} <= found
        assert set(result.labels) <= set(dataset.truth(index).labels)


def test_an_unreadable_image_gives_an_empty_result_in_its_place(segmenter: SamSegmenter, dataset: Dataset) -> None:
    dataset[1].path.write_bytes(b"no image")
    results = list(everything(segmenter, dataset, MASKS, min_iou=0.05))
    assert len(results) == 4 and len(results[1]) == 0 and (results[1].label_map == 3).all()


def test_the_default_is_sams_own() -> None:
    """Spec wps-sam, section 6: 32 x 32 points, predicted IoU 0.88, stability 0.95, box NMS 0.7, the image alone."""
    setting = SAM_EVERYTHING
    assert (setting.points_per_side, setting.crop_layers, setting.min_region) == (32, 0, 0)
    assert (setting.iou_threshold, setting.stability_threshold, setting.stability_offset) == (0.88, 0.95, 1.0)
    assert (setting.nms_threshold, setting.whole_iou_offset, setting.whole_nms_offset) == (0.7, 0, 0)


def test_scores_load_nothing_and_depend_on_all_that_decides_them(segmenter: SamSegmenter, dataset: Dataset) -> None:
    (lazy,) = everything_scores(lambda: pytest.fail("loaded"), dataset)
    assert (lazy.method, lazy.supervision, lazy.extra) == ("everything", "mask", {"row": "oracle-label"})
    scores = [
        everything_scores(lambda: segmenter, dataset, settings, least)[0].identity()
        for settings, least in ((MASKS, 0.5), (MASKS, 0.6), (SAM_EVERYTHING, 0.5))
    ]
    assert len(set(scores)) == 3
    blank = replace(dataset, records=tuple(replace(record, truth=()) for record in dataset.records))
    assert everything_scores(lambda: segmenter, blank) == []
