"""Compositor's release of Pascal-Part: label maps as given, boxes around connected regions."""

from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from weakly.data.catalog import open_dataset
from weakly.data.check import check
from weakly.data.pascal_part_compositor import MIN_PIXELS, connected_regions, stated_values
from weakly.errors import UserError
from weakly.segmentation import decode_masks, rle_boxes

SIZE = (20, 30)
VOID = 255
NAMES = "dog's head\ndog's torso\n\ncar's wheel\nbackground\n"


def save_map(path: Path, values: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    picture = Image.fromarray(values)
    picture.putpalette(bytes(range(256)) * 3)
    picture.save(path)


@pytest.fixture
def archive(tmp_path: Path, save_image) -> Path:
    """Two heads that touch, a torso in two pieces and a speck, and a void border; background is 3."""
    root = tmp_path / "Pascal_Part"
    labels = np.full(SIZE, 3, np.uint8)
    labels[0:6, 0:6] = labels[6:10, 6:12] = 0
    labels[0:5, 14:18] = labels[0:5, 20:24] = 1
    labels[8, 20] = 1
    labels[18:, :] = VOID
    for split, stem in (("train", "a"), ("val", "b")):
        save_image(root / f"JPEGImages/{split}/{stem}.jpg")
        save_map(root / f"annotations/{split}/{stem}.png", labels)
        save_map(root / f"annotations/{split}_whole/{stem}.png", np.zeros(SIZE, np.uint8))
    labels[18, 0:5] = 2
    save_map(root / "annotations/val/b.png", labels)
    (root / "classes.txt").write_text(NAMES)
    return root


def test_boxes_go_around_connected_regions(archive: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        dataset = open_dataset("pascal-part-compositor", archive, "train")
    assert "no object ids" in caplog.text
    assert dataset.vocabulary.names == ("dog's head", "dog's torso", "car's wheel")
    assert (dataset.name, dataset[0].image_id, dataset.problems) == ("pascal-part-compositor", "a", ())
    boxes = dataset[0].boxes
    assert boxes.labels.tolist() == [0, 1, 1]
    assert boxes.xyxy.tolist() == [[0, 0, 12, 10], [14, 0, 18, 5], [20, 0, 24, 5]], "touching heads share a box"
    assert len(dataset.instances(0, masks=True)) == 3


def test_label_maps_are_the_truth_specks_and_all(archive: Path) -> None:
    dataset = open_dataset("pascal-part-compositor", archive, "train")
    truth = dataset.truth(0)
    labels = truth.to_label_map(dataset.vocabulary.background)
    stored = np.asarray(Image.open(archive / "annotations/train/a.png"))
    assert np.array_equal(labels, stored), "the values of this archive are the categories, background and void"
    for label, mask in truth.category_masks().items():
        assert np.array_equal(mask, stored == label)


def test_without_a_class_list_the_most_frequent_value_is_background(archive: Path) -> None:
    (archive / "classes.txt").unlink()
    dataset = open_dataset("pascal-part-compositor", archive, "train")
    assert dataset.vocabulary.names == ("part 0", "part 1", "part 2"), "value 2 occurs in val alone"
    assert (dataset.label_map_background, dataset.vocabulary.source_id(2)) == (3, 2)
    (problem,) = dataset.problems
    assert (problem.check, problem.severity) == ("classes-unnamed", "warning")
    assert "classes.txt" in problem.remedy


@pytest.mark.parametrize(
    ("text", "background", "values"),
    [
        ("a\nb\n", 2, {"a": 0, "b": 1}),
        ("_background_\na\nb\n", 0, {"a": 1, "b": 2}),
        ("a\nBackground\nb\n", 1, {"a": 0, "b": 2}),
    ],
)
def test_background_may_be_any_value(tmp_path: Path, text: str, background: int, values: dict[str, int]) -> None:
    (tmp_path / "classes.txt").write_text(text)
    stated = stated_values(tmp_path / "classes.txt")
    assert stated.background == background
    assert {c.name: c.source_id for c in stated.vocabulary.categories} == values


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "names no part"),
        ("background", "names no part"),
        ("a\na", "declared twice"),
        ("\n".join(map(str, range(256))), "256 lines"),
    ],
)
def test_class_lists_that_cannot_be_used(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "classes.txt").write_text(text)
    with pytest.raises(UserError, match=message):
        stated_values(tmp_path / "classes.txt")


def test_data_check_knows_the_layout(archive: Path, save_image) -> None:
    report = check("pascal-part-compositor", archive, "val", workers=1)
    assert (report.problems, report.images, report.annotations) == ((), 1, 3)
    assert [(c.name, c.boxes, c.masks) for c in report.categories] == [
        ("dog's head", 1, 1), ("dog's torso", 2, 3), ("car's wheel", 0, 1),
    ]  # fmt: skip
    save_image(archive / "JPEGImages/val/a.jpg")
    save_map(archive / "annotations/val/a.png", np.full(SIZE, 9, np.uint8))
    counts = check("pascal-part-compositor", archive, "val", workers=1).counts
    assert counts == {"split-leak": 1, "label-map-value": 1}


def test_one_bad_map_costs_one_image(archive: Path, save_image) -> None:
    for stem in "cd":
        save_image(archive / f"JPEGImages/train/{stem}.jpg")
    (archive / "annotations/train/c.png").write_bytes((archive / "annotations/train/a.png").read_bytes()[:-60])
    dataset = open_dataset("pascal-part-compositor", archive, "train")
    assert [problem.check for problem in dataset.problems] == ["label-map-unreadable", "label-map-missing"]
    assert len(dataset) == 1
    with pytest.raises(UserError, match="no folder .*JPEGImages/test"):
        open_dataset("pascal-part-compositor", archive, "test")


@given(seed=st.integers(0, 10**6), density=st.floats(0, 1))
@settings(max_examples=40, deadline=None)
def test_regions_are_those_that_a_flood_fill_finds(seed: int, density: float) -> None:
    mask = np.random.default_rng(seed).random((12, 14)) < density
    left, regions = {tuple(cell) for cell in np.argwhere(mask).tolist()}, []
    while left:
        stack, region = [left.pop()], set()
        while stack:
            y, x = stack.pop()
            region.add((y, x))
            near = {(y + dy, x + dx) for dy in (-1, 0, 1) for dx in (-1, 0, 1)} & left
            left -= near
            stack += near
        regions.append(frozenset(region))
    boxes, rles, specks = connected_regions(mask)
    found = [frozenset(map(tuple, np.argwhere(one).tolist())) for one in decode_masks(rles, mask.shape)]
    assert {*found} == {region for region in regions if len(region) >= MIN_PIXELS}
    assert [list(box) for box in boxes] == rle_boxes(rles).tolist()
    small = {cell for region in regions if len(region) < MIN_PIXELS for cell in region}
    assert {tuple(cell) for one in decode_masks(specks, mask.shape) for cell in np.argwhere(one).tolist()} == small
