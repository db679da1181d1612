"""PartImageNet's layout, plain folders, and the catalogue that opens them by kind."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from weakly.data.catalog import READERS, open_dataset
from weakly.data.folder import folder_sources
from weakly.data.partimagenet import read_partimagenet
from weakly.errors import UserError

Layout = Callable[..., Path]
SEG = {"train": ["n01440764_1", "n01440765_2"], "val": ["n01440764_7"]}
OOD = {"train": ["n01440764_1"], "val": ["n01530575_7"]}


def test_part_maps_are_truth(partimagenet: Layout) -> None:
    dataset = read_partimagenet(partimagenet(SEG), "train")
    assert len(dataset) == 2
    assert dataset.label_map_background == 2
    assert dataset.problems == ()
    truth = dataset.truth(0)
    assert truth.label_map is not None
    assert (truth.label_map == 0).sum() == truth.masks().sum() == 100
    assert (truth.label_map == dataset.vocabulary.background).sum() == 500


def test_a_missing_part_map_is_a_warning(partimagenet: Layout, tmp_path: Path) -> None:
    root = partimagenet(SEG)
    maps = root / "annotations" / "train"
    (maps / "n01440764_1.png").unlink()
    (maps / "n01440765_2.png").rename(tmp_path / "elsewhere.png")
    (maps / "n01440765_2.png").symlink_to(tmp_path / "elsewhere.png")
    (maps / "other.png").touch()
    dataset = read_partimagenet(root, "train")
    assert [p.check for p in dataset.problems] == ["label-map-missing"] * 2
    assert "leads outside" in dataset.problems[1].message
    assert dataset.records[0].label_map_path is None
    assert len(dataset.truth(0)) == 1


def test_without_any_part_map_polygons_are_the_truth(partimagenet: Layout) -> None:
    root = partimagenet(SEG)
    (root / "annotations/val/n01440764_7.png").unlink()
    dataset = read_partimagenet(root, "val")
    assert dataset.problems == ()
    assert dataset.label_map_background is None


@pytest.mark.parametrize("split", ["train", "val"])
def test_the_ood_split_is_refused_unless_asked_for(partimagenet: Layout, split: str) -> None:
    root = partimagenet(OOD)
    with pytest.raises(UserError, match="OOD split"):
        read_partimagenet(root, split)
    assert len(read_partimagenet(root, split, allow_ood=True)) == 1
    assert len(open_dataset("partimagenet", root, split, allow_ood=True)) == 1


def test_a_missing_split_names_its_folder(partimagenet: Layout) -> None:
    with pytest.raises(UserError, match=r"no folder .*images/test"):
        read_partimagenet(partimagenet(SEG), "test")


def test_opening_by_kind(partimagenet: Layout) -> None:
    root = partimagenet(SEG)
    assert open_dataset("menagerie", root, "val").name == "menagerie"
    assert open_dataset("partimagenet", root, "val").name == "partimagenet"
    as_coco = open_dataset("coco", root, "val", annotations=Path("annotations/val/val.json"))
    assert (as_coco.name, len(as_coco)) == ("coco", 1)
    absolute = open_dataset(
        "coco", None, "val", annotations=root / "annotations/val/val.json", images=root / "images/val"
    )
    assert len(absolute) == 1


def test_limits(partimagenet: Layout) -> None:
    root = partimagenet({"train": [f"n01440764_{i}" for i in range(20)]})

    def ids(**options: Any) -> list[int | str]:
        return [sample.image_id for sample in open_dataset("partimagenet", root, "train", **options)]

    assert ids(limit=3) == [0, 1, 2]
    assert ids(limit=50) == list(range(20))
    drawn = ids(limit=5, seed=1)
    assert drawn == sorted(drawn) == ids(limit=5, seed=1)
    assert drawn != ids(limit=5, seed=2)


@pytest.mark.parametrize("kind", READERS)
def test_every_kind_names_the_folder_that_is_missing(kind: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no folder .*nowhere.*correct --root"):
        open_dataset(kind, tmp_path / "nowhere", "train")
    with pytest.raises(UserError, match="--root"):
        open_dataset(kind, None, "train")


def test_wrong_kind_limit_and_empty_datasets(partimagenet: Layout) -> None:
    root = partimagenet(SEG)
    with pytest.raises(UserError, match="no dataset kind 'zip'; choose one of partimagenet"):
        open_dataset("zip", root, "train")
    with pytest.raises(UserError, match="limit of 0"):
        open_dataset("partimagenet", root, "train", limit=0)
    (root / "images/val/n01440764_7.JPEG").unlink()
    with pytest.raises(UserError, match=r"no usable image in 'val'. First problem: The image file does not exist"):
        open_dataset("menagerie", root, "val")


def test_folder_ids_are_unique_relative_and_without_suffix(tmp_path: Path, save_image: Callable[..., Path]) -> None:
    trip, other = tmp_path / "trip", tmp_path / "other"
    for name in ("a.jpg", "a.png", "day 1/a.jpg", "b.jpg"):
        save_image(trip / name)
    for name in ("A.jpg", "a.jpg"):
        save_image(other / name)
    sources = folder_sources([trip, trip / "b.jpg", other])
    assert [(s.image_id, s.path.name) for s in sources] == [
        ("a", "a.jpg"),
        ("a.png", "a.png"),
        ("b", "b.jpg"),
        ("day 1/a", "a.jpg"),
        ("A.jpg", "A.jpg"),
        ("a.jpg-2", "a.jpg"),
    ]


def test_no_image_is_an_error() -> None:
    with pytest.raises(UserError, match="No image is given"):
        folder_sources([])
