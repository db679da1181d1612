"""COCO JSON -> Dataset: one bad record is one problem, never the run."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from weakly.data.coco import read_coco
from weakly.data.dataset import Dataset, Problem
from weakly.errors import UserError

Write = Callable[..., tuple[Path, Path]]
Annotation = Callable[..., dict[str, Any]]


def only_problem(dataset: Dataset, check: str) -> Problem:
    found = [p for p in dataset.problems if p.check == check]
    assert len(found) == 1, dataset.problems
    assert found[0].file
    assert found[0].remedy
    return found[0]


def checks(dataset: Dataset) -> list[str]:
    """Problems but for image b.jpg, which most tests leave without annotation."""
    return [p.check for p in dataset.problems if p.check != "unannotated-image"]


def test_a_sound_file(coco: Write, annotation: Annotation) -> None:
    dataset = read_coco(*coco([annotation(), annotation(id=2, category_id=9)]), name="birds", split="val")
    assert (dataset.name, dataset.split, len(dataset)) == ("birds", "val", 2)
    assert [(c.name, c.object, c.source_id) for c in dataset.vocabulary.categories] == [
        ("Head", "Bird", 5),
        ("Wing", "Bird", 9),
    ]
    sample = dataset[0]
    assert sample.path.is_absolute()
    assert sample.boxes is not None
    assert sample.boxes.xyxy.tolist() == [[2, 3, 12, 13]] * 2
    assert sample.boxes.labels.tolist() == [0, 1]
    assert sample.points is not None
    assert sample.points.xy.tolist() == [[7, 8]] * 2
    assert dataset.truth(0).masks().sum() == 200
    assert checks(dataset) == []


def test_an_image_without_annotations_is_background_only(coco: Write, annotation: Annotation) -> None:
    dataset = read_coco(*coco([annotation()]))
    assert dataset[1].boxes is not None
    assert len(dataset[1].boxes) == 0
    assert only_problem(dataset, "unannotated-image").index == "images[1] (id 2)"


def test_every_form_of_mask(coco: Write, annotation: Annotation) -> None:
    mask = np.zeros((20, 30), np.uint8)
    mask[3:13, 2:12] = 1
    rle = coco_mask.encode(np.asfortranarray(mask))
    compressed = {"size": [20, 30], "counts": rle["counts"].decode()}
    plain = {"size": [20, 30], "counts": [2 * 20 + 3, *[10, 10] * 9, 10, 20 * 18 + 7]}
    dataset = read_coco(*coco([annotation(id=i, segmentation=s) for i, s in enumerate([compressed, plain])]))
    assert checks(dataset) == []
    assert (dataset.truth(0).masks() == mask.astype(bool)).all()


def test_boxes_without_masks(coco: Write, annotation: Annotation) -> None:
    dataset = read_coco(*coco([annotation(segmentation=None)]))
    assert checks(dataset) == []
    assert not dataset.has_truth()
    assert dataset[0].boxes is not None
    assert len(dataset[0].boxes) == 1


@pytest.mark.parametrize("segmentation", [[], [[1, 1, 5, 5]], [[1, 1]], [[0, 0, 5, 5, 9, 9]], {"size": [1, 1]}, "x"])
def test_without_a_usable_mask_the_box_still_trains(coco: Write, annotation: Annotation, segmentation: object) -> None:
    dataset = read_coco(*coco([annotation(segmentation=segmentation), annotation(id=7, image_id=2)]))
    assert only_problem(dataset, "no-mask").index == "annotations[0] (id 1)"
    assert dataset.extra["no_mask"] == ((1, 0),)
    assert dataset[0].boxes is not None
    assert len(dataset[0].boxes) == 1
    assert dataset.truth(0).masks().shape == (0, 20, 30)


def test_a_degenerate_ring_beside_a_sound_one_is_dropped(coco: Write, annotation: Annotation) -> None:
    sound = annotation()["segmentation"][0]
    dataset = read_coco(*coco([annotation(segmentation=[[1, 1, 5, 5], sound])]))
    assert only_problem(dataset, "degenerate-polygon").message.startswith("1 polygon ring")
    assert dataset.truth(0).masks().sum() == 100


@pytest.mark.parametrize(("first", "kept"), [([1, 1, 5, 5], 0), ([1, 1, 5, 5, 5, 1], 1)])
def test_the_released_code_drops_an_annotation_for_its_first_ring(
    coco: Write, annotation: Annotation, first: list[int], kept: int
) -> None:
    """Spec wps-sam section 5, row 21: four numbers or fewer in the first ring, and box and mask are gone."""
    sound = annotation()["segmentation"][0]
    files = coco([annotation(segmentation=[first, sound]), annotation(id=2, segmentation=[sound, [1, 1]])])
    dataset = read_coco(*files, bad_polygons="annotation")
    assert dataset[0].boxes is not None
    assert len(dataset[0].boxes) == len(dataset.truth(0)) == 1 + kept
    reader_default = read_coco(*files)
    assert len(reader_default.truth(0)) == 2


def test_a_mask_without_box_gives_its_extent(coco: Write, annotation: Annotation) -> None:
    dataset = read_coco(*coco([annotation(bbox=None)]))
    assert only_problem(dataset, "missing-box").severity == "warning"
    assert dataset[0].boxes is not None
    assert dataset[0].boxes.xyxy.tolist() == [[2, 3, 12, 13]]


@pytest.mark.parametrize(
    "bbox", [[2, 3, 0, 10], [2, 3, -4, 10], [100, 3, 4, 4], [float("nan"), 3, 4, 4], [2, 3, 0.5, 9], [1, 2], "x"]
)
def test_unusable_boxes_are_dropped_and_their_truth_stays(coco: Write, annotation: Annotation, bbox: object) -> None:
    dataset = read_coco(*coco([annotation(bbox=bbox), annotation(id=2, image_id=2)]))
    problem = only_problem(dataset, "box-dropped")
    assert (problem.severity, problem.index) == ("error", "annotations[0] (id 1)")
    assert dataset[0].boxes is not None
    assert len(dataset[0].boxes) == 0
    assert len(dataset.truth(0)) == 1


def test_boxes_that_overhang_are_clipped(coco: Write, annotation: Annotation) -> None:
    dataset = read_coco(*coco([annotation(bbox=[-5, 15, 60, 60], segmentation=None)]))
    assert only_problem(dataset, "box-clipped").severity == "warning"
    assert dataset[0].boxes is not None
    assert dataset[0].boxes.xyxy.tolist() == [[0, 15, 30, 20]]


def test_box_and_mask_that_differ_are_reported(coco: Write, annotation: Annotation) -> None:
    corners = [2, 3, 12, 13]  # x0, y0, x1, y1 by mistake
    assert "3.0 pixels" in only_problem(read_coco(*coco([annotation(bbox=corners)])), "box-mask-mismatch").message


def test_polygons_that_overhang_are_reported(coco: Write, annotation: Annotation) -> None:
    ring = [25, 3, 35, 3, 35, 13, 25, 13]
    dataset = read_coco(*coco([annotation(segmentation=[ring], bbox=[25, 3, 5, 10])]))
    assert "5.0 pixels" in only_problem(dataset, "polygon-outside").message
    assert dataset.truth(0).masks().sum() == 50


def test_an_image_whose_annotations_are_all_dropped_is_said_to_be(coco: Write, annotation: Annotation) -> None:
    dataset = read_coco(*coco([annotation(bbox=[0, 0, 0, 0], segmentation=[])]))
    assert only_problem(dataset, "all-annotations-dropped").index == "images[0] (id 1)"
    assert len(dataset) == 2


def test_clicks(coco: Write, annotation: Annotation) -> None:
    rows = [
        annotation(id=1, point=[4, 5]),
        annotation(id=2, keypoints=[0, 0, 0, 6, 7, 2]),
        annotation(id=3, keypoints=[1, 1, 2, 6, 7, 2]),  # two visible: not a click
        annotation(id=4, point=[4, 500]),
    ]
    dataset = read_coco(*coco(rows))
    assert dataset[0].points is not None
    assert dataset[0].points.xy.tolist() == [[4, 5], [6, 7], [7, 8], [7, 8]]
    assert only_problem(dataset, "point-outside").index == "annotations[3] (id 4)"


def test_clicks_alone_give_no_boxes(coco: Write, annotation: Annotation) -> None:
    dataset = read_coco(*coco([annotation(bbox=None, segmentation=None, point=[4, 5])]))
    assert checks(dataset) == []
    assert dataset[0].boxes is None
    assert dataset[0].points is not None
    assert len(dataset[0].points) == 1


@pytest.mark.parametrize(
    ("change", "check"),
    [
        ({"image_id": 77}, "unknown-image"),
        ({"category_id": 77}, "unknown-category"),
        ({"image_id": [1]}, "malformed-annotation"),
        ({"category_id": {}}, "malformed-annotation"),
        ({"bbox": None, "segmentation": None}, "missing-box"),
    ],
)
def test_annotations_that_belong_nowhere_are_left_out(
    coco: Write, annotation: Annotation, change: dict[str, Any], check: str
) -> None:
    dataset = read_coco(*coco([annotation(), annotation(id=204, **change)]))
    problem = only_problem(dataset, check)
    assert (problem.severity, problem.index) == ("error", "annotations[1] (id 204)")
    assert dataset[0].boxes is not None
    assert len(dataset[0].boxes) == 1


def test_records_that_are_no_objects(coco: Write, annotation: Annotation) -> None:
    image = {"id": 1, "file_name": "a.jpg", "height": 20, "width": 30}
    dataset = read_coco(
        *coco([annotation(), None, 3], [image, "x"], [{"id": 5, "name": "Head"}, {"id": "six", "name": "Six"}, 7])
    )
    assert [(p.check, p.index) for p in dataset.problems] == [
        ("malformed-category", "categories[1] (id six)"),
        ("malformed-category", "categories[2]"),
        ("malformed-image", "images[1]"),
        ("malformed-annotation", "annotations[1]"),
        ("malformed-annotation", "annotations[2]"),
    ]


def test_repeated_annotation_ids_and_crowds(coco: Write, annotation: Annotation) -> None:
    dataset = read_coco(*coco([annotation(), annotation(), annotation(id=3, iscrowd=1)]))
    assert only_problem(dataset, "duplicate-annotation-id").index == "annotations[1] (id 1)"
    assert only_problem(dataset, "crowd-region").index == "annotations[2] (id 3)"
    assert len(dataset.truth(0)) == 2


def test_repeated_images_are_used_once(coco: Write, annotation: Annotation) -> None:
    image = {"id": 1, "file_name": "a.jpg", "height": 20, "width": 30}
    images = [image, {**image, "file_name": "b.jpg"}, {**image, "id": 3}]
    dataset = read_coco(*coco([annotation(), annotation(id=2, image_id=3)], images))
    assert only_problem(dataset, "duplicate-image-id").index == "images[1] (id 1)"
    assert only_problem(dataset, "duplicate-file-name").index == "images[2] (id 3)"
    assert [sample.image_id for sample in dataset] == [1]
    assert "unknown-image" not in checks(dataset)


def test_missing_and_escaping_images_are_left_out(coco: Write, annotation: Annotation, tmp_path: Path) -> None:
    (tmp_path / "secret.jpg").write_text("")
    images = [
        {"id": 1, "file_name": "gone.jpg", "height": 20, "width": 30},
        {"id": 2, "file_name": "../secret.jpg", "height": 20, "width": 30},
        {"id": 3, "file_name": "a.jpg", "height": 0, "width": 30},
        {"id": 4, "file_name": "a.jpg", "height": 20_000, "width": 30_000},
    ]
    dataset = read_coco(*coco([annotation()], images))
    assert len(dataset) == 0
    assert only_problem(dataset, "missing-image").file.endswith("gone.jpg")
    assert "leads outside" in only_problem(dataset, "path-outside").message
    assert [p.index for p in dataset.problems if p.check == "malformed-image"] == [
        "images[2] (id 3)",
        "images[3] (id 4)",
    ]


def test_a_size_that_is_not_stated_is_read_from_the_file(coco: Write, annotation: Annotation) -> None:
    annotations, folder = coco([annotation()], [{"id": 1, "file_name": "a.jpg"}, {"id": 2, "file_name": "x.jpg"}])
    (folder / "x.jpg").write_text("no picture")
    dataset = read_coco(annotations, folder)
    assert dataset[0].size == (20, 30)
    assert only_problem(dataset, "unreadable-image").index == "images[1] (id 2)"


def test_categories_keep_their_place_unless_dropped(coco: Write, annotation: Annotation) -> None:
    categories = [
        {"id": 1, "name": "_background_", "supercategory": ""},
        {"id": 5, "name": "hood"},
        {"id": 6, "name": "x"},
    ]
    rows = [annotation(), annotation(id=2, category_id=1)]
    dataset = read_coco(*coco(rows, categories=categories), drop=("_background_",), default_object="car")
    assert dataset.vocabulary.names == ("hood", "x")
    assert dataset.vocabulary.categories[0].object == "car"
    assert len(dataset.truth(0)) == 1
    assert checks(dataset) == []
    assert len(read_coco(*coco(rows, categories=categories)).vocabulary) == 3


def test_one_name_in_several_objects_is_told_apart(coco: Write, annotation: Annotation) -> None:
    categories = [{"id": i, "name": "Head", "supercategory": whole} for i, whole in [(5, "Bird"), (6, "Fish")]]
    categories.append({"id": 6, "name": "Tail", "supercategory": "Fish"})
    dataset = read_coco(*coco([annotation()], categories=categories))
    assert dataset.vocabulary.names == ("Bird Head", "Fish Head")
    assert only_problem(dataset, "duplicate-category-id").index == "categories[2] (id 6)"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"{", r"labels\.json is not JSON \(line 1, column 2"),
        (b"\xff\xfe", r"labels\.json is not JSON in UTF-8"),
        (b"[" * 100_000, r"labels\.json is not JSON"),
        (b"[]", r"labels\.json has no list 'images'"),
        (b'{"images": [], "annotations": {}}', r"has no list 'annotations'"),
        (b'{"images": [], "annotations": [], "categories": []}', r"declares no usable category"),
    ],
)
def test_files_that_are_no_coco_are_refused_by_name(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "labels.json").write_bytes(content)
    with pytest.raises(UserError, match=message):
        read_coco(tmp_path / "labels.json", tmp_path)


def test_missing_file_and_folder_are_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no annotation file .*none\.json"):
        read_coco(tmp_path / "none.json", tmp_path)
    with pytest.raises(UserError, match=r"no image folder .*none"):
        read_coco(tmp_path / "labels.json", tmp_path / "none")


def test_reading_changes_nothing(coco: Write, annotation: Annotation) -> None:
    path, folder = coco([annotation()])
    before = {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in [path, *folder.iterdir()]}
    read_coco(path, folder).truth(0)
    assert {p: (p.stat().st_mtime_ns, p.read_bytes()) for p in [path, *folder.iterdir()]} == before
    assert json.loads(path.read_text())["annotations"]
