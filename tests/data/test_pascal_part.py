"""The published layouts of Pascal-Part-116, ADE20K-Part-234 and PartImageNet-40, and plain COCO files, as part data."""

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
from weakly.data.check_report import CheckReport
from weakly.data.class_names import VOC_NAMES
from weakly.data.dataset import Dataset
from weakly.data.object_parts import object_table
from weakly.errors import UserError

SIZE = (20, 30)
VOID, UNKNOWN = 255, 65535
Layout = Callable[..., Path]


def save(path: Path, values: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values).save(path)


def only(report: CheckReport, name: str) -> Any:
    (found,) = [problem for problem in report.problems if problem.check == name]
    assert found.remedy
    return found


def objects_of(dataset: Dataset) -> tuple[str, ...]:
    return object_table(dataset.vocabulary)[0]


@pytest.fixture
def pascal(tmp_path: Path, save_image: Callable[..., Path]) -> Path:
    """A cat with a head on a background with a chair; its body and the chair have no part label."""
    root = tmp_path / "PascalPart116"
    for split in ("train", "val"):
        stem = f"2008_{split}"
        save_image(root / f"images/{split}/{stem}.jpg")
        parts, objects = np.full(SIZE, VOID, np.uint8), np.full(SIZE, VOID, np.uint8)
        objects[2:12, 4:20] = VOC_NAMES.index("cat")
        objects[15:, :] = VOC_NAMES.index("chair")
        parts[2:6, 4:10] = 43  # cat's head
        save(root / f"annotations_detectron2_part/{split}/{stem}.png", parts)
        save(root / f"annotations_detectron2_obj/{split}/{stem}.png", objects)
    return root


class TestPascal:
    def test_parts_void_objects_and_background(self, pascal: Path) -> None:
        dataset = open_dataset("pascal-part-116", pascal, "val")
        assert (dataset.name, len(dataset), dataset[0].image_id) == ("pascal-part-116", 1, "2008_val")
        assert dataset.has_truth() and dataset[0].boxes is None and dataset[0].tags is None
        labels = dataset.truth(0).to_label_map(dataset.vocabulary.background)
        expected = np.full(SIZE, 116)
        expected[2:12, 4:20] = VOID
        expected[2:6, 4:10] = dataset.vocabulary.index("cat's head")
        assert np.array_equal(labels, expected), "a chair owns no part, so it is background"

    def test_object_map_has_the_object_of_pixels_without_a_part_too(self, pascal: Path) -> None:
        dataset = open_dataset("pascal-part-116", pascal, "val")
        objects = objects_of(dataset)
        found = dataset.object_map(0)
        expected = np.full(SIZE, len(objects))
        expected[2:12, 4:20] = objects.index("cat")
        assert (found.dtype, len(objects)) == (np.uint16, 16)
        assert np.array_equal(found, expected)
        assert dataset.extra["unseen"] == ("bird", "car", "dog", "motorbike", "sheep")

    def test_without_an_object_map_nobody_knows_what_is_background(self, pascal: Path) -> None:
        (pascal / "annotations_detectron2_obj/val/2008_val.png").unlink()
        dataset = open_dataset("pascal-part-116", pascal, "val")
        assert [problem.check for problem in dataset.problems] == ["object-map-missing"]
        found = dataset.object_map(0)
        assert set(np.unique(found)) == {objects_of(dataset).index("cat"), UNKNOWN}
        assert set(np.unique(dataset.label_map(0))) == {43, VOID}

    def test_data_check_is_clean_and_counts_the_maps(self, pascal: Path) -> None:
        report = check("pascal-part-116", pascal, "train", workers=1)
        assert (report.problems, report.images, report.annotations, report.unannotated) == ((), 1, 0, 0)
        assert [(c.name, c.images, c.masks) for c in report.categories if c.images] == [("cat's head", 1, 1)]
        save(pascal / "annotations_detectron2_part/train/2008_train.png", np.zeros(SIZE, np.uint8))
        assert check("pascal-part-116", pascal, "train", workers=1).content_hash != report.content_hash

    @pytest.mark.parametrize(
        ("file", "values", "name"),
        [
            ("part", np.full(SIZE, 200, np.uint8), "label-map-value"),
            ("obj", np.full(SIZE, 20, np.uint8), "object-map-value"),
            ("obj", np.full(SIZE, 14, np.uint8), "object-map-disagrees"),
            ("obj", np.zeros((*SIZE, 3), np.uint8), "object-map-unreadable"),
        ],
    )
    def test_maps_that_do_not_fit(self, pascal: Path, file: str, values: np.ndarray, name: str) -> None:
        save(pascal / f"annotations_detectron2_{file}/val/2008_val.png", values)
        assert only(check("pascal-part-116", pascal, "val", workers=1), name).file.endswith("2008_val.png")

    def test_an_image_in_both_splits_and_files_without_their_twin(
        self, pascal: Path, save_image: Callable[..., Path]
    ) -> None:
        save_image(pascal / "images/val/2008_train.jpg")
        save(pascal / "annotations_detectron2_part/val/alone.png", np.full(SIZE, VOID, np.uint8))
        report = check("pascal-part-116", pascal, "val", workers=1)
        assert set(report.counts) == {"label-map-missing", "missing-image"}, "without its map the image is left out"
        save(pascal / "annotations_detectron2_part/val/2008_train.png", np.full(SIZE, VOID, np.uint8))
        assert only(check("pascal-part-116", pascal, "val", workers=1), "split-leak").severity == "error"

    def test_links_that_lead_outside_are_refused(self, pascal: Path, tmp_path: Path) -> None:
        path = pascal / "annotations_detectron2_obj/val/2008_val.png"
        path.rename(tmp_path / "elsewhere.png")
        path.symlink_to(tmp_path / "elsewhere.png")
        dataset = open_dataset("pascal-part-116", pascal, "val")
        assert [problem.check for problem in dataset.problems] == ["path-outside"]
        assert dataset.records[0].whole_map_path is None

    def test_a_missing_split_names_its_folder(self, pascal: Path) -> None:
        with pytest.raises(UserError, match=r"no folder .*images/test"):
            open_dataset("pascal-part-116", pascal, "test")


