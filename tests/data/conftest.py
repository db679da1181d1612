"""Tiny datasets on disk, built by each test as it needs them."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

sys.path.insert(0, str(Path(__file__).parent))  # for raw_pascal

SIZE = (20, 30)  # height, width of every generated image
SQUARE = [2.0, 3.0, 12.0, 3.0, 12.0, 13.0, 2.0, 13.0]  # its bbox is [2, 3, 10, 10]

Json = dict[str, Any]


def save_image(path: Path, size: tuple[int, int] = SIZE, colour: tuple[int, int, int] = (200, 100, 50)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", size[::-1], colour).save(path)
    return path


def annotation(**changes: Any) -> Json:
    """A sound annotation of image 1 with category 5, with some keys changed (None removes a key)."""
    row = {"id": 1, "image_id": 1, "category_id": 5, "bbox": [2, 3, 10, 10], "segmentation": [SQUARE], **changes}
    return {key: value for key, value in row.items() if value is not None}


@pytest.fixture
def coco(tmp_path: Path) -> Callable[..., tuple[Path, Path]]:
    """Write a COCO file and its images; returns (annotation file, image folder)."""

    def write(
        annotations: list[Any],
        images: list[Any] | None = None,
        categories: list[Any] | None = None,
        files: tuple[str, ...] = ("a.jpg", "b.jpg"),
    ) -> tuple[Path, Path]:
        folder = tmp_path / "photos"
        folder.mkdir(exist_ok=True)
        for name in files:
            save_image(folder / name)
        if images is None:
            images = [{"id": i, "file_name": n, "height": 20, "width": 30} for i, n in enumerate(files, 1)]
        if categories is None:
            categories = [
                {"id": 9, "name": "Wing", "supercategory": "Bird"},
                {"id": 5, "name": "Head", "supercategory": "Bird"},
            ]
        path = tmp_path / "labels.json"
        path.write_text(json.dumps({"images": images, "annotations": annotations, "categories": categories}))
        return path, folder

    return write


@pytest.fixture
def partimagenet(tmp_path: Path) -> Callable[..., Path]:
    """Write PartImageNet's layout with one square part per image; returns its root."""

    def write(splits: dict[str, list[str]], *, category: int = 0, root: Path = tmp_path / "pin") -> Path:
        for split, stems in splits.items():
            labels = root / "annotations" / split
            labels.mkdir(parents=True)
            for stem in stems:
                save_image(root / "images" / split / f"{stem}.JPEG")
                part_map = np.full(SIZE, 2, np.uint8)
                part_map[3:13, 2:12] = category
                Image.fromarray(part_map).save(labels / f"{stem}.png")
                (labels / f"{stem}.json").write_text(json.dumps({"imgHeight": SIZE[0], "imgWidth": SIZE[1]}))
            document = {
                "images": [
                    {"id": i, "file_name": f"{s}.JPEG", "height": SIZE[0], "width": SIZE[1]}
                    for i, s in enumerate(stems)
                ],
                "annotations": [annotation(id=i, image_id=i, category_id=category) for i in range(len(stems))],
                "categories": [
                    {"id": 0, "name": "Fish Head", "supercategory": "Fish"},
                    {"id": 1, "name": "Fish Fin", "supercategory": "Fish"},
                ],
            }
            (labels / f"{split}.json").write_text(json.dumps(document))
        return root

    return write


@pytest.fixture(name="save_image")
def save_image_fixture() -> Callable[..., Path]:
    return save_image


@pytest.fixture(name="annotation")
def annotation_fixture() -> Callable[..., Json]:
    return annotation
