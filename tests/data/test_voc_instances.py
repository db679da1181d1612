"""VOC for detection: tags to learn from, boxes and masks to score, and every way an object can be damaged."""

from __future__ import annotations

from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from weakly.data.catalog import open_dataset
from weakly.data.check import check
from weakly.data.check_report import CheckReport
from weakly.data.class_names import VOC_NAMES
from weakly.data.dataset import Dataset
from weakly.data.menagerie.write_voc import VOC_CLASSES, write_voc
from weakly.data.voc_instances import INSTANCE_SETS, read_voc_instances
from weakly.data.voc_objects import read_objects
from weakly.errors import UserError
from weakly.vocabulary import Vocabulary

CAT, DOG = VOC_NAMES.index("cat"), VOC_NAMES.index("dog")
HEIGHT, WIDTH = 40, 60
SPLITS = {"train": 5, "val": 2, "test": 2}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A rendered world; tests only read it."""
    root = tmp_path_factory.mktemp("world") / "VOC2012"
    write_voc(root, SPLITS, seed=7, size=64, workers=1)
    return root


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Detection images a (a cat, and a dog that is difficult), b (a dog; masks) and c (nothing)."""
    root = tmp_path / "VOC2007"
    write_image_set(root, "Main/train", ["a", "b", "c"])
    write_image_set(root, "Segmentation/train", ["b"])
    add(root, "a", [obj("cat", (1, 1, 10, 10)), obj("dog", (21, 5, 40, 30), difficult=1)])
    add(root, "b", [obj("cat", (1, 1, 20, 20), difficult=1), obj("dog", (31, 11, 60, 40))])
    add(root, "c", [])
    write_maps(root, "b", {2: (30, 10, 60, 40)}, {2: DOG})
    return root


def write_image_set(root: Path, name: str, lines: list[str]) -> None:
    path = root / "ImageSets" / f"{name}.txt"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n")


def obj(name: str, box: tuple[Any, ...] | None, difficult: int | None = 0) -> ET.Element:
    element = ET.Element("object")
    ET.SubElement(element, "name").text = name
    if difficult is not None:
        ET.SubElement(element, "difficult").text = str(difficult)
    part = ET.SubElement(ET.SubElement(element, "part"), "bndbox")
    ET.SubElement(part, "xmin").text = "1"
    if box is not None:
        stated = ET.SubElement(element, "bndbox")
        for side, value in zip(("xmax", "xmin", "ymax", "ymin"), (box[2], box[0], box[3], box[1]), strict=True):
            ET.SubElement(stated, side).text = str(value)
    return element


def write_xml(root: Path, stem: str, objects: list[ET.Element], size: tuple[int, int] | None = (HEIGHT, WIDTH)) -> None:
    top = ET.Element("annotation")
    if size is not None:
        stated = ET.SubElement(top, "size")
        ET.SubElement(stated, "width").text, ET.SubElement(stated, "height").text = str(size[1]), str(size[0])
    top.extend(objects)
    (root / "Annotations").mkdir(parents=True, exist_ok=True)
    (root / f"Annotations/{stem}.xml").write_bytes(ET.tostring(top))


def add(root: Path, stem: str, objects: list[ET.Element]) -> None:
    (root / "JPEGImages").mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (WIDTH, HEIGHT), (9, 90, 200)).save(root / f"JPEGImages/{stem}.jpg")
    write_xml(root, stem, objects)


def write_maps(root: Path, stem: str, boxes: dict[int, tuple[int, ...]], categories: dict[int, int]) -> None:
    """An object map and a label map of filled rectangles {value: x0, y0, x1, y1}, with a void frame."""
    maps = {folder: np.zeros((HEIGHT, WIDTH), np.uint8) for folder in ("SegmentationObject", "SegmentationClass")}
    for value, (x0, y0, x1, y1) in boxes.items():
        maps["SegmentationObject"][y0:y1, x0:x1] = value
        maps["SegmentationClass"][y0:y1, x0:x1] = categories[value] + 1
    for folder, values in maps.items():
        values[0] = 255
        (root / folder).mkdir(exist_ok=True)
        Image.fromarray(values).save(root / folder / f"{stem}.png")


def tags(dataset: Dataset) -> dict[str, list[int]]:
    return {s.image_id: s.tags.labels.tolist() for s in dataset if s.tags is not None}


