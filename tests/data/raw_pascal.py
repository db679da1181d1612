"""Raw annotations of Pascal-Part as published: nested MATLAB structs, one file per image, in VOC 2010's folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from scipy.io import savemat

SIZE = (20, 30)
Objects = list[dict[str, Any]]


def region(rows: slice, columns: slice) -> np.ndarray:
    mask = np.zeros(SIZE, np.uint8)
    mask[rows, columns] = 1
    return mask


def structs(rows: Objects) -> np.ndarray:
    """A MATLAB struct array of one row."""
    names = [*rows[0]] if rows else ["part_name", "mask"]
    array = np.empty((1, len(rows)), [(name, object) for name in names])
    for i, row in enumerate(rows):
        for name in names:
            array[0, i][name] = row[name]
    return array


def whole(name: str, mask: np.ndarray, **parts: np.ndarray) -> dict[str, Any]:
    """An object; without parts it has MATLAB's empty matrix for them, as in the published files."""
    rows = [{"part_name": part, "mask": own} for part, own in parts.items()]
    return {"class": name, "class_ind": 1, "mask": mask, "parts": structs(rows) if rows else np.zeros((0, 0))}


def write_voc2010(root: Path, **splits: dict[str, Objects]) -> Path:
    """Write splits of ``{stem: objects}``; returns the root."""
    for folder in ("Annotations_Part", "JPEGImages", "ImageSets/Main"):
        (root / folder).mkdir(parents=True, exist_ok=True)
    for split, images in splits.items():
        (root / f"ImageSets/Main/{split}.txt").write_text("".join(f"{stem}\n" for stem in images))
        for stem, objects in images.items():
            Image.new("RGB", SIZE[::-1], (200, 100, 50)).save(root / f"JPEGImages/{stem}.jpg")
            annotation = {"anno": {"imname": stem, "objects": structs(objects)}}
            savemat(root / f"Annotations_Part/{stem}.mat", annotation, do_compression=True)
    return root
