"""VOC's layout: a rendered world as the real reader sees it, and every way a record can be damaged."""

from __future__ import annotations

import shutil
from pathlib import Path
from xml.etree import ElementTree as ET

import numpy as np
import pytest
from PIL import Image

from weakly.data.catalog import open_dataset
from weakly.data.check import check
from weakly.data.class_names import BACKGROUND_WORDS, COCO_NAMES, VOC_NAMES, background_words, clip_names
from weakly.data.dataset import Dataset
from weakly.data.menagerie.write_voc import VOC_CLASSES, write_voc
from weakly.data.voc import other_splits, read_voc
from weakly.errors import UserError

SPLITS = {"train": 4, "val": 2, "test": 2}
CAT, DOG = VOC_NAMES.index("cat"), VOC_NAMES.index("dog")


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A rendered world; tests only read it."""
    root = tmp_path_factory.mktemp("world") / "VOC2012"
    write_voc(root, SPLITS, seed=7, size=64, workers=1)
    return root


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Three images of VOC's own classes, in a folder tests may damage: a cat, a cat and a dog, nothing."""
    root = tmp_path / "VOC2012"
    write_image_set(root, "Segmentation/train", ["a", "b", "c"])
    add(root, "a", {"cat": (2, 8)})
    add(root, "b", {"cat": (0, 4), "dog": (4, 9)})
    add(root, "c", {})
    return root


def write_image_set(root: Path, name: str, lines: list[str]) -> None:
    path = root / "ImageSets" / f"{name}.txt"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n")


def add(root: Path, stem: str, objects: dict[str, tuple[int, int]], maps: str = "SegmentationClass") -> None:
    """An image of 12 x 10 pixels, each object filling some rows of its label map, framed by void, and the XML."""
    for folder in ("JPEGImages", "Annotations", maps):
        (root / folder).mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (12, 10), (9, 90, 200)).save(root / f"JPEGImages/{stem}.jpg")
    label_map = np.zeros((10, 12), np.uint8)
    label_map[:, 0] = 255
    for name, (first, last) in objects.items():
        label_map[first:last, 2:] = VOC_NAMES.index(name) + 1
    Image.fromarray(label_map).save(root / f"{maps}/{stem}.png")
    write_xml(root, stem, list(objects))


def write_xml(root: Path, stem: str, names: list[str]) -> None:
    top = ET.Element("annotation")
    for name in names:
        element = ET.SubElement(top, "object")
        ET.SubElement(element, "name").text = name
        part = ET.SubElement(element, "part")
        ET.SubElement(part, "name").text = "head"
    (root / f"Annotations/{stem}.xml").write_bytes(ET.tostring(top))


def tags(dataset: Dataset) -> dict[str, list[int]]:
    return {s.image_id: s.tags.labels.tolist() for s in dataset if s.tags is not None}


class TestRenderedWorld:
    def test_its_classes_and_splits_are_read(self, world: Path) -> None:
        for split, count in SPLITS.items():
            dataset = read_voc(world, split)
            assert len(dataset) == count
            assert dataset.vocabulary.names == VOC_CLASSES
            assert [s.size for s in dataset] == [(64, 64)] * count
            assert {p.check for p in dataset.problems} <= {"no-tag"}

    def test_tags_are_the_classes_of_the_truth(self, world: Path) -> None:
        dataset = read_voc(world, "train")
        for index, sample in enumerate(dataset):
            label_map = dataset.truth(index).label_map
            assert sample.tags.labels.tolist() == sorted(set(label_map.ravel().tolist()) - {len(VOC_CLASSES)})
            stored = np.asarray(Image.open(world / f"SegmentationClass/{sample.image_id}.png"))
            assert ((stored == 0) == (label_map == dataset.vocabulary.background)).all()
            assert (stored[stored > 0] - 1 == label_map[stored > 0]).all()

    def test_both_sources_of_tags_agree_where_rendered_borders_are_certain(self, world: Path) -> None:
        pixels, xml = (open_dataset(kind, world, "train") for kind in ("voc", "voc-xml"))
        assert tags(pixels) == tags(xml)
        assert (pixels.extra["tags"], xml.extra["tags"]) == ("pixels", "xml")

    @pytest.mark.parametrize("kind", ["voc", "voc-xml"])
    def test_the_test_split_has_truth_but_no_tags_nor_boxes(self, world: Path, kind: str) -> None:
        dataset = open_dataset(kind, world, "test")
        assert all(s.tags is s.boxes is s.points is None for s in dataset)
        assert dataset.has_truth()
        assert dataset.extra["tags"] is None

    def test_the_check_finds_it_sound(self, world: Path) -> None:
        report = check("voc", world, "train", workers=1)
        assert report.exit_code == 0
        assert set(report.counts) <= {"no-tag"}
        assert report.annotations == sum(map(len, tags(read_voc(world, "train")).values())) > 0