def checked(root: Path, kind: str = "voc-detection", *, fast: bool = False) -> CheckReport:
    return check(kind, root, "train", workers=1, fast=fast)


class TestRenderedWorld:
    def test_boxes_are_the_extents_of_the_masks(self, world: Path) -> None:
        dataset = open_dataset("voc-instances", world, "train")
        assert dataset.vocabulary.names == VOC_CLASSES
        for index in range(len(dataset)):
            truth, masks = dataset.instances(index), dataset.truth(index)
            assert len(truth) == len(masks) > 0
            assert np.array_equal(truth.boxes, masks.boxes)
            assert np.array_equal(truth.labels, masks.labels)
            union = masks.masks().any(0)
            assert np.array_equal(union, masks.label_map != len(VOC_CLASSES))

    def test_training_sees_tags_alone(self, world: Path) -> None:
        for kind in ("voc-detection", "voc-instances"):
            for index, sample in enumerate(dataset := open_dataset(kind, world, "train")):
                truth = dataset.instances(index)
                assert sample.boxes is sample.points is None
                assert sample.tags.labels.tolist() == sorted(set(truth.labels[~truth.difficult].tolist()))

    def test_the_test_split_has_truth_but_no_tags(self, world: Path) -> None:
        dataset = open_dataset("voc-detection", world, "test")
        assert all(s.tags is s.boxes is s.points is None for s in dataset)
        assert dataset.has_instances()
        assert dataset.has_instances(masks=True)

    def test_the_check_finds_it_sound(self, world: Path) -> None:
        report = check("voc-instances", world, "train", workers=1)
        assert report.exit_code == 0
        assert set(report.counts) <= {"no-tag"}
        dataset = open_dataset("voc-instances", world, "train")
        assert sum(c.objects for c in report.categories) == sum(len(dataset.instances(i)) for i in range(5))


class TestTruth:
    def test_boxes_difficult_flags_and_tags(self, root: Path) -> None:
        dataset = read_voc_instances(root, "train")
        assert dataset.vocabulary.names == VOC_NAMES
        truth = dataset.instances(0)
        assert truth.boxes.tolist() == [[0, 0, 10, 10], [20, 4, 40, 30]]
        assert truth.boxes.dtype == np.float32
        assert truth.labels.tolist() == [CAT, DOG]
        assert truth.difficult.tolist() == [False, True]
        assert tags(dataset) == {"a": [CAT], "b": [DOG], "c": []}
        assert tags(read_voc_instances(root, "train", difficult_tags=True)) == {
            "a": [CAT, DOG],
            "b": [CAT, DOG],
            "c": [],
        }

    def test_boxes_are_no_masks(self, root: Path) -> None:
        dataset = read_voc_instances(root, "train").select([0, 2])
        assert dataset.has_instances()
        assert not dataset.has_instances(masks=True)
        assert not dataset.has_truth()
        assert dataset.instances(0).rles is None
        assert len(dataset.truth(0)) == len(dataset.instances(0, masks=True)) == 0

    def test_masks_come_from_the_object_map_and_void_belongs_to_none(self, root: Path) -> None:
        dataset = read_voc_instances(root, "train")
        truth, masked = dataset.instances(1), dataset.instances(1, masks=True)
        assert len(truth.rles) == len(truth) == 2  # the difficult cat is void
        assert masked.labels.tolist() == [DOG]
        (mask,) = dataset.truth(1).masks()
        assert mask.sum() == 30 * 30
        assert mask[10:40, 30:60].all()

    def test_images_whose_truth_is_known(self, root: Path) -> None:
        dataset = read_voc_instances(root, "train")
        assert [s.image_id for s in dataset.with_instances()] == ["a", "b", "c"]
        assert [s.image_id for s in dataset.with_instances(masks=True)] == ["b", "c"]

    def test_an_image_set_is_looked_for_in_the_folder_of_the_task(self, root: Path) -> None:
        assert [s.image_id for s in read_voc_instances(root, "train", sets=INSTANCE_SETS)] == ["b"]
        assert len(open_dataset("voc-detection", root, "train")) == 3
        assert len(open_dataset("voc-instances", root, "train")) == 1

    def test_a_test_image_without_annotation_is_no_problem(self, root: Path) -> None:
        write_image_set(root, "Main/test", ["a", "b"])
        (root / "Annotations/a.xml").unlink()
        dataset = read_voc_instances(root, "test")
        assert len(dataset) == 2
        assert dataset.records[0].instances is None
        assert [s.image_id for s in dataset.with_instances()] == ["b"]
        assert dataset.problems == ()


