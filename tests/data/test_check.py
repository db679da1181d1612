"""``check`` finds every known kind of damage, and says file, index and remedy."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from weakly.data.carparts import read_carparts
from weakly.data.check import check, check_dataset, content_hash
from weakly.data.check_report import CheckReport
from weakly.data.coco import read_coco
from weakly.data.dataset import Problem

Write = Callable[..., tuple[Path, Path]]
Annotation = Callable[..., dict[str, Any]]
Layout = Callable[..., Path]
SEG = {"train": ["n01440764_1", "n01440765_2"], "val": ["n01440764_7"]}
STEM = "n01440764_1"


def only(report: CheckReport, check_name: str) -> Problem:
    found = [p for p in report.problems if p.check == check_name]
    assert len(found) == 1, report.problems
    assert found[0].remedy
    return found[0]


@pytest.fixture
def root(partimagenet: Layout) -> Path:
    return partimagenet(SEG)


def test_sound_data_are_clean(root: Path) -> None:
    report = check("partimagenet", root, "train")
    assert (report.problems, report.exit_code) == ((), 0)
    assert (report.images, report.annotations, report.over_queries, report.unannotated) == (2, 2, 0, 0)
    assert [(c.name, c.images, c.boxes, c.masks) for c in report.categories] == [
        ("Fish Head", 2, 2, 2),
        ("Fish Fin", 0, 0, 0),
    ]
    assert "No problems found." in report.text()


def test_what_the_reader_found_is_in_the_report(coco: Write, annotation: Annotation) -> None:
    path, folder = coco([annotation(), annotation(id=2, image_id=99)])
    report = check_dataset(read_coco(path, folder))
    assert only(report, "unknown-image").index == "annotations[1] (id 2)"
    assert only(report, "unknown-image").file == str(path)
    assert report.unannotated == 1
    assert report.exit_code == 3


def test_truncated_images_are_found_by_decoding_alone(root: Path) -> None:
    path = root / f"images/train/{STEM}.JPEG"
    noise = np.random.default_rng(0).integers(0, 255, (20, 30, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path)
    path.write_bytes(path.read_bytes()[:-400])
    problem = only(check("partimagenet", root, "train"), "unreadable-image")
    assert (problem.file, problem.index, problem.severity) == (str(path), "image id 0", "error")
    assert check("partimagenet", root, "train", fast=True).problems == ()


def test_decoded_size_must_be_the_stated_size(root: Path, save_image: Callable[..., Path]) -> None:
    save_image(root / f"images/train/{STEM}.JPEG", size=(30, 20))
    for fast in (False, True):
        assert "30 x 20" in only(check("partimagenet", root, "train", fast=fast), "image-size").message


@pytest.mark.parametrize("mode", ["L", "CMYK"])
def test_other_colour_modes_are_warnings(root: Path, mode: str) -> None:
    Image.new(mode, (30, 20)).save(root / f"images/train/{STEM}.JPEG")
    report = check("partimagenet", root, "train")
    assert mode in only(report, "colour-mode").message
    assert report.exit_code == 0


@pytest.mark.parametrize("mode", ["P", "I;16"])
def test_png_in_jpeg_and_its_colour_mode(root: Path, mode: str) -> None:
    Image.new(mode, (30, 20)).save(root / f"images/train/{STEM}.JPEG", format="PNG")
    report = check("partimagenet", root, "train")
    assert report.counts == {"colour-mode": 1, "format-suffix": 1}
    assert "PNG" in only(report, "format-suffix").message


def test_exif_rotation_is_noted(root: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    path = root / f"images/train/{STEM}.JPEG"
    Image.new("RGB", (30, 20)).save(path, exif=exif)
    assert only(check("partimagenet", root, "train"), "exif-orientation").file == str(path)


def test_part_map_missing(root: Path) -> None:
    (root / f"annotations/train/{STEM}.png").unlink()
    assert only(check("partimagenet", root, "train"), "label-map-missing").file.endswith(f"{STEM}.png")


@pytest.mark.parametrize(
    ("part_map", "name"),
    [
        (np.full((30, 20), 2, np.uint8), "label-map-size"),
        (np.full((20, 30), 9, np.uint8), "label-map-value"),
        (np.full((20, 30), 300, np.uint16), "label-map-value"),
        (np.full((20, 30, 3), 1, np.uint8), "label-map-unreadable"),
        (np.full((20, 30), 2, np.uint8), "label-map-disagrees"),
        (np.full((20, 30), 1, np.uint8), "label-map-disagrees"),
    ],
)
def test_part_maps_that_do_not_fit(root: Path, part_map: np.ndarray, name: str) -> None:
    Image.fromarray(part_map).save(root / f"annotations/train/{STEM}.png")
    problem = only(check("partimagenet", root, "train"), name)
    assert (problem.index, problem.severity) == ("image id 0", "error")
    assert len(check("partimagenet", root, "train", fast=True).problems) == (name == "label-map-size")


def test_void_pixels_and_small_differences_are_no_disagreement(root: Path) -> None:
    path = root / f"annotations/train/{STEM}.png"
    part_map = np.array(Image.open(path))
    part_map[3:13, 2] = 2  # one of ten columns
    part_map[14:, :] = 255
    Image.fromarray(part_map).save(path)
    assert check("partimagenet", root, "train").problems == ()


@pytest.mark.parametrize("content", ['{"imgHeight": 21, "imgWidth": 30}', "[]", "{", None])
def test_size_files_that_do_not_fit(root: Path, content: str | None) -> None:
    path = root / f"annotations/train/{STEM}.json"
    path.unlink() if content is None else path.write_text(content)
    problem = only(check("partimagenet", root, "train"), "size-file")
    assert (problem.file, problem.severity) == (str(path), "warning")


def test_size_files_are_not_demanded_where_there_are_none(root: Path) -> None:
    for path in (root / "annotations/train").glob("n*.json"):
        path.unlink()
    assert check("partimagenet", root, "train").problems == ()


def test_one_stem_in_two_splits(root: Path, save_image: Callable[..., Path]) -> None:
    save_image(root / f"images/test/{STEM}.png")
    problem = only(check("partimagenet", root, "train"), "split-leak")
    assert "'test'" in problem.message
    assert problem.index == "image id 0"


def test_the_ood_split_is_an_error(partimagenet: Layout) -> None:
    report = check("partimagenet", partimagenet({"train": ["n01440764_1"], "val": ["n01530575_7"]}), "val")
    assert only(report, "ood-split").index == "val"
    assert report.exit_code == 3


def test_more_parts_than_queries(coco: Write, annotation: Annotation) -> None:
    path, folder = coco([annotation(id=i) for i in range(4)])
    report = check_dataset(read_coco(path, folder), queries=3)
    assert report.over_queries == 1
    assert "4 parts" in only(report, "more-parts-than-queries").message
    assert check_dataset(read_coco(path, folder), queries=4).over_queries == 0


def test_points_are_counted_where_there_are_no_boxes(coco: Write, annotation: Annotation) -> None:
    report = check_dataset(read_coco(*coco([annotation(bbox=None, segmentation=None, point=[4, 5])])))
    assert (report.annotations, report.categories[0].boxes) == (1, 1)


def test_the_content_hash_follows_labels_and_images_but_not_the_folder(
    root: Path, partimagenet: Layout, tmp_path: Path, save_image: Callable[..., Path]
) -> None:
    first = check("partimagenet", root, "train").content_hash
    copy = partimagenet(SEG, root=tmp_path / "moved")
    assert check("partimagenet", copy, "train").content_hash == first
    save_image(copy / f"images/train/{STEM}.JPEG", colour=(0, 1, 250))
    with (copy / f"images/train/{STEM}.JPEG").open("ab") as file:
        file.write(b"\0")
    changed = check("partimagenet", copy, "train").content_hash
    labels = root / "annotations/train/train.json"
    labels.write_text(labels.read_text() + "\n")
    assert len({first, changed, check("partimagenet", root, "train").content_hash}) == 3


def test_the_report_as_text_and_json(coco: Write, annotation: Annotation) -> None:
    path, folder = coco([annotation(id=i, image_id=50 + i) for i in range(5)] + [annotation(id=9)])
    report = check_dataset(read_coco(path, folder))
    text = report.text(lines_per_check=2)
    assert text.count("is not declared") == 2
    assert f"error: {path} annotations[0] (id 0): The image id 50 is not declared." in text
    assert "unknown-image: 3 more; the JSON report has all of them." in text
    stored = json.loads(json.dumps(report.to_dict()))
    assert stored["counts"] == {"unknown-image": 5, "unannotated-image": 1}
    assert len(stored["problems"]) == 6
    assert stored["exit_code"] == 3
    assert set(stored["problems"][0]) == {"check", "severity", "file", "index", "message", "remedy"}


def test_progress_is_told_per_image(root: Path) -> None:
    told: list[tuple[int, int]] = []
    check("partimagenet", root, "train", progress=lambda done, total: told.append((done, total)))
    assert told == [(1, 2), (2, 2)]


def test_car_parts_hold_out_and_leaks(tmp_path: Path, annotation: Annotation, save_image: Callable[..., Path]) -> None:
    """The same rules on a generated copy of car-parts' layout: every 10th training image is val."""
    for folder, names in {"trainingset": [f"t{i}" for i in range(25)], "testset": ["t3"]}.items():
        images = [{"id": 100 + i, "file_name": f"{n}.jpg", "height": 20, "width": 30} for i, n in enumerate(names)]
        for name in names:
            save_image(tmp_path / folder / "JPEGImages" / f"{name}.jpg")
        rows = [annotation(id=i, image_id=image["id"], segmentation=[]) for i, image in enumerate(images)]
        document = {
            "images": images[::-1],
            "annotations": rows,
            "categories": [{"id": 1, "name": "_background_"}, {"id": 5, "name": "hood"}],
        }
        (tmp_path / folder / "annotations.json").write_text(json.dumps(document))
    val = read_carparts(tmp_path, "val")
    assert sorted(s.image_id for s in val) == [100, 110, 120]
    assert len(val.extra["no_mask"]) == 3
    (tmp_path / "trainingset/JPEGImages/t0.jpg").unlink()
    assert sorted(s.image_id for s in read_carparts(tmp_path, "val")) == [110, 120]
    assert len(read_carparts(tmp_path, "train")) == 22
    assert only(check("carparts", tmp_path, "train"), "split-leak").index == "image id 103"
    assert content_hash(val.select([1, 2])) != content_hash(val.select([1]))