@pytest.fixture
def ade(tmp_path: Path, save_image: Callable[..., Path]) -> Path:
    """Two lamps, the second painted over the first, with one shade between them."""
    root = tmp_path / "ADE20KPart234"
    for split, folder in (("train", "training"), ("val", "validation")):
        name = f"ADE_{split}_1"
        save_image(root / f"images/{folder}/{name}.jpg")
        parts = np.full(SIZE, UNKNOWN, np.uint16)
        parts[2:6, 2:6] = 37  # lamp's shade
        save(root / f"annotations_detectron2_part/{folder}/{name}.png", parts)
        rings = [[2, 2, 12, 2, 12, 12, 2, 12], [8, 8, 20, 8, 20, 18, 8, 18]]
        annotations = [
            {"id": i, "image_id": 7, "category_id": category, "segmentation": [ring], "bbox": [0, 0, 1, 1]}
            for i, (category, ring) in enumerate(zip((21, 23), rings, strict=True))
        ]
        document = {
            "images": [{"id": 7, "file_name": f"{name}.jpg", "height": SIZE[0], "width": SIZE[1]}],
            "annotations": annotations,
            "categories": [{"id": i, "name": f"category {i}"} for i in range(44)],
        }
        (root / f"ade20k_instance_{split}.json").write_text(json.dumps(document))
    return root


class TestAde:
    def test_sixteen_bit_parts_on_objects_painted_in_order(self, ade: Path) -> None:
        dataset = open_dataset("ade20k-part-234", ade, "val")
        objects = objects_of(dataset)
        assert (objects[21], objects[23]) == ("lamp", "microwave")
        found, labels = dataset.object_map(0), dataset.label_map(0)
        assert found[3, 3] == found[7, 7] == 21
        assert found[9, 9] == found[15, 15] == 23
        assert found[0, 0] == len(objects)
        assert labels[3, 3] == dataset.vocabulary.index("lamp's shade")
        assert labels[9, 9] == VOID and labels[0, 0] == dataset.vocabulary.background == 234
        assert (dataset[0].image_id, dataset[0].boxes) == ("ADE_val_1", None)

    @pytest.mark.parametrize("split", ["train", "val"])
    def test_data_check_is_clean(self, ade: Path, split: str) -> None:
        assert check("ade20k-part-234", ade, split, workers=1).problems == ()

    def test_parts_on_another_object_are_found(self, ade: Path) -> None:
        parts = np.full(SIZE, UNKNOWN, np.uint16)
        parts[0, :] = 0  # a person's arm where no object is
        save(ade / "annotations_detectron2_part/validation/ADE_val_1.png", parts)
        assert "0%" in only(check("ade20k-part-234", ade, "val", workers=1), "object-map-disagrees").message

    def test_images_that_the_instance_file_lacks(self, ade: Path, save_image: Callable[..., Path]) -> None:
        save_image(ade / "images/validation/b.jpg")
        save(ade / "annotations_detectron2_part/validation/b.png", np.full(SIZE, 5, np.uint16))
        dataset = open_dataset("ade20k-part-234", ade, "val")
        assert [problem.check for problem in dataset.problems] == ["objects-missing"]
        assert set(np.unique(dataset.object_map(1))) == {objects_of(dataset).index("person")}

    def test_an_unknown_split(self, ade: Path) -> None:
        with pytest.raises(UserError, match="no split 'test'; choose one of train, val"):
            open_dataset("ade20k-part-234", ade, "test")