@settings(max_examples=25)
@given(x=st.integers(1, WIDTH), y=st.integers(1, HEIGHT), data=st.data())
def test_a_box_of_first_and_last_pixels_covers_exactly_them(
    tmp_path_factory: pytest.TempPathFactory, x: int, y: int, data: st.DataObject
) -> None:
    last_x, last_y = data.draw(st.integers(x, WIDTH)), data.draw(st.integers(y, HEIGHT))
    root = tmp_path_factory.getbasetemp() / "one"
    write_xml(root, "a", [obj("cat", (x, y, last_x, last_y), difficult=None)])
    problems: list[Any] = []
    vocabulary = Vocabulary.from_names(["cat"])
    found = read_objects(root / "Annotations/a.xml", (HEIGHT, WIDTH), vocabulary, "a", problems)
    (instance,) = found.instances
    x0, y0, x1, y1 = instance.box
    assert ((x1 - x0) * (y1 - y0), x0, y0) == ((last_x - x + 1) * (last_y - y + 1), x - 1, y - 1)
    assert not instance.difficult
    assert problems == []


class TestDamage:
    @pytest.mark.parametrize(
        ("box", "name", "severity"),
        [
            (None, "missing-box", "error"),
            (("1", "", "x", "9"), "malformed-box", "error"),
            ((1, 1, "nan", 9), "malformed-box", "error"),
            ((9, 1, 5, 9), "degenerate-box", "error"),
            ((61, 1, 90, 20), "box-outside", "error"),
            ((-50, -50, -1, -1), "box-outside", "error"),
            ((0, 0, 10, 10), "box-clipped", "warning"),
            ((50, 30, 80, 90), "box-clipped", "warning"),
        ],
    )
    def test_a_bad_box_costs_one_object_and_no_tag(self, root: Path, box: Any, name: str, severity: str) -> None:
        write_xml(root, "a", [obj("cat", box), obj("dog", (5, 5, 9, 9))])
        dataset = read_voc_instances(root, "train")
        problem = dataset.problems[0]
        assert (problem.check, problem.severity) == (name, severity)
        assert problem.index == "object[0] of line 1 (a)"
        assert problem.file == str(root / "Annotations/a.xml")
        assert problem.remedy
        assert tags(dataset)["a"] == [CAT, DOG]
        labels = dataset.instances(0).labels.tolist()
        assert labels == ([DOG] if severity == "error" else [CAT, DOG])

    def test_clipped_boxes_lie_inside(self, root: Path) -> None:
        write_xml(root, "a", [obj("cat", (50, 30, 80, 90))])
        assert read_voc_instances(root, "train").instances(0).boxes.tolist() == [[49, 29, 60, 40]]

    def test_numbers_of_objects_survive_bad_ones(self, root: Path) -> None:
        write_xml(root, "b", [obj("cat", None), obj("dog", (31, 11, 60, 40))])
        dataset = read_voc_instances(root, "train")
        assert dataset.instances(1, masks=True).labels.tolist() == [DOG]

    def test_unknown_classes(self, root: Path) -> None:
        write_xml(root, "a", [obj("Cat", (1, 1, 9, 9)), obj("dog", (1, 1, 9, 9))])
        dataset = read_voc_instances(root, "train")
        assert dataset.problems[0].check == "unknown-class"
        assert "did you mean 'cat'?" in dataset.problems[0].message
        assert tags(dataset)["a"] == [DOG]

    def test_another_size_than_stated(self, root: Path) -> None:
        write_xml(root, "a", [obj("cat", (1, 1, 9, 9))], size=(80, 120))
        assert checked(root).counts["image-size"] == 1
        write_xml(root, "a", [obj("cat", (1, 1, 9, 9))], size=(0, 0))
        assert "image-size" not in checked(root).counts

    @pytest.mark.parametrize(
        ("file", "content", "name"),
        [
            ("JPEGImages/a.jpg", None, "missing-image"),
            ("JPEGImages/a.jpg", b"no image", "unreadable-image"),
            ("Annotations/a.xml", None, "annotation-missing"),
            ("Annotations/a.xml", b"<annotation><object>", "annotation-unreadable"),
            ("Annotations/a.xml", b"<!DOCTYPE a><annotation/>", "annotation-unreadable"),
        ],
    )
    def test_bad_files_cost_one_record(self, root: Path, file: str, content: bytes | None, name: str) -> None:
        (root / file).unlink() if content is None else (root / file).write_bytes(content)
        report = checked(root)
        assert report.images == 2
        problem = report.problems[0]
        assert (problem.check, problem.severity, problem.file) == (name, "error", str(root / file))
        assert (problem.index, report.exit_code) == ("line 1 (a)", 3)

    def test_paths_cannot_leave_the_root(self, root: Path, tmp_path: Path) -> None:
        Image.new("RGB", (5, 5)).save(tmp_path / "secret.jpg")
        Image.new("L", (WIDTH, HEIGHT), 1).save(tmp_path / "secret.png")
        (root / "SegmentationObject/a.png").symlink_to(tmp_path / "secret.png")
        write_image_set(root, "Main/train", ["../../secret", "a"])
        dataset = read_voc_instances(root, "train")
        assert [p.check for p in dataset.problems] == ["path-outside", "path-outside"]
        assert dataset.records[0].object_map_path is None

    def test_missing_folders_are_named(self, root: Path, tmp_path: Path) -> None:
        with pytest.raises(UserError, match="no image set 'dev'"):
            read_voc_instances(root, "dev")
        with pytest.raises(UserError, match="no folder .*JPEGImages"):
            read_voc_instances(tmp_path, "train")
        (root / "Annotations").rename(root / "XML")
        with pytest.raises(UserError, match="no folder .*Annotations"):
            read_voc_instances(root, "train")

    def test_an_image_in_two_splits_leaks(self, root: Path) -> None:
        write_image_set(root, "Main/val", ["c"])
        assert checked(root).counts["split-leak"] == 1
        assert "split-leak" not in checked(root, "voc-instances").counts

    def test_the_content_hash_knows_the_boxes(self, root: Path) -> None:
        before = checked(root).content_hash
        write_xml(root, "a", [obj("cat", (1, 1, 10, 11)), obj("dog", (21, 5, 40, 30), difficult=1)])
        assert checked(root).content_hash != before


