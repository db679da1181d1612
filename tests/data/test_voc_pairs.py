"""XML beside images: folders, held-out shares, class lists and damage."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from PIL import Image

from weakly.data.catalog import open_dataset
from weakly.data.check import check
from weakly.data.voc_pairs import read_label_map, read_voc_pairs
from weakly.errors import UserError

DATA = Path(os.environ.get("WEAKLY_DATA", Path(__file__).parents[2].parent / "shared" / "data"))
BOARDS = DATA / "microcontrollers"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "boards"
    for number, name in enumerate(["nano", "pi", "nano", "esp"]):
        add(root / "images/train", f"t{number}", name)
    add(root / "images/test", "u0", "zero")
    return root


def add(folder: Path, stem: str, name: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (30, 20)).save(folder / f"{stem}.jpg")
    box = "<bndbox><xmin>3</xmin><ymin>4</ymin><xmax>10</xmax><ymax>12</ymax></bndbox>"
    path = r"<path>C:\Users\somebody\elsewhere.jpg</path>"
    (folder / f"{stem}.xml").write_text(f"<annotation>{path}<object><name>{name}</name>{box}</object></annotation>")


def test_a_folder_is_a_split_and_classes_come_from_all_of_them(root: Path) -> None:
    dataset = read_voc_pairs(root, "train")
    assert dataset.vocabulary.names == ("esp", "nano", "pi", "zero")
    assert [s.image_id for s in dataset] == ["train/t0", "train/t1", "train/t2", "train/t3"]
    assert [s.tags.labels.tolist() for s in dataset] == [[1], [2], [1], [0]]
    assert all(s.boxes is None for s in dataset)
    assert dataset.instances(0).boxes.tolist() == [[2, 3, 10, 12]]
    assert dataset.problems == ()
    assert not dataset.has_truth()


def test_test_images_have_truth_but_no_tags(root: Path) -> None:
    for split in ("test", "test@2"):
        dataset = read_voc_pairs(root, split)
        assert all(s.tags is None for s in dataset)
        assert dataset.has_instances()


def test_every_nth_image_is_held_out(root: Path) -> None:
    ids = {s: [x.image_id for x in read_voc_pairs(root, s)] for s in ("all", "train@2", "val@2", "test@2")}
    assert ids["all"] == ["test/u0", "train/t0", "train/t1", "train/t2", "train/t3"]
    assert ids["test@2"] == ids["val@2"] == ["test/u0", "train/t1", "train/t3"]
    assert sorted(ids["train@2"] + ids["test@2"]) == ids["all"]
    assert read_voc_pairs(root, "val@2")[0].tags is not None


def test_a_damaged_image_moves_no_other_one_between_the_shares(root: Path) -> None:
    before = {x.image_id for x in read_voc_pairs(root, "test@2")}
    (root / "images/train/t0.jpg").write_bytes(b"")
    assert {x.image_id for x in read_voc_pairs(root, "test@2")} == before


def test_class_lists_fix_the_order(root: Path) -> None:
    (root / "labelmap.pbtxt").write_text(
        "item {\n  name: \"zero\"\n  display_name: \"Z\"\n  id: 7\n}\nitem { id: 2 name: 'nano' } item{id:3 name:'pi'}"
    )
    dataset = read_voc_pairs(root, "train")
    assert dataset.vocabulary.names == ("nano", "pi", "zero")
    assert dataset.vocabulary.source_id(2) == 7
    (problem,) = [p for p in dataset.problems if p.check == "unknown-class"]
    assert problem.index == "object[0] of train/t3"
    (root / "classes.txt").write_text("esp\npi\nnano\nzero\n")
    assert read_voc_pairs(root, "train").vocabulary.names == ("esp", "pi", "nano", "zero")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "names no class"),
        ("item { id: 1 }", "Item 0 .* has no id or no name"),
        ("item { id: 1 name: 'a' } item { id: 1 name: 'b' }", "Item 1 .* has the id 1 of another one"),
        ("item { id: 1 name: 'a' } item { id: 2 name: 'a' }", "declared twice"),
    ],
)
def test_label_maps_that_say_nothing(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "labelmap.pbtxt").write_text(text)
    with pytest.raises(UserError, match=message):
        read_label_map(tmp_path / "labelmap.pbtxt")


def test_folders_without_images_above_them(root: Path) -> None:
    assert len(open_dataset("voc-pairs", root / "images", "train")) == 4
    assert len(open_dataset("voc-pairs", root, "all", images=Path("images/test"))) == 1


def test_damage_costs_one_record(root: Path, tmp_path: Path) -> None:
    folder = root / "images/train"
    (folder / "t0.jpg").unlink()
    (folder / "t1.xml").unlink()
    (folder / "t2.xml").write_text("<annotation>")
    add(tmp_path / "outside", "x", "pi")
    (folder / "t5.jpg").symlink_to(tmp_path / "outside/x.jpg")
    Image.new("RGB", (30, 20)).save(folder / "t3.png")
    report = check("voc-pairs", root, "train", workers=1)
    assert report.images == 1
    assert report.exit_code == 3
    assert report.counts == dict.fromkeys(
        ["path-outside", "duplicate-image", "missing-image", "annotation-missing", "annotation-unreadable"], 1
    )
    assert all(p.remedy and p.index for p in report.problems)


def test_the_same_stem_in_two_folders_leaks(root: Path) -> None:
    add(root / "images/test", "t0", "nano")
    assert check("voc-pairs", root, "train", workers=1).counts == {"split-leak": 1}
    assert check("voc-pairs", root, "all", workers=1).counts == {}


@pytest.mark.parametrize("split", ["dev", "../images", "test@1", "test@", "dev@3", "."])
def test_unknown_splits_are_named(root: Path, split: str) -> None:
    with pytest.raises(UserError, match=r"choose one of test, train, all, train@5|take every 2nd"):
        read_voc_pairs(root, split)


def test_nothing_to_read_is_said(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="There is no folder"):
        read_voc_pairs(tmp_path / "nowhere", "all")
    Image.new("RGB", (30, 20)).save(tmp_path / "a.jpg")
    with pytest.raises(UserError, match="No annotation .* names an object"):
        read_voc_pairs(tmp_path, "all")


@pytest.mark.skipif(
    not BOARDS.is_dir(), reason=f"no photographs in {BOARDS}; name their parent folder with WEAKLY_DATA"
)
def test_photographs_of_circuit_boards() -> None:
    dataset = open_dataset("voc-pairs", BOARDS, "all")
    assert dataset.vocabulary.names == ("Raspberry_Pi_3", "Arduino_Nano", "ESP8266", "Heltec_ESP32_Lora")
    assert (len(dataset), dataset.problems) == (149, ())
    labels = [int(label) for i in range(len(dataset)) for label in dataset.instances(i).labels]
    assert [labels.count(i) for i in range(4)] == [43, 43, 47, 44]
    sizes = {split: len(open_dataset("voc-pairs", BOARDS, split)) for split in ("train", "test", "train@3", "test@3")}
    assert sizes == {"train": 142, "test": 7, "train@3": 99, "test@3": 50}