def test_pixels_give_tags_and_void_none(root: Path) -> None:
    dataset = read_voc(root, "train")
    assert dataset.vocabulary.names == VOC_NAMES
    assert tags(dataset) == {"a": [CAT], "b": [CAT, DOG], "c": []}
    truth = dataset.truth(0).label_map
    assert truth[3, 5] == CAT
    assert truth[0, 5] == dataset.vocabulary.background == 20
    assert (truth[:, 0] == 255).all()


def test_an_image_without_tag_is_kept_with_a_warning(root: Path) -> None:
    for source in ("pixels", "xml"):
        (problem,) = read_voc(root, "train", tags=source).problems
        assert (problem.check, problem.severity, problem.index) == ("no-tag", "warning", "image id c")


def test_the_sources_differ_where_pixels_and_objects_do(root: Path) -> None:
    write_xml(root, "a", ["cat", "dog"])
    assert tags(read_voc(root, "train"))["a"] == [CAT]
    assert tags(read_voc(root, "train", tags="xml"))["a"] == [CAT, DOG]


def test_lists_of_two_paths_and_the_augmented_label_maps(root: Path) -> None:
    add(root, "d", {"dog": (0, 5)}, maps="SegmentationClassAug")
    lines = ["/JPEGImages/d.jpg /SegmentationClassAug/d.png", "/JPEGImages/a.jpg /SegmentationClass/a.png"]
    write_image_set(root, "SegmentationAug/train_aug", lines)
    dataset = read_voc(root, "trainaug")
    assert tags(dataset) == {"d": [DOG], "a": [CAT]}
    write_image_set(root, "SegmentationAug/train_aug", ["d"])
    record = read_voc(root, "train_aug").records[0]
    assert record.label_map_path == root / "SegmentationClassAug/d.png"


def test_detection_images_need_no_label_map(root: Path) -> None:
    write_image_set(root, "Main/trainval", ["a", "b"])
    (root / "SegmentationClass/a.png").unlink()
    dataset = read_voc(root, "trainval", tags="xml")
    assert dataset.problems == ()
    assert [record.label_map_path is None for record in dataset.records] == [True, False]


@pytest.mark.parametrize(
    ("file", "source", "check_name"),
    [
        ("JPEGImages/a.jpg", "pixels", "missing-image"),
        ("SegmentationClass/a.png", "pixels", "label-map-missing"),
        ("Annotations/a.xml", "xml", "tags-unreadable"),
    ],
)
def test_missing_files_cost_one_record(root: Path, file: str, source: str, check_name: str) -> None:
    (root / file).unlink()
    dataset = read_voc(root, "train", tags=source)
    assert list(tags(dataset)) == ["b", "c"]
    problem = dataset.problems[0]
    assert (problem.check, problem.severity, problem.file) == (check_name, "error", str(root / file))
    assert problem.index == "line 1 (a)"
    assert problem.remedy


@pytest.mark.parametrize(
    ("file", "source", "check_name"),
    [
        ("JPEGImages/a.jpg", "xml", "unreadable-image"),
        ("SegmentationClass/a.png", "pixels", "label-map-unreadable"),
        ("Annotations/a.xml", "xml", "tags-unreadable"),
    ],
)
def test_damaged_files_cost_one_record(root: Path, file: str, source: str, check_name: str) -> None:
    (root / file).write_bytes(b"<annotation><object>\x00\xff")
    dataset = read_voc(root, "train", tags=source)
    assert list(tags(dataset)) == ["b", "c"]
    assert [p.check for p in dataset.problems] == [check_name, "no-tag"]


def test_a_label_map_truncated_after_its_header_costs_one_record(root: Path) -> None:
    path = root / "SegmentationClass/a.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 20, (10, 12), np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[:-60])
    dataset = read_voc(root, "train")
    assert list(tags(dataset)) == ["b", "c"]
    assert dataset.problems[0].check == "tags-unreadable"


def test_a_label_map_of_another_size_is_no_truth(root: Path) -> None:
    Image.new("L", (5, 5)).save(root / "SegmentationClass/a.png")
    assert list(tags(read_voc(root, "train"))) == ["b", "c"]
    kept = read_voc(root, "train", tags="xml")
    assert kept.records[0].label_map_path is None
    assert (kept.problems[0].check, kept.problems[0].severity) == ("label-map-size", "warning")


def test_unknown_classes_are_named_with_a_suggestion(root: Path) -> None:
    write_xml(root, "a", ["Cat ", "dog"])
    problem = read_voc(root, "train", tags="xml").problems[0]
    assert "no class 'Cat'; did you mean 'cat'?" in problem.message
    assert problem.index == "object[0] of line 1 (a)"
    Image.fromarray(np.full((10, 12), 77, np.uint8)).save(root / "SegmentationClass/a.png")
    dataset = read_voc(root, "train")
    assert "[77]" in dataset.problems[0].message
    assert tags(dataset)["a"] == []