class TestObjectMaps:
    def disagreements(self, root: Path) -> list[str]:
        return [p.message for p in checked(root).problems if p.check == "object-map-disagrees"]

    def test_a_sound_map_whose_difficult_object_is_void(self, root: Path) -> None:
        assert checked(root).counts == {"no-tag": 1}

    def test_values_of_no_object(self, root: Path) -> None:
        write_maps(root, "b", {2: (30, 10, 60, 40), 7: (0, 30, 5, 35)}, {2: DOG, 7: CAT})
        (message,) = self.disagreements(root)
        assert "[7]" in message
        assert checked(root, fast=True).counts == {"no-tag": 1}

    def test_objects_without_a_pixel(self, root: Path) -> None:
        write_maps(root, "b", {1: (0, 0, 20, 20)}, {1: CAT})
        (message,) = self.disagreements(root)
        assert "Object 2 has no pixel" in message

    def test_objects_in_another_order(self, root: Path) -> None:
        write_maps(root, "b", {2: (0, 0, 20, 20), 1: (30, 10, 60, 40)}, {2: CAT, 1: DOG})
        messages = self.disagreements(root)
        assert [m for m in messages if "pixels of object 1 and its box differ" in m]
        assert [m for m in messages if "Object 2 is a 'dog' but its pixels are 'cat'" in m]

    def test_a_void_border_is_no_disagreement(self, root: Path) -> None:
        write_maps(root, "b", {2: (33, 13, 57, 37)}, {2: DOG})
        assert self.disagreements(root) == []

    def test_maps_that_cannot_be_used(self, root: Path) -> None:
        path = root / "SegmentationObject/b.png"
        whole = path.read_bytes()
        Image.new("L", (5, 5)).save(path)
        dataset = read_voc_instances(root, "train")
        assert dataset.problems[0].check == "object-map-size"
        assert dataset.instances(1).rles is None
        path.write_bytes(whole[:-30])  # its header is sound
        assert checked(root).counts["object-map-unreadable"] == 1
        path.unlink()
        assert "object-map-missing" not in checked(root).counts
        assert checked(root, "voc-instances").counts["object-map-missing"] == 1
