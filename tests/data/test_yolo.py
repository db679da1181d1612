"""YOLO's folders: boxes, polygons, YAML files as people write them, and damage."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from weakly.data.catalog import open_dataset
from weakly.data.check import check
from weakly.data.yolo import find_config, read_yolo
from weakly.errors import UserError

COCO128 = Path(os.environ.get("WEAKLY_DATA", Path(__file__).parents[2].parent / "shared" / "data")) / "coco128"
YAML = "path: .\ntrain: images/train\nval: images/val\ntest: images/test\nnames: {2: cat, 7: dog}\n"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Images of 100 x 50 pixels: a (a box and a polygon), b (nothing)."""
    root = tmp_path / "pets"
    add(root, "train/a", "7 0.5 0.5 0.2 0.4\n2 0 0 0.1 0 0.1 0.2 0 0.2\n")
    add(root, "train/b", "")
    add(root, "test/c", "2 0.5 0.5 1 1")
    (root / "data.yaml").write_text(YAML)
    return root


def add(root: Path, name: str, labels: str | None) -> None:
    image, text = root / f"images/{name}.jpg", root / f"labels/{name}.txt"
    image.parent.mkdir(parents=True, exist_ok=True)
    text.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (100, 50)).save(image)
    if labels is not None:
        text.write_text(labels)


def test_boxes_polygons_and_tags(root: Path) -> None:
    dataset = open_dataset("yolo", root, "train")
    assert dataset.vocabulary.names == ("cat", "dog")
    assert [dataset.vocabulary.source_id(i) for i in (0, 1)] == [2, 7]
    assert [s.tags.labels.tolist() for s in dataset] == [[0, 1], []]
    assert all(s.boxes is None for s in dataset)
    truth = dataset.instances(0)
    assert np.allclose(truth.boxes, [[40, 15, 60, 35], [0, 0, 10, 10]])
    assert truth.labels.tolist() == [1, 0]
    assert dataset.instances(0, masks=True).labels.tolist() == [0]
    assert dataset.truth(0).masks()[0, :10, :10].all()
    assert dataset.records[1].instances == ()


def test_the_test_split_has_no_tags(root: Path) -> None:
    dataset = read_yolo(root / "data.yaml", "test")
    assert dataset[0].tags is None
    assert dataset.instances(0).boxes.tolist() == [[0, 0, 100, 50]]


def test_images_without_a_label_file_show_nothing_unless_the_yaml_says_otherwise(root: Path) -> None:
    (root / "labels/train/b.txt").unlink()
    assert len(read_yolo(root / "data.yaml", "train")) == 2
    (root / "data.yaml").write_text(YAML + "skip_if_label_file_missing: true\n")
    dataset = read_yolo(root / "data.yaml", "train")
    assert [s.image_id for s in dataset] == ["a"]
    assert dataset.problems[0].check == "annotation-missing"


@pytest.mark.parametrize(
    ("line", "name", "tagged"),
    [
        ("cat 0.5 0.5 0.2 0.2", "malformed-line", False),
        ("9 0.5 0.5 0.2 0.2", "unknown-class", False),
        ("2 0.5 0.5 0.2", "malformed-line", True),
        ("2 0.5 0.5 0.2 nan", "malformed-line", True),
        ("2 0.5 0.5 0.2 0.2 0.9", "malformed-line", True),
        ("2 0.1 0.1 0.2 0.2 0.3 0.3", "malformed-line", True),
        ("2 0.5 0.5 0.001 0.2", "box-outside", True),
        ("2 1.5 0.5 0.2 0.2", "box-outside", True),
    ],
)
def test_a_bad_line_costs_one_object(root: Path, line: str, name: str, tagged: bool) -> None:
    (root / "labels/train/a.txt").write_text(f"7 0.5 0.5 0.2 0.4\n{line}\n")
    dataset = read_yolo(root / "data.yaml", "train")
    problem = dataset.problems[0]
    assert (problem.check, problem.severity, problem.index) == (name, "error", "line 2 (a)")
    assert problem.file == str(root / "labels/train/a.txt")
    assert dataset.instances(0).labels.tolist() == [1]
    assert dataset[0].tags.labels.tolist() == ([0, 1] if tagged else [1])


def test_shares_of_six_digits_make_whole_pixels(root: Path) -> None:
    Image.new("RGB", (640, 480)).save(root / "images/train/a.jpg")
    box = f"{271.5 / 640:.6f} {295.5 / 480:.6f} {1 / 640:.6f} {1 / 480:.6f}"
    (root / "labels/train/a.txt").write_text(f"2 {box}")
    assert read_yolo(root / "data.yaml", "train").instances(0).boxes.tolist() == [[271, 295, 272, 296]]


