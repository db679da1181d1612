"""COCO instance JSON -> Dataset.

One bad record never stops the reader. Policy, after what the released part datasets contain:

* a polygon ring that encloses no area is dropped; if none is left the *box* stays a weak label and the annotation
  has no truth mask (``Dataset.extra["no_mask"]`` lists those);
* boxes are clipped to the image and dropped below one pixel; a mask without a box gives its extent;
* an image without annotations stays, as a background-only sample (boxes of length 0);
* an image that is missing, unidentifiable or declared twice is left out, and so is an annotation of an unknown image
  or category, and crowd regions (``iscrowd``; ``Record.instances`` has them, marked).

Everything dropped or repaired is a :class:`~weakly.data.dataset.Problem`. Image files are looked for, not opened
(unless the JSON does not state their size): opening them is :mod:`weakly.data.check`'s work.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from weakly.data.coco_annotation import (
    BadPolygons,
    Entry,
    Reading,
    first_ring_is_bad,
    gather_annotation,
    gather_crowd_region,
)
from weakly.data.dataset import Dataset, Record
from weakly.data.images import MAX_PIXELS, confined, image_size
from weakly.errors import UserError
from weakly.labels import Boxes, Points, Sample
from weakly.vocabulary import Category, Vocabulary

_CORRECT = "Correct it in the annotation file."


def read_coco(
    annotations: Path,
    images: Path,
    *,
    name: str = "coco",
    split: str = "train",
    drop: Sequence[str] = (),
    default_object: str | None = None,
    bad_polygons: BadPolygons = "ring",
) -> Dataset:
    """Read a COCO instance file.

    Weak labels per annotation: ``bbox`` ([x, y, width, height]) gives a box. A click is ``point`` ([x, y], our own
    field) or ``keypoints`` with exactly one visible keypoint; without either it is the box centre. Truth masks are
    polygons or RLE, compressed or not.

    Args:
        annotations: the JSON file with ``images``, ``annotations`` and ``categories``.
        images: the folder that ``file_name`` is relative to; names that lead outside are refused.
        name: what tables call the dataset.
        split: which part of it the file is.
        drop: category names to leave out with their annotations (``"_background_"``). Other categories stay even
            if nothing is annotated with them.
        default_object: the whole that categories without a ``supercategory`` are parts of.
        bad_polygons: ``ring`` drops degenerate rings; ``annotation`` drops every annotation whose first ring has four
            numbers or fewer, box and all (spec wps-sam section 5, row 21).

    Returns:
        Categories contiguous in order of their ids (``Category.source_id``), records in the file's order. ``extra``:
        ``annotations`` and ``images`` (the two paths), ``image_ids`` (all declared, ascending), ``no_mask`` (pairs of
        image id and category index).

    Raises:
        UserError: the file or folder is missing, not JSON, or has no images, annotations or categories.
    """
    if not images.is_dir():
        raise UserError(f"There is no image folder {images}; name the folder that file_name is relative to.")
    document = load_json(annotations)
    for key in ("images", "annotations", "categories"):
        if not isinstance(document, dict) or not isinstance(document.get(key), list):
            raise UserError(f"The file {annotations} has no list {key!r}; give a COCO instance annotation file.")
    reading = Reading(str(annotations), bad_polygons)
    vocabulary, category_index = _categories(document["categories"], drop, default_object, reading)
    entries = _images(document["images"], images, reading)
    _annotations(document["annotations"], entries, category_index, reading)
    return Dataset(
        name=name,
        split=split,
        vocabulary=vocabulary,
        records=tuple(_record(entry, reading) for entry in entries.values()),
        problems=tuple(reading.problems),
        extra={
            "annotations": annotations,
            "images": images,
            "image_ids": tuple(sorted({*entries, *reading.left_out}, key=_id_order)),
            "no_mask": tuple(reading.no_mask),
        },
    )


def load_json(path: Path) -> Any:
    """The content of a JSON file.

    Raises:
        UserError: missing, not UTF-8 or not JSON; names the line.
    """
    if not path.is_file():
        raise UserError(f"There is no annotation file {path}; check the path.")
    try:
        return json.loads(path.read_text(encoding="utf-8-sig"))
    except json.JSONDecodeError as error:
        raise UserError(
            f"The file {path} is not JSON (line {error.lineno}, column {error.colno}: {error.msg}); export it again."
        ) from error
    except (UnicodeDecodeError, RecursionError) as error:
        raise UserError(f"The file {path} is not JSON in UTF-8 ({error}); export it again.") from error


def _where(section: str, position: int, row: Any) -> str:
    identity = row.get("id") if isinstance(row, Mapping) else None
    return f"{section}[{position}]" + ("" if identity is None else f" (id {identity})")


def _is_id(value: Any) -> bool:
    return isinstance(value, int | str) and not isinstance(value, bool)


def _id_order(identity: int | str) -> tuple[bool, int, str]:
    """Numbers first, then strings."""
    return (True, 0, identity) if isinstance(identity, str) else (False, identity, "")


def _categories(
    rows: Sequence[Any], drop: Sequence[str], default_object: str | None, reading: Reading
) -> tuple[Vocabulary, dict[int, int]]:
    """The vocabulary in order of id, and {source id: index}."""
    usable: dict[int, tuple[str, str | None]] = {}
    for position, row in enumerate(rows):
        where = _where("categories", position, row)
        identity = row.get("id") if isinstance(row, Mapping) else None
        if not isinstance(identity, int) or isinstance(identity, bool) or not isinstance(row.get("name"), str):
            reading.report("malformed-category", "error", where, "A category needs an integer id and a name.", _CORRECT)
        elif identity in usable:
            reading.report("duplicate-category-id", "error", where, "This category id is declared twice.", _CORRECT)
        elif row["name"] in drop:
            reading.dropped_categories.add(identity)
        else:
            whole = row.get("supercategory")
            named = isinstance(whole, str) and whole and whole != row["name"]
            usable[identity] = (row["name"], str(whole) if named else default_object)
    counts = Counter(name for name, _ in usable.values())
    categories = tuple(
        # "Head" of several wholes becomes "Bird Head", "Fish Head", ...
        Category(f"{whole} {name}" if counts[name] > 1 and whole else name, whole, identity)
        for identity, (name, whole) in sorted(usable.items())
    )
    if not categories:
        raise UserError(f"The file {reading.file} declares no usable category; fill its list 'categories'.")
    return Vocabulary(categories), {identity: index for index, identity in enumerate(sorted(usable))}


def _images(rows: Sequence[Any], root: Path, reading: Reading) -> dict[int | str, Entry]:
    """{image id: entry} of the usable images."""
    entries: dict[int | str, Entry] = {}
    files: dict[Path, str] = {}
    for position, row in enumerate(rows):
        where = _where("images", position, row)
        if not isinstance(row, Mapping) or not _is_id(row.get("id")) or not isinstance(row.get("file_name"), str):
            reading.report("malformed-image", "error", where, "An image needs an id and a file_name.", _CORRECT)
            continue
        identity: int | str = row["id"]
        if identity in entries or identity in reading.left_out:
            message = f"The image id {identity!r} is declared twice; the first is used."
            reading.report("duplicate-image-id", "error", where, message, "Give every image its own id.")
            continue
        entry = _image(identity, where, row, root, reading)
        if entry is None:
            reading.left_out.add(identity)
        elif entry.path in files:
            message = f"The file {row['file_name']} is already {files[entry.path]}; the first is used."
            reading.report("duplicate-file-name", "error", where, message, "Merge the two images' annotations.")
            reading.left_out.add(identity)
        else:
            files[entry.path] = where
            entries[identity] = entry
    return entries


def _image(identity: int | str, where: str, row: Mapping[str, Any], root: Path, reading: Reading) -> Entry | None:
    try:
        path = confined(root, row["file_name"])
    except UserError as error:
        reading.report("path-outside", "error", where, str(error), "Use file names below the image folder.")
        return None
    if not path.is_file():
        remedy = f"Restore it, or check that {root} is the image folder."
        reading.report("missing-image", "error", where, "The image file does not exist.", remedy, file=str(path))
        return None
    stated = row.get("height"), row.get("width")
    if stated == (None, None):
        try:
            stated = image_size(path)
        except UserError as error:
            reading.report("unreadable-image", "error", where, str(error), "Replace the file.", file=str(path))
            return None
    height, width = stated
    if not (isinstance(height, int) and isinstance(width, int) and height > 0 and width > 0):
        message = f"The image size {height!r} x {width!r} is not two positive integers."
        reading.report("malformed-image", "error", where, message, _CORRECT)
        return None
    if height * width > MAX_PIXELS:
        message = f"The stated size {height} x {width} is above the cap of {MAX_PIXELS} pixels."
        reading.report("malformed-image", "error", where, message, _CORRECT)
        return None
    return Entry(identity, where, path, (height, width))


def _annotations(
    rows: Sequence[Any],
    entries: Mapping[int | str, Entry],
    category_index: Mapping[int, int],
    reading: Reading,
) -> None:
    """Gather every annotation into its image's entry."""
    reading.expects_masks = any(isinstance(row, Mapping) and row.get("segmentation") is not None for row in rows)
    reading.expects_boxes = reading.expects_masks or any(isinstance(row, Mapping) and "bbox" in row for row in rows)
    seen: set[Hashable] = set()
    for position, row in enumerate(rows):
        where = _where("annotations", position, row)
        if not isinstance(row, Mapping) or not _is_id(row.get("image_id")) or not _is_id(row.get("category_id")):
            message = "An annotation needs an image_id and a category_id."
            reading.report("malformed-annotation", "error", where, message, _CORRECT)
            continue
        identity = row.get("id")
        if _is_id(identity) and identity in seen:
            message = "The annotation id is used twice; both are read."
            reading.report("duplicate-annotation-id", "warning", where, message, "Give every annotation its own id.")
        elif _is_id(identity):
            seen.add(identity)
        if row["image_id"] in reading.left_out or row["category_id"] in reading.dropped_categories:
            continue
        if row["image_id"] not in entries:
            message = f"The image id {row['image_id']!r} is not declared."
            reading.report("unknown-image", "error", where, message, "Add the image or remove the annotation.")
            continue
        entry = entries[row["image_id"]]
        entry.seen += 1
        if row["category_id"] not in category_index:
            message = f"The category id {row['category_id']!r} is not declared."
            reading.report("unknown-category", "error", where, message, "Add the category or remove the annotation.")
        elif row.get("iscrowd"):
            message = "A crowd region is not one instance; it is left out."
            reading.report("crowd-region", "warning", where, message, "Nothing to do.")
            gather_crowd_region(row, where, entry, category_index[row["category_id"]], reading)
        elif reading.bad_polygons == "annotation" and first_ring_is_bad(row.get("segmentation")):
            message = "The first polygon ring has fewer than 3 points; the annotation is left out, as asked."
            reading.report("degenerate-polygon", "warning", where, message, "Draw it again or remove it.")
        else:
            gather_annotation(row, where, entry, category_index[row["category_id"]], reading)


def _record(entry: Entry, reading: Reading) -> Record:
    if not entry.seen:
        message = "The image has no annotation; it is kept as background only."
        reading.report("unannotated-image", "warning", entry.index, message, "Annotate it if it shows a category.")
    elif not (entry.boxes or entry.points or entry.truth):
        message = "Every annotation of the image was dropped; it counts as background only."
        reading.report("all-annotations-dropped", "warning", entry.index, message, "Repair or remove the image.")
    boxes = Boxes(np.asarray(entry.boxes, np.float32), np.asarray(entry.box_labels, np.int64))
    points = Points(np.asarray(entry.points, np.float32), np.asarray(entry.point_labels, np.int64))
    sample = Sample(entry.image_id, entry.path, entry.size, boxes if reading.expects_boxes else None, points)
    return Record(sample, tuple(entry.truth), instances=tuple(entry.instances) if reading.expects_boxes else None)
