"""COCO instances as image tags and semantic truth."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from weakly.data.catalog import open_dataset
from weakly.data.check import check
from weakly.data.coco_tags import read_coco2014, read_coco_tags
from weakly.data.dataset import Dataset
from weakly.errors import UserError

Write = Callable[..., tuple[Path, Path]]
Annotation = Callable[..., dict[str, Any]]
SIZE = (20, 30)
HEAD, WING = 0, 1  # source ids 5 and 9
CROWD = {"size": list(SIZE), "counts": [0, 100, 500]}  # the first five columns


def tags(dataset: Dataset) -> list[list[int]]:
    return [s.tags.labels.tolist() for s in dataset]


def test_annotated_categories_are_the_tags(coco: Write, annotation: Annotation) -> None:
    rows = [annotation(), annotation(id=2), annotation(id=3, category_id=9), annotation(id=4, image_id=2)]
    dataset = read_coco_tags(*coco(rows))
    assert dataset.vocabulary.names == ("Head", "Wing")
    assert [c.source_id for c in dataset.vocabulary.categories] == [5, 9]
    assert tags(dataset) == [[HEAD, WING], [HEAD]]
    assert dataset.problems == ()


def test_boxes_and_clicks_are_not_handed_on(coco: Write, annotation: Annotation) -> None:
    dataset = read_coco_tags(*coco([annotation()]))
    assert all(s.boxes is s.points is None for s in dataset)
    assert all(category.object is None for category in dataset.vocabulary.categories)


def test_masks_are_painted_small_on_large(coco: Write, annotation: Annotation) -> None:
    small = [4.0, 5.0, 8.0, 5.0, 8.0, 9.0, 4.0, 9.0]
    rows = [annotation(id=1, category_id=9, segmentation=[small], bbox=[4, 5, 4, 4]), annotation(id=2)]
    dataset = read_coco_tags(*coco(rows))
    painted = dataset.truth(0).to_label_map(dataset.vocabulary.background)
    assert (painted == WING).sum() == 16
    assert (painted == HEAD).sum() == 100 - 16
    assert (painted == dataset.vocabulary.background).sum() == 500


def test_crowd_regions_count_unless_instances_are_scored(coco: Write, annotation: Annotation) -> None:
    files = coco([annotation(id=1, category_id=9, iscrowd=1, segmentation=CROWD)])
    dataset = read_coco_tags(*files)
    assert tags(dataset)[0] == [WING]
    assert (dataset.truth(0).to_label_map(2)[:, :5] == WING).all()
    assert [p.check for p in dataset.problems] == ["no-tag"]
    without = read_coco_tags(*files, crowds=False)
    assert tags(without)[0] == []
    assert not without.has_truth()
    assert [p.check for p in without.problems] == ["crowd-region", "no-tag", "no-tag"]


@pytest.mark.parametrize("segmentation", [{"size": [1, 1], "counts": [0, 1]}, [], "x"])
def test_a_damaged_crowd_region_is_a_tag_without_mask(coco: Write, annotation: Annotation, segmentation: Any) -> None:
    rows = [annotation(iscrowd=1, segmentation=segmentation), annotation(id=2, image_id=[], iscrowd=1), {"iscrowd": 1}]
    dataset = read_coco_tags(*coco(rows))
    assert tags(dataset)[0] == [HEAD]
    assert len(dataset.truth(0)) == 0


def test_a_tag_needs_neither_box_nor_mask(coco: Write, annotation: Annotation) -> None:
    dataset = read_coco_tags(
        *coco([annotation(bbox=[0, 0, 0, 0], segmentation=[[1, 1]]), annotation(id=2, image_id=2)])
    )
    assert tags(dataset) == [[HEAD], [HEAD]]
    assert {p.check for p in dataset.problems} == {"degenerate-polygon", "no-mask"}


def test_an_image_without_tag_is_kept_with_a_warning(coco: Write, annotation: Annotation) -> None:
    path, folder = coco([annotation()])
    dataset = read_coco_tags(path, folder)
    assert tags(dataset) == [[HEAD], []]
    (problem,) = dataset.problems
    assert (problem.check, problem.severity, problem.file, problem.index) == (
        "no-tag",
        "warning",
        str(path),
        "image id 2",
    )


def test_the_readers_own_problems_stay(coco: Write, annotation: Annotation) -> None:
    path, folder = coco([annotation(), annotation(id=2, category_id=77), annotation(id=3, image_id=2)])
    (folder / "b.jpg").unlink()
    found = [p.check for p in read_coco_tags(path, folder).problems]
    assert found == ["missing-image", "unknown-category"]


def test_the_test_split_has_no_tags(coco: Write, annotation: Annotation) -> None:
    dataset = read_coco_tags(*coco([annotation()]), split="test")
    assert all(s.tags is None for s in dataset)
    assert dataset.problems == ()
    assert dataset.has_truth()


def test_by_kind(coco: Write, annotation: Annotation) -> None:
    path, folder = coco([annotation()])
    dataset = open_dataset("coco-tags", None, "val", annotations=path, images=folder)
    assert (dataset.split, tags(dataset)) == ("val", [[HEAD], []])


class TestPublishedLayout:
    @pytest.fixture
    def root(self, tmp_path: Path, annotation: Annotation, save_image: Callable[..., Path]) -> Path:
        root = tmp_path / "coco2014"
        stems = [f"COCO_train2014_{i:012d}" for i in (9, 25, 30)]
        for stem in stems:
            save_image(root / f"images/train2014/{stem}.jpg")
        document = {
            "images": [
                {"id": i, "file_name": f"{s}.jpg", "height": SIZE[0], "width": SIZE[1]} for i, s in enumerate(stems)
            ],
            "annotations": [annotation(id=1, image_id=0, category_id=3), annotation(id=2, image_id=1, category_id=90)],
            "categories": [
                {"id": 90, "name": "toothbrush", "supercategory": "indoor"},
                {"id": 3, "name": "car", "supercategory": "vehicle"},
            ],
        }
        (root / "annotations").mkdir()
        (root / "annotations/instances_train2014.json").write_text(json.dumps(document))
        return root

    def test_it_is_found(self, root: Path) -> None:
        dataset = open_dataset("coco2014", root, "train")
        assert dataset.vocabulary.names == ("car", "toothbrush")
        assert tags(dataset) == [[0], [1], []]
        assert check("coco2014", root, "train", workers=1).counts == {"no-tag": 1}
        (root / "images/train2014").rename(root / "train2014")
        (root / "images").rmdir()
        assert len(read_coco2014(root, "train2014")) == 3

    def test_image_lists_limit_the_split(self, root: Path) -> None:
        (root / "imagesLists").mkdir()
        (root / "imagesLists/train.txt").write_text(
            "COCO_train2014_000000000025 79\n\nCOCO_train2014_000000000009.jpg\n"
        )
        dataset = read_coco2014(root, "train")
        assert [s.image_id for s in dataset] == [0, 1]
        assert dataset.problems == ()

    def test_label_maps_hold_contiguous_classes(self, root: Path) -> None:
        folder = root / "annotations/train2014_ur"
        folder.mkdir()
        label_map = np.zeros(SIZE, np.uint8)
        label_map[3:13, 2:12], label_map[0, 0] = 1, 2
        Image.fromarray(label_map).save(folder / "COCO_train2014_000000000009.png")
        Image.fromarray(label_map[:4]).save(folder / "COCO_train2014_000000000025.png")
        dataset = read_coco2014(root, "train")
        truth = dataset.truth(0).label_map
        assert (truth[5, 5], truth[0, 0], truth[19, 29]) == (0, 1, dataset.vocabulary.background)
        assert [p.check for p in dataset.problems] == ["no-tag", "label-map-size", "label-map-missing"]
        assert dataset.records[1].label_map_path is None
        assert check("coco2014", root, "train", workers=1).exit_code == 0

    def test_what_is_missing_is_named(self, root: Path) -> None:
        with pytest.raises(UserError, match=r"no folder .*images/val2014 nor .*val2014"):
            read_coco2014(root, "val")
        (root / "annotations/instances_train2014.json").unlink()
        with pytest.raises(UserError, match=r"instances_train2014.json"):
            read_coco2014(root, "train")
