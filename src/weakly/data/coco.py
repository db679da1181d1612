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
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from weakly.data.dataset import Dataset, Instance, Problem, Record
from weakly.data.geometry import (
    Box,
    box_difference,
    box_from_xywh,
    clip_box,
    numbers,
    rings_extent,
    rle_extent,
    usable_rings,
)
from weakly.data.images import MAX_PIXELS, confined, image_size
from weakly.errors import UserError
from weakly.labels import Boxes, Points, Sample
from weakly.vocabulary import Category, Vocabulary

EXTENT_TOLERANCE_PIXELS = 2.0
EXTENT_TOLERANCE_SHARE = 0.05
"""A box side may differ from its mask's extent by 2 pixels or 5 % of the box's longer side, whichever is more."""

BadPolygons = Literal["ring", "annotation"]
"""What a degenerate polygon ring costs: itself, or (released WPS-SAM code, where it comes first) its annotation."""

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
    reading = _Reading(str(annotations), bad_polygons)
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


@dataclass
class _Reading:
    """What accumulates while one file is read."""

    file: str
    bad_polygons: BadPolygons = "ring"
    problems: list[Problem] = field(default_factory=list)
    no_mask: list[tuple[int | str, int]] = field(default_factory=list)
    left_out: set[int | str] = field(default_factory=set)
    dropped_categories: set[int] = field(default_factory=set)
    expects_boxes: bool = False
    expects_masks: bool = False

    def report(
        self, check: str, severity: str, index: str, message: str, remedy: str, *, file: str | None = None
    ) -> None:
        self.problems.append(Problem(check, severity, file or self.file, index, message, remedy))


@dataclass
class _Entry:
    """One image and the labels gathered for it."""

    image_id: int | str
    index: str
    path: Path
    size: tuple[int, int]
    boxes: list[Box] = field(default_factory=list)
    box_labels: list[int] = field(default_factory=list)
    points: list[tuple[float, float]] = field(default_factory=list)
    point_labels: list[int] = field(default_factory=list)
    truth: list[tuple[int, Any]] = field(default_factory=list)
    instances: list[Instance] = field(default_factory=list)
    seen: int = 0


def _where(section: str, position: int, row: Any) -> str:
    identity = row.get("id") if isinstance(row, Mapping) else None
    return f"{section}[{position}]" + ("" if identity is None else f" (id {identity})")


def _is_id(value: Any) -> bool:
    return isinstance(value, int | str) and not isinstance(value, bool)


def _id_order(identity: int | str) -> tuple[bool, int, str]:
    """Numbers first, then strings."""
    return (True, 0, identity) if isinstance(identity, str) else (False, identity, "")


