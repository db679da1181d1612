"""One annotation of a COCO instance file -> the weak labels and the truth of its image.

What each defect costs stands in :mod:`weakly.data.coco`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from weakly.data.dataset import Instance, Problem
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

EXTENT_TOLERANCE_PIXELS = 2.0
EXTENT_TOLERANCE_SHARE = 0.05
"""A box side may differ from its mask's extent by 2 pixels or 5 % of the box's longer side, whichever is more."""

BadPolygons = Literal["ring", "annotation"]
"""What a degenerate polygon ring costs: itself, or (released WPS-SAM code, where it comes first) its annotation."""


@dataclass
class Reading:
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
        """Add a :class:`~weakly.data.dataset.Problem`; ``file`` is the annotation file where none is given."""
        self.problems.append(Problem(check, severity, file or self.file, index, message, remedy))


@dataclass
class Entry:
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


def first_ring_is_bad(segmentation: Any) -> bool:
    """The released code's test: the first ring has four numbers or fewer."""
    rings = segmentation if isinstance(segmentation, list) else []
    return bool(rings) and isinstance(rings[0], list) and len(rings[0]) <= 4


def gather_annotation(row: Mapping[str, Any], where: str, entry: Entry, label: int, reading: Reading) -> None:
    """Add the weak labels and the truth of an annotation to its image's entry."""
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


def gather_crowd_region(row: Mapping[str, Any], where: str, entry: Entry, label: int, reading: Reading) -> None:
    """Keep a crowd region for evaluation, which passes over what is found there; its own defects do not matter."""
    unheard = replace(reading, problems=[])
    mask, extent = _mask(row, where, entry, unheard)
    box = _box(row, where, entry, extent, unheard, needed=False)
    if box is not None:
        entry.instances.append(Instance(label, box, mask, difficult=True, crowd=True))


def _mask(row: Mapping[str, Any], where: str, entry: Entry, reading: Reading) -> tuple[Any, Box | None]:
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
    row: Mapping[str, Any], where: str, entry: Entry, extent: Box | None, reading: Reading, *, needed: bool
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


def _point(row: Mapping[str, Any], where: str, entry: Entry, reading: Reading) -> tuple[float, float] | None:
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