def test_boxes_are_clipped(root: Path) -> None:
    (root / "labels/train/a.txt").write_text("2 0.9 0.5 0.4 0.4")
    dataset = read_yolo(root / "data.yaml", "train")
    assert dataset.problems[0].check == "box-clipped"
    assert dataset.instances(0).boxes[0, 2] == 100


def test_damage_costs_one_record(root: Path, tmp_path: Path) -> None:
    add(root, "train/d", "")
    (root / "images/train/d.jpg").write_bytes(b"")
    add(root, "train/e", "")
    (root / "labels/train/e.txt").write_bytes(b"\xff\xfe\x00")
    (root / "labels/train/f.txt").write_text("")
    Image.new("RGB", (9, 9)).save(tmp_path / "outside.jpg")
    (root / "images/train/g.jpg").symlink_to(tmp_path / "outside.jpg")
    report = check("yolo", root, "train", workers=1)
    assert report.images == 2
    assert report.counts == dict.fromkeys(
        ["path-outside", "missing-image", "unreadable-image", "annotation-unreadable", "no-tag"], 1
    )


def test_the_same_stem_in_two_splits_leaks(root: Path) -> None:
    add(root, "test/a", "")
    assert check("yolo", root, "train", workers=1).counts == {"split-leak": 1, "no-tag": 1}


@pytest.mark.parametrize(
    "text",
    [
        "train: ../images/train\nnames: [x, y, cat, a, b, c, d, dog]",
        "path: ../datasets/pets\ntrain: images/train\nnames: {2: cat, 7: dog}",
        "path: /datasets/pets\ntrain: ./images/train\nnames: {2: cat, 7: dog}",
        "path: images\ntrain: train\nnames: {2: cat, 7: dog}",
    ],
)
def test_yaml_files_as_people_write_them(root: Path, text: str) -> None:
    (root / "data.yaml").write_text(text)
    dataset = read_yolo(root / "data.yaml", "train")
    assert [dataset.vocabulary.names[i] for i in dataset.instances(0).labels] == ["dog", "cat"]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("- a", "no YAML mapping"),
        ("names: [", "cannot be read as YAML"),
        ("train: images/train", "has no 'names'"),
        ("train: images/train\nnames: {a: b}", "has no 'names'"),
        ("val: images/val\nnames: [a]", "has no image folder 'train'; it has val"),
        ("train: images/nowhere\nnames: [a]", "no image folder .*nowhere"),
        ("train: /etc\nnames: [a]", "leads outside"),
        ("train: images/../../other\nnames: [a]", "leads outside"),
        ("train: !!python/object/apply:os.getcwd []\nnames: [a]", "cannot be read as YAML"),
    ],
)
def test_yaml_files_that_cannot_be_used(root: Path, text: str, message: str) -> None:
    (root / "data.yaml").write_text(text)
    with pytest.raises(UserError, match=message):
        read_yolo(root / "data.yaml", "train")


def test_the_yaml_file_is_found_or_named(root: Path) -> None:
    assert find_config(root).name == "data.yaml"
    (root / "data.yaml").rename(root / "pets.yml")
    assert find_config(root).name == "pets.yml"
    (root / "more.yaml").touch()
    with pytest.raises(UserError, match="2 YAML files"):
        find_config(root)
    with pytest.raises(UserError, match="no YAML file"):
        find_config(root / "images")


def test_images_elsewhere_are_named(root: Path, tmp_path: Path) -> None:
    (root / "images").rename(tmp_path / "pool")
    (root / "images").symlink_to(tmp_path / "pool")
    with pytest.raises(UserError, match="leads outside .* --images"):
        read_yolo(root / "data.yaml", "train")
    dataset = open_dataset("yolo", root, "train", images=tmp_path / "pool/train")
    assert len(dataset) == 2
    assert len(dataset.instances(0)) == 2


@pytest.mark.skipif(
    not COCO128.is_dir(), reason=f"no photographs in {COCO128}; name their parent folder with WEAKLY_DATA"
)
def test_photographs_of_coco() -> None:
    images = COCO128 / "images/val2017"
    boxes = open_dataset("yolo", COCO128 / "object_detection", "val", images=images)
    polygons = open_dataset("yolo", COCO128 / "instance_segmentation", "val", images=images)
    assert boxes.vocabulary.names == polygons.vocabulary.names
    assert (len(boxes), len(polygons)) == (128, 100)
    assert sum(len(boxes.instances(i)) for i in range(128)) == 898
    assert not boxes.has_truth()
    assert polygons.has_instances(masks=True)
    assert {p.check for p in boxes.problems} <= {"no-tag"}