class TestPartImageNet:
    TIGER, GOLDFISH = "n02129604_1", "n01443537_2"

    def test_parts_are_those_of_the_object_the_image_is_named_after(self, partimagenet: Layout) -> None:
        root = partimagenet({"train": [self.GOLDFISH, "n01530575_3"]})
        dataset = open_dataset("partimagenet-40", root, "train")
        head = dataset.vocabulary.index("goldfish's head")
        assert (len(dataset), dataset.extra["left_out"]) == (1, 1), "a brambling is none of the 40"
        truth = dataset.truth(0)
        assert (truth.label_map == head).sum() == 100
        assert (truth.label_map == dataset.vocabulary.background).sum() == 500
        assert truth.labels.tolist() == [head]
        assert (dataset.object_map(0) == objects_of(dataset).index("goldfish")).sum() == 100
        assert dataset[0].boxes is None

    def test_without_part_maps_polygons_are_the_truth(self, partimagenet: Layout) -> None:
        root = partimagenet({"train": [self.TIGER]})
        (root / f"annotations/train/{self.TIGER}.png").unlink()
        dataset = open_dataset("partimagenet-40", root, "train")
        labels = dataset.truth(0).to_label_map(dataset.vocabulary.background)
        assert (labels == dataset.vocabulary.index("tiger's head")).sum() == 100
        assert (dataset.object_map(0) == len(objects_of(dataset))).sum() == 500

    def test_data_check_is_clean_and_finds_strange_values(self, partimagenet: Layout) -> None:
        root = partimagenet({"train": [self.GOLDFISH], "val": [self.GOLDFISH.replace("_2", "_3")]})
        assert check("partimagenet-40", root, "val", workers=1).problems == ()
        save(root / f"annotations/train/{self.GOLDFISH}.png", np.full(SIZE, 9, np.uint8))
        assert only(check("partimagenet-40", root, "train", workers=1), "label-map-value")

    def test_other_data_are_refused(self, partimagenet: Layout) -> None:
        with pytest.raises(UserError, match="No image of 'train'"):
            open_dataset("partimagenet-40", partimagenet({"train": ["n01530575_3"]}), "train")


class TestCoco:
    @pytest.mark.parametrize("named_by", ["name", "supercategory"])
    def test_any_coco_file_with_object_part_names(self, coco: Layout, annotation: Layout, named_by: str) -> None:
        pairs = [(5, "fox", "head"), (9, "fox", "tail"), (11, "crow", "head")]
        categories = [
            {"id": i, "name": f"{whole}'s {part}"}
            if named_by == "name"
            else {"id": i, "name": part, "supercategory": whole}
            for i, whole, part in pairs
        ]
        path, folder = coco([annotation(), annotation(id=2, category_id=11, image_id=2)], categories=categories)
        dataset = open_dataset("coco", None, "train", annotations=path, images=folder)
        assert objects_of(dataset) == ("crow", "fox")
        for index, whole in enumerate((1, 0)):
            found = dataset.object_map(index)
            assert (found == whole).sum() == 100
            assert (found == 2).sum() == 500

    def test_more_categories_than_a_byte_holds(self, coco: Layout, annotation: Layout) -> None:
        categories = [{"id": i, "name": f"thing {i:03}'s head"} for i in range(300)]
        path, folder = coco([annotation(category_id=299)], categories=categories)
        dataset = open_dataset("coco", None, "train", annotations=path, images=folder)
        assert np.unique(dataset.object_map(0)).tolist() == [299, 300]
