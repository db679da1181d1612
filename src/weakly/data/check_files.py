"""What ``weakly data check`` finds by opening one record's files: the image, its label map and its size file."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from weakly.data.coco import load_json
from weakly.data.dataset import VOID, WIDE_VOID, Dataset, Problem, Record
from weakly.data.images import ImageHeader, image_header, read_image
from weakly.errors import UserError

MIN_AGREEMENT = 0.8
"""Share of part pixels on which polygons and label map must name the same category (their borders may differ)."""

_SUFFIXES = {
    "JPEG": {".jpg", ".jpeg"},
    "PNG": {".png"},
    "WEBP": {".webp"},
    "TIFF": {".tif", ".tiff"},
    "BMP": {".bmp"},
}


def image_problems(record: Record, *, fast: bool = False) -> Iterator[Problem]:
    """Problems of the image file.

    Args:
        record: whose image to open.
        fast: read the header only; truncated files then go unnoticed.
    """
    sample = record.sample
    file, index = str(sample.path), f"image id {sample.image_id}"
    try:
        header = image_header(sample.path)
        if not fast:
            read_image(sample.path)
    except UserError as error:
        yield Problem("unreadable-image", "error", file, index, str(error), "Replace the file.")
        return
    if header.size != sample.size:
        message = f"The file is {_shape(header.size)} but the annotations state {_shape(sample.size)} (height x width)."
        remedy = "Restore the original file, or correct the annotations; its labels would be misplaced."
        yield Problem("image-size", "error", file, index, message, remedy)
    yield from _header_notes(header, sample.path, index)


def _header_notes(header: ImageHeader, path: Path, index: str) -> Iterator[Problem]:
    if header.orientation != 1:
        message = f"EXIF orientation {header.orientation} is ignored: labels are taken to lie in the stored frame."
        remedy = "Check that the labels were not drawn on the rotated picture."
        yield Problem("exif-orientation", "warning", str(path), index, message, remedy)
    if header.mode != "RGB":
        message = f"The file's pixels are {header.mode}, not RGB; they are converted."
        yield Problem("colour-mode", "warning", str(path), index, message, "Nothing to do.")
    if path.suffix.lower() not in _SUFFIXES[header.format]:
        message = f"The file is {header.format} in spite of its suffix; it is read by content."
        yield Problem("format-suffix", "warning", str(path), index, message, "Nothing to do; other tools may stumble.")


def size_file_problems(record: Record, folder: Path) -> Iterator[Problem]:
    """Problems of ``<stem>.json``, PartImageNet's file with ``imgHeight`` and ``imgWidth``."""
    sample = record.sample
    path, index = folder / f"{sample.path.stem}.json", f"image id {sample.image_id}"
    try:
        stated = load_json(path)
    except UserError as error:
        yield Problem("size-file", "warning", str(path), index, str(error), "Restore the file; it is not used.")
        return
    size = (stated.get("imgHeight"), stated.get("imgWidth")) if isinstance(stated, dict) else (None, None)
    if size != sample.size:
        message = f"imgHeight x imgWidth is {_shape(size)} but the annotations state {_shape(sample.size)}."
        yield Problem("size-file", "warning", str(path), index, message, "Correct one of them.")


def label_map_problems(dataset: Dataset, position: int, *, fast: bool = False, compare: bool = False) -> list[Problem]:
    """Problems of the part map of one record; none if the record has no part map.

    Args:
        dataset: whose categories the map uses.
        position: of the record.
        fast: read the header only.
        compare: rasterise the polygons and compare them with the map.
    """
    record = dataset.records[position]
    path = record.label_map_path
    if path is None:
        return []
    index = f"image id {record.sample.image_id}"
    try:
        size = image_header(path).size
        if size != record.sample.size:
            message = f"The part map is {_shape(size)} but the image is {_shape(record.sample.size)} (height x width)."
            return [Problem("label-map-size", "error", str(path), index, message, "Export the part map again.")]
        if fast:
            return []
        stored = read_image(path, mode="index")
    except UserError as error:
        return [Problem("label-map-unreadable", "error", str(path), index, str(error), "Export the part map again.")]
    strange = sorted(set(np.unique(stored).tolist()) - set(dataset.label_values(position)) - {VOID, WIDE_VOID})
    if strange:
        message = f"The part map holds the values {strange[:8]}, which are no category ids."
        return [Problem("label-map-value", "error", str(path), index, message, "Export the part map again.")]
    return _disagreement(dataset, position, str(path), index) if compare else []


def _disagreement(dataset: Dataset, position: int, file: str, index: str) -> list[Problem]:
    agreement = label_map_agreement(dataset, position) if dataset.records[position].truth else 1.0
    if agreement >= MIN_AGREEMENT:
        return []
    message = f"Polygons and part map name the same category on {agreement:.0%} of the part pixels only."
    remedy = "Check that category ids in the JSON and values in the part maps mean the same."
    return [Problem("label-map-disagrees", "error", file, index, message, remedy)]


def label_map_agreement(dataset: Dataset, position: int) -> float:
    """Share of the pixels covered by a polygon or a part of the map on which both name the same category.

    Where polygons overlap, any of them may be the map's. Void pixels do not count; without part pixels it is 1.
    """
    truth = dataset.truth(position)
    label_map: NDArray[Any] | None = truth.label_map
    if label_map is None:
        return 1.0
    named = label_map < len(dataset.vocabulary)
    same = np.zeros(truth.size, bool)
    for label, mask in truth.category_masks().items():
        same |= mask & (label_map == label)
        named |= mask
    counted = named & (label_map != VOID)
    total = int(counted.sum())
    return float((same & counted).sum() / total) if total else 1.0


def _shape(size: tuple[Any, Any]) -> str:
    return f"{size[0]} x {size[1]}"
