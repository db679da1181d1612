"""Pseudo-masks: what the segmenter draws in true boxes, painted over each other, made once and kept."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny_segmenter import rectangle_dataset, tiny_segmenter

from weakly.data.dataset import Dataset
from weakly.foundation.features import FeatureStore
from weakly.foundation.sam import SamSegmenter
from weakly.labels import Boxes
from weakly.methods.base import Workspace
from weakly.methods.baselines.oracle import oracle
from weakly.methods.baselines.pseudo_mask.targets import box_label_maps, paint, true_label_maps
from weakly.methods.semantic_targets import read_label_map


@pytest.fixture(scope="module")
def segmenter(tmp_path_factory: pytest.TempPathFactory) -> SamSegmenter:
    return tiny_segmenter(tmp_path_factory.mktemp("sam"))


@pytest.fixture
def dataset(tmp_path: Path) -> Dataset:
    return rectangle_dataset(tmp_path, 6)


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    return Workspace(run=tmp_path / "run", features=tmp_path / "features", feature_dtype="float32")


def test_a_part_within_a_part_is_seen_whichever_comes_first() -> None:
    large, small = torch.zeros(2, 4, 4, dtype=torch.bool)
    large[:3], small[1, 1:3] = True, True
    expected = np.array([[7, 7, 7, 7], [7, 5, 5, 7], [7, 7, 7, 7], [9, 9, 9, 9]])
    for masks, labels in (((large, small), (7, 5)), ((small, large), (5, 7))):
        assert np.array_equal(paint(torch.stack(masks), np.array(labels), 9), expected)


@given(st.integers(0, 6), st.integers(0, 2**32))
def test_every_pixel_shows_the_smallest_mask_that_holds_it(count: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    masks = torch.rand(count, 5, 6, generator=generator) < torch.rand(count, 1, 1, generator=generator)
    labels = torch.randint(0, 20, (count,), generator=generator).numpy()
    painted, areas = paint(masks, labels, 20), masks.sum((1, 2))
    for (y, x), value in np.ndenumerate(painted):
        holders = [i for i in range(count) if masks[i, y, x]]
        assert value == (labels[min(holders, key=lambda i: (areas[i], i))] if holders else 20)


def test_maps_are_the_segmenters_masks_of_the_true_boxes(
    segmenter: SamSegmenter, dataset: Dataset, workspace: Workspace
) -> None:
    found = box_label_maps(segmenter, dataset, workspace, max_prompts=2)
    assert found.images == tuple(sample.path for sample in dataset) and found.skipped == ()
    for path, sample, single in zip(found.maps, dataset, oracle(segmenter, dataset, "box"), strict=True):
        expected = paint(torch.from_numpy(single.masks()), sample.boxes.labels, 3)
        assert np.mean(read_label_map(path, 3) != expected) < 1e-3


def test_stored_features_serve_and_no_map_is_made_twice(
    segmenter: SamSegmenter, dataset: Dataset, workspace: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    FeatureStore.open(workspace.features, segmenter, "float32").build([sample.path for sample in dataset])
    monkeypatch.setattr(segmenter, "encode", lambda *_: pytest.fail("an image was encoded again"))
    first = box_label_maps(segmenter, dataset, workspace)
    monkeypatch.setattr(segmenter, "decode", lambda *_: pytest.fail("a mask was made again"))
    assert box_label_maps(segmenter, dataset, workspace).maps == first.maps
    assert box_label_maps(segmenter, dataset.select([4]), workspace).maps == first.maps[4:5]


def test_other_boxes_make_another_map(segmenter: SamSegmenter, dataset: Dataset, workspace: Workspace) -> None:
    before = box_label_maps(segmenter, dataset, workspace).maps
    record = dataset.records[3]
    boxes = record.sample.boxes
    moved = replace(record, sample=replace(record.sample, boxes=Boxes(boxes.xyxy + 1, boxes.labels)))
    changed = replace(dataset, records=(*dataset.records[:3], moved, *dataset.records[4:]))
    after = box_label_maps(segmenter, changed, workspace).maps
    assert [a == b for a, b in zip(before, after, strict=True)] == [True, True, True, False, True, True]


@pytest.mark.parametrize("supervision", ["box", "mask"])
def test_one_bad_image_or_record_costs_only_itself(
    segmenter: SamSegmenter, dataset: Dataset, workspace: Workspace, supervision: str
) -> None:
    dataset[1].path.write_bytes(b"no image")
    dataset[5].path.unlink()
    record = dataset.records[2]
    unlabelled = replace(record, sample=replace(record.sample, boxes=None))
    dataset = replace(dataset, records=(*dataset.records[:2], unlabelled, *dataset.records[3:]))
    box = supervision == "box"
    found = box_label_maps(segmenter, dataset, workspace) if box else true_label_maps(dataset, workspace)
    lost = [1, 2, 5] if box else [1, 5]
    assert [skipped.image_id for skipped in found.skipped] == lost
    assert all(str(skipped.path) in skipped.reason for skipped in found.skipped)
    assert found.images == tuple(dataset[i].path for i in range(6) if i not in lost)


def test_true_maps_are_the_truth_as_it_is_scored(dataset: Dataset, workspace: Workspace) -> None:
    found = true_label_maps(dataset, workspace)
    for index, path in enumerate(found.maps):
        assert np.array_equal(read_label_map(path, 3), dataset.truth(index).to_label_map(3))
    assert true_label_maps(dataset, workspace).maps == found.maps