def test_a_document_type_is_refused(root: Path) -> None:
    bomb = b'<!DOCTYPE a [<!ENTITY b "bbbb">]><annotation><object><name>&b;</name></object></annotation>'
    (root / "Annotations/a.xml").write_bytes(bomb)
    assert "document type" in read_voc(root, "train", tags="xml").problems[0].message


@pytest.mark.parametrize("line", ["../../secret", "/etc/passwd /etc/passwd", "/../x.jpg /SegmentationClass/a.png"])
def test_paths_cannot_leave_the_root(root: Path, tmp_path: Path, line: str) -> None:
    shutil.copytree(root / "JPEGImages", tmp_path / "secret")
    write_image_set(root, "Segmentation/train", [line, "a"])
    dataset = read_voc(root, "train")
    assert list(tags(dataset)) == ["a"]
    assert dataset.problems[0].check in {"path-outside", "missing-image"}
    assert all(s.path.is_relative_to(root.resolve()) for s in dataset)


def test_odd_lines_are_reported(root: Path) -> None:
    write_image_set(root, "Segmentation/train", ["a", "", "a", "a b c"])
    found = [(p.check, p.index) for p in read_voc(root, "train").problems]
    assert found == [("duplicate-image", "line 3"), ("malformed-line", "line 4")]


def test_class_names_come_from_the_class_list_the_image_sets_or_voc(root: Path) -> None:
    write_image_set(root, "Main/cat_train", ["a  1"])
    assert read_voc(root, "train").vocabulary.names == VOC_NAMES
    write_image_set(root, "Main/zebra_val", ["a  1"])
    assert read_voc(root, "train").vocabulary.names == ("cat", "zebra")
    (root / "classes.txt").write_text("\n".join(reversed(VOC_NAMES)))
    assert read_voc(root, "train").vocabulary.names == VOC_NAMES[::-1]


def test_splits_that_share_an_image_leak(root: Path) -> None:
    write_image_set(root, "Segmentation/val", ["c"])
    write_image_set(root, "Segmentation/trainval", ["a", "b", "c"])
    assert other_splits(root, "train") == {"val": {"c"}}
    assert other_splits(root, "trainval") == {}
    assert check("voc", root, "val", workers=1).counts == {"split-leak": 1, "no-tag": 1}


def test_the_content_hash_knows_the_tags(root: Path) -> None:
    before = check("voc-xml", root, "train", workers=1).content_hash
    write_xml(root, "a", ["dog"])
    assert check("voc-xml", root, "train", workers=1).content_hash != before


def test_missing_folders_and_image_sets_are_named(root: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no image set 'dev' .*choose one of train"):
        read_voc(root, "dev")
    with pytest.raises(UserError, match="is a path"):
        read_voc(root, "../train")
    with pytest.raises(UserError, match="no folder .*JPEGImages"):
        read_voc(tmp_path, "train")


class TestNamesForClip:
    """Spec fma-wsss section 8.2."""

    def test_voc(self) -> None:
        texts = clip_names(VOC_NAMES)
        assert (texts[2], texts[8], texts[14], texts[19]) == (
            "bird avian",
            "chair seat",
            "person with clothes,people,human",
            "tvmonitor screen",
        )
        assert sum(text != name for text, name in zip(texts, VOC_NAMES, strict=True)) == 4

    def test_coco(self) -> None:
        texts = clip_names(COCO_NAMES)
        assert len(set(texts)) == len(COCO_NAMES) == 80
        assert (texts[0], texts[31], texts[79]) == ("person with clothes,people,human", "sknowboard", "toothbrush")
        assert [texts[COCO_NAMES.index(n)] for n in ("tie", "spoon", "tv")] == [
            "necktie",
            "dessertspoon",
            "tvmonitor screen",
        ]

    def test_background_words_are_those_that_name_no_class(self) -> None:
        assert len(background_words(VOC_NAMES)) == len(BACKGROUND_WORDS) == 25
        assert set(BACKGROUND_WORDS) - set(background_words(COCO_NAMES)) == {"keyboard", "sign"}
        assert background_words(VOC_NAMES, ["void"]) == ("void",)

    def test_other_names_are_their_own_texts_and_any_can_be_overridden(self) -> None:
        assert clip_names(["fire_truck", "bird"]) == ("fire truck", "bird")
        assert clip_names(["cat", "dog"], {"dog": "a hound"}) == ("cat", "a hound")
        with pytest.raises(UserError, match="no such class; did you mean 'dog'"):
            clip_names(["cat", "dog"], {"dogs": "hounds"})