def _categories(
    rows: Sequence[Any], drop: Sequence[str], default_object: str | None, reading: _Reading
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


def _images(rows: Sequence[Any], root: Path, reading: _Reading) -> dict[int | str, _Entry]:
    """{image id: entry} of the usable images."""
    entries: dict[int | str, _Entry] = {}
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


def _image(identity: int | str, where: str, row: Mapping[str, Any], root: Path, reading: _Reading) -> _Entry | None:
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
    return _Entry(identity, where, path, (height, width))


def _annotations(
    rows: Sequence[Any],
    entries: Mapping[int | str, _Entry],
    category_index: Mapping[int, int],
    reading: _Reading,
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
            _crowd_region(row, where, entry, category_index[row["category_id"]], reading)
        elif reading.bad_polygons == "annotation" and _first_ring_is_bad(row.get("segmentation")):
            message = "The first polygon ring has fewer than 3 points; the annotation is left out, as asked."
            reading.report("degenerate-polygon", "warning", where, message, "Draw it again or remove it.")
        else:
            _annotation(row, where, entry, category_index[row["category_id"]], reading)


def _first_ring_is_bad(segmentation: Any) -> bool:
    """The released code's test: the first ring has four numbers or fewer."""
    rings = segmentation if isinstance(segmentation, list) else []
    return bool(rings) and isinstance(rings[0], list) and len(rings[0]) <= 4


def _annotation(row: Mapping[str, Any], where: str, entry: _Entry, label: int, reading: _Reading) -> None:
    mask, extent = _mask(row, where, entry, reading)
    if mask is not None:
        entry.truth.append((label, mask))
    elif reading.expects_masks:
        reading.no_mask.append((entry.image_id, label))
    point = _point(row, where, entry, reading)
    box = _box(row, where, entry, extent, reading, needed=point is None)
    true_box = clip_box(extent, entry.size) if box is None and extent is not None else box
    if true_box is not None:
        entry.instances.append(Instance(label, true_box, mask))
    if box is not None:
        entry.boxes.append(box)
        entry.box_labels.append(label)
        point = point or ((box[0] + box[2]) / 2, (box[1] + box[3]) / 2)
    if point is not None:
        entry.points.append(point)
        entry.point_labels.append(label)


def _crowd_region(row: Mapping[str, Any], where: str, entry: _Entry, label: int, reading: _Reading) -> None:
    """Keep a crowd region for evaluation, which passes over what is found there; its own defects do not matter."""
    unheard = replace(reading, problems=[])
    mask, extent = _mask(row, where, entry, unheard)
    box = _box(row, where, entry, extent, unheard, needed=False)
    if box is not None:
        entry.instances.append(Instance(label, box, mask, difficult=True, crowd=True))


def _mask(row: Mapping[str, Any], where: str, entry: _Entry, reading: _Reading) -> tuple[Any, Box | None]:
    """The usable part of ``segmentation`` and its extent; (None, None) where there is none."""
    segmentation = row.get("segmentation")
    if segmentation is None and not reading.expects_masks:
        return None, None
    if isinstance(segmentation, Mapping):
        extent = rle_extent(segmentation, entry.size)
        if extent is not None:
            return dict(segmentation), extent
        message = f"The RLE is malformed, empty or not of the image's size {list(entry.size)}; only the box is used."
        reading.report("no-mask", "warning", where, message, "Draw or encode the mask again.")
        return None, None
    rings, dropped = usable_rings(segmentation if isinstance(segmentation, list) else [])
    if dropped:
        message = f"{dropped} polygon ring(s) with fewer than 3 points or without area are dropped."
        reading.report("degenerate-polygon", "warning", where, message, "Draw them again or remove them.")
    if not rings:
        message = "No usable mask; the box is used for training and evaluation counts no mask."
        reading.report("no-mask", "warning", where, message, "Draw the mask again.")
        return None, None
    extent = rings_extent(rings)
    overhang = max(-extent[0], -extent[1], extent[2] - entry.size[1], extent[3] - entry.size[0])
    if overhang > 1:
        message = f"The polygon leaves the image by {overhang:.1f} pixels; it is cut at the border."
        reading.report("polygon-outside", "warning", where, message, "Nothing to do if that is intended.")
    return rings, extent


def _box(
    row: Mapping[str, Any], where: str, entry: _Entry, extent: Box | None, reading: _Reading, *, needed: bool
) -> Box | None:
    """The clipped box of an annotation, or of its mask where it states none."""
    inside = None if extent is None else clip_box(extent, entry.size)
    if row.get("bbox") is None:
        if inside is not None:
            message = "The annotation has no bbox; its mask's extent is used."
            reading.report("missing-box", "warning", where, message, "Nothing to do if that is intended.")
        elif needed:
            message = "The annotation has neither box, mask nor point and is left out."
            reading.report("missing-box", "error", where, message, "Give it a bbox [x, y, width, height].")
        return inside
    xywh = numbers(row["bbox"], 4)
    stated = None if xywh is None else box_from_xywh(xywh)
    box = None if stated is None else clip_box(stated, entry.size)
    if stated is None or box is None:
        height, width = entry.size
        message = f"The box {row['bbox']!r} has less than 1 pixel inside the {width} x {height} image and is dropped."
        reading.report("box-dropped", "error", where, message, "Give it a bbox [x, y, width, height] in pixels.")
        return None
    if box_difference(stated, box) > 0.01:
        message = f"The box {row['bbox']!r} leaves the image and is clipped."
        reading.report("box-clipped", "warning", where, message, "Nothing to do if that is intended.")
    tolerance = max(EXTENT_TOLERANCE_PIXELS, EXTENT_TOLERANCE_SHARE * max(box[2] - box[0], box[3] - box[1]))
    if inside is not None and (difference := box_difference(box, inside)) > tolerance:
        message = f"The box differs from its mask's extent by {difference:.1f} pixels; the box is used."
        reading.report("box-mask-mismatch", "warning", where, message, "Check that bbox is [x, y, width, height].")
    return box


def _point(row: Mapping[str, Any], where: str, entry: _Entry, reading: _Reading) -> tuple[float, float] | None:
    """``point``, or the one visible keypoint; None where neither is given or it lies outside the image."""
    stated = row.get("point")
    keypoints = row.get("keypoints")
    if stated is None and isinstance(keypoints, list):
        triples = [keypoints[i : i + 3] for i in range(0, len(keypoints) - 2, 3)]
        visible = [triple[:2] for triple in triples if triple[2]]
        stated = visible[0] if len(visible) == 1 else None
    if stated is None:
        return None
    xy = numbers(stated, 2)
    height, width = entry.size
    if xy is None or not (0 <= xy[0] < width and 0 <= xy[1] < height):
        message = f"The point {stated!r} is not inside the image; the box centre is used."
        reading.report("point-outside", "warning", where, message, "Give [x, y] in pixels.")
        return None
    return xy[0], xy[1]


def _record(entry: _Entry, reading: _Reading) -> Record:
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
