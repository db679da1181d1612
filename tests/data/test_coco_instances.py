"""COCO instances: tags to learn from, boxes, masks and crowds to score."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from weakly.data.catalog import open_dataset
from weakly.data.coco_instances import coco_files, read_coco_instances
from weakly.data.dataset import Dataset
from weakly.segmentation import encode_masks, rle_areas, rle_to_json

Write = Callable[..., tuple[Path, Path]]
Annotation = Callable[..., dict[str, Any]]
HEAD, WING = 0, 1  # ids 5 and 9


def crowd_rle() -> dict[str, Any]:
    mask = np.zeros((1, 20, 30), bool)
    mask[0, :5, :5] = True
    return rle_to_json(encode_masks(mask)[0])


def read(paths: tuple[Path, Path], split: str = "train") -> Dataset:
    return read_coco_instances(*paths, split=split)


def test_training_sees_tags_and_evaluation_objects(coco: Write, annotation: Annotation) -> None:
    rows = [annotation(), annotation(id=2, category_id=9, bbox=[0, 0, 5, 5], segmentation=None)]
    dataset = read(coco(rows))
    sample, truth = dataset[0], dataset.instances(0)
    assert sample.boxes is sample.points is None
    assert sample.tags.labels.tolist() == [HEAD, WING]
    assert [c.source_id for c in dataset.vocabulary.categories] == [5, 9]
    assert {c.object for c in dataset.vocabulary.categories} == {None}
    assert truth.boxes.tolist() == [[2, 3, 12, 13], [0, 0, 5, 5]]
    assert truth.labels.tolist() == [HEAD, WING]
    assert dataset.instances(0, masks=True).labels.tolist() == [HEAD]
    assert len(dataset.truth(0)) == 1


def test_masks_and_boxes_stay_together_when_one_is_bad(coco: Write, annotation: Annotation) -> None:
    rows = [
        annotation(id=1, segmentation=[[1, 1, 2, 2]]),  # a box without a mask
        annotation(id=2, category_id=9, bbox=[-9, -9, 1, 1]),  # a mask without a box gives its extent
        annotation(id=3, category_id=5, bbox=[2, 3, 10, 10]),
    ]
    dataset = read(coco(rows))
    truth = dataset.instances(0)
    assert truth.labels.tolist() == [HEAD, WING, HEAD]
    assert truth.boxes.tolist() == [[2, 3, 12, 13]] * 3
    assert [int(mask.sum()) for mask in dataset.truth(0).masks()] == [100, 100]
    assert dataset.instances(0, masks=True).labels.tolist() == [WING, HEAD]
    assert {p.check for p in dataset.problems} >= {"degenerate-polygon", "box-dropped"}


def test_crowds_give_no_tag_and_are_difficult(coco: Write, annotation: Annotation) -> None:
    crowd = annotation(id=2, category_id=9, bbox=[0, 0, 5, 5], segmentation=crowd_rle(), iscrowd=1)
    dataset = read(coco([annotation(), crowd]))
    assert dataset[0].tags.labels.tolist() == [HEAD]
    truth = dataset.instances(0)
    assert truth.labels.tolist() == [HEAD, WING]
    assert truth.crowd.tolist() == truth.difficult.tolist() == [False, True]
    assert dataset.truth(0).labels.tolist() == [HEAD]
    (problem,) = [p for p in dataset.problems if p.index.startswith("annotations")]
    assert problem.check == "crowd-region"


def test_crowds_alone_are_no_truth(coco: Write, annotation: Annotation) -> None:
    dataset = read(coco([annotation(bbox=[0, 0, 5, 5], segmentation=crowd_rle(), iscrowd=1)]))
    assert not dataset.has_instances()
    assert not dataset.has_truth()
    assert len(dataset.instances(0, masks=True)) == 1
    assert len(dataset.truth(0)) == 0


def test_a_defective_crowd_region_is_no_further_problem(coco: Write, annotation: Annotation) -> None:
    crowd = annotation(id=2, bbox=[0, 0, 0, 0], segmentation={"size": [1, 1], "counts": "?"}, iscrowd=1)
    dataset = read(coco([annotation(), crowd]))
    assert [p.check for p in dataset.problems if p.index.startswith("annotations")] == ["crowd-region"]
    assert len(dataset.instances(0)) == 1


def test_images_that_show_nothing_are_known(coco: Write, annotation: Annotation) -> None:
    dataset = read(coco([annotation()]))
    assert dataset.records[1].instances == ()
    assert len(dataset.with_instances(masks=True)) == 2
    assert dataset[1].tags.labels.tolist() == []


def test_the_test_split_has_no_tags(coco: Write, annotation: Annotation) -> None:
    dataset = read(coco([annotation()]), "test")
    assert all(sample.tags is None for sample in dataset)
    assert dataset.has_instances(masks=True)


def test_published_layouts_are_found(tmp_path: Path, save_image: Callable[..., Path], annotation: Annotation) -> None:
    assert coco_files(tmp_path, "val") == (tmp_path / "annotations/val.json", tmp_path / "images/val")
    save_image(tmp_path / "val2017/a.jpg")
    (tmp_path / "annotations").mkdir()
    document = {
        "images": [{"id": 1, "file_name": "a.jpg", "height": 20, "width": 30}],
        "annotations": [annotation()],
        "categories": [{"id": 5, "name": "cat"}],
    }
    (tmp_path / "annotations/instances_val2017.json").write_text(json.dumps(document))
    assert len(open_dataset("coco-instances", tmp_path, "val2017")) == 1
    stated = {"annotations": Path("annotations/instances_val2017.json"), "images": Path("val2017")}
    assert open_dataset("coco-instances", tmp_path, "val", **stated).instances(0).boxes.tolist() == [[2, 3, 12, 13]]


@settings(max_examples=25)
@given(st.lists(st.tuples(st.sampled_from([5, 9]), st.booleans(), st.booleans(), st.booleans()), max_size=6))
def test_every_object_has_one_place_in_every_field(
    tmp_path_factory: pytest.TempPathFactory, rows: list[tuple[int, bool, bool, bool]]
) -> None:
    folder = tmp_path_factory.getbasetemp() / "generated"
    (folder / "photos").mkdir(parents=True, exist_ok=True)
    (folder / "photos/a.jpg").touch()
    square = [[2.0, 3.0, 12.0, 3.0, 12.0, 13.0, 2.0, 13.0]]
    annotations = [
        {
            "id": i,
            "image_id": 1,
            "category_id": category,
            "bbox": [2, 3, 10, 10] if box else [0, 0, 0, 0],
            "segmentation": square if mask else [],
            "iscrowd": int(crowd),
        }
        for i, (category, box, mask, crowd) in enumerate(rows)
    ]
    document = {
        "images": [{"id": 1, "file_name": "a.jpg", "height": 20, "width": 30}],
        "annotations": annotations,
        "categories": [{"id": 9, "name": "wing"}, {"id": 5, "name": "head"}],
    }
    (folder / "labels.json").write_text(json.dumps(document))
    dataset = read_coco_instances(folder / "labels.json", folder / "photos")
    truth = dataset.instances(0)
    usable = [row for row in rows if row[1] or (row[2] and not row[3])]
    assert truth.labels.tolist() == [[5, 9].index(category) for category, *_ in usable]
    assert truth.crowd.tolist() == [crowd for *_, crowd in usable]
    masked = [mask for _, _, mask, _ in usable]
    assert masked == [False] * len(masked) if truth.rles is None else masked == (rle_areas(truth.rles) > 0).tolist()
    assert set(dataset[0].tags.labels.tolist()) >= {[5, 9].index(c) for c, _, _, crowd in usable if not crowd}
