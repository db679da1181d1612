"""Pascal-Part with merged parts as the authors of Compositor (CVPR 2023) released it (``Pascal_Part.zip``).

    JPEGImages/{train,val}/<stem>.jpg
    annotations/{train,val}/<stem>.png              part map; 255: void
    annotations/{train_whole,val_whole}/<stem>.png  object maps; not read
    classes.txt                                     not in the archive: see below

Label maps are taken as they are, and are the truth. **They have no object ids**: a box is drawn around every connected
region (8 neighbours) of a part, so that touching parts of two objects share a box and a part that something hides in
the middle gives two. Regions below :data:`MIN_PIXELS` pixels give no box.

The archive states no names. ``classes.txt`` gives them, one per line: line k, counted from 0 without blank ones, names
value k; the line ``background`` is the value of the background, else the value after the last line. Without the file
the maps of all splits are read once more: the most frequent value is taken for background, and the others are called
"part 3".
"""

from __future__ import annotations

import logging
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from weakly.data.dataset import VOID, Dataset, Instance, Problem, Record
from weakly.data.geometry import Box
from weakly.data.images import confined, read_image
from weakly.data.part_maps import MapEntry, map_entries, read_part_map
from weakly.data.tags import Read, read_records
from weakly.errors import UserError
from weakly.labels import Boxes
from weakly.segmentation import Rle, encode_masks
from weakly.vocabulary import Category, Vocabulary

log = logging.getLogger(__name__)

MIN_PIXELS = 16
"""A connected region with fewer pixels gives no box: nobody would draw one. Its pixels stay in the truth."""

CHUNK = 64
"""Regions encoded at once."""

SPLITS = ("train", "val")
_NEIGHBOURS = 8


@dataclass(frozen=True)
class Values:
    """What the values of the part maps mean.

    Attributes:
        vocabulary: the parts; their source ids are their values.
        background: value of pixels without a part.
    """

    vocabulary: Vocabulary
    background: int


def read_pascal_part_compositor(root: Path, split: str, *, name: str = "pascal-part-compositor") -> Dataset:
    """Read one split. Every part map is decoded once, without ``classes.txt`` twice; pixels are not kept.

    Args:
        root: the folder with ``JPEGImages/`` and ``annotations/`` (what the archive calls ``Pascal_Part``).
        split: ``"train"`` or ``"val"``.
        name: what tables call the dataset.

    Returns:
        Records in order of path, ids are stems. Boxes and instances are connected regions of at least
        :data:`MIN_PIXELS` pixels; truth masks are all regions, the smaller ones of a part together.

    Raises:
        UserError: a folder is missing or has no image, or the class list cannot be used.
    """
    problems: list[Problem] = []
    entries = map_entries(root / "JPEGImages" / split, root / "annotations" / split, problems)
    classes = root / "classes.txt"
    values = stated_values(classes) if classes.is_file() else _values_found(root, problems)
    records, found = read_records(partial(_read, values=values), entries)
    log.warning(
        "%s has no object ids: a box goes around every connected region of a part, so touching objects share one.", name
    )
    return Dataset(name, split, values.vocabulary, records, (*problems, *found), values.background)


def stated_values(path: Path) -> Values:
    """The meaning of the values as a class list states it.

    Raises:
        UserError: not UTF-8, or a name occurs twice, or there is none.
    """
    try:
        lines = [line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines()]
    except UnicodeDecodeError as error:
        raise UserError(f"The class list {path} is not text in UTF-8 ({error}); save it as UTF-8.") from error
    names = [line for line in lines if line]
    is_background = [name.strip("_").casefold() == "background" for name in names]
    background = is_background.index(True) if any(is_background) else len(names)
    if background == 0 == len(names) - 1 or not names:
        raise UserError(f"The class list {path} names no part; write one name per line, the first for value 0.")
    if len(names) > VOID:
        raise UserError(f"The class list {path} has {len(names)} lines; value {VOID} of the part maps is void.")
    categories = tuple(Category(name, source_id=v) for v, name in enumerate(names) if v != background)
    return Values(Vocabulary(categories), background)


def _values_found(root: Path, problems: list[Problem]) -> Values:
    """The meaning of the values as the part maps of all splits suggest it, with a warning that says so."""
    maps = root / "annotations"
    paths = sorted(path for split in SPLITS for path in (maps / split).glob("*.png"))
    with ThreadPoolExecutor() as pool:
        pixels = sum(pool.map(partial(_pixels_of_values, maps), paths), np.zeros(VOID + 1, np.int64))[:VOID]
    background = int(pixels.argmax())
    parts = [value for value in np.flatnonzero(pixels).tolist() if value != background]
    if not parts:
        raise UserError(f"The part maps in {maps} show no part; check that it is the folder of Compositor's archive.")
    message = (
        f"The values of the part maps have no names; {background}, the most frequent one, is taken for background."
    )
    remedy = "Write classes.txt: line k, counted from 0, names value k; call the background 'background'."
    problems.append(Problem("classes-unnamed", "warning", str(root / "classes.txt"), "", message, remedy))
    return Values(Vocabulary(tuple(Category(f"part {v}", source_id=v) for v in parts)), background)


def _pixels_of_values(root: Path, path: Path) -> NDArray[np.int64]:
    """(256,) pixels of each value; none where the map cannot be read, which its record reports."""
    try:
        stored = read_image(confined(root, path.relative_to(root)), mode="index")
    except UserError:
        return np.zeros(VOID + 1, np.int64)
    return np.bincount(np.minimum(stored, VOID).ravel(), minlength=VOID + 1)


def _read(entry: MapEntry, values: Values) -> Read:
    record, problems = read_part_map(entry)
    if record is None:
        return None, problems
    try:
        stored = read_image(entry.label_map, mode="index")
    except UserError as error:
        remedy = "Restore the part map; until then the image is left out."
        return None, [Problem("label-map-unreadable", "error", str(entry.label_map), entry.index, str(error), remedy)]
    return _with_regions(record, stored, values.vocabulary), problems


def _with_regions(record: Record, stored: NDArray[Any], vocabulary: Vocabulary) -> Record:
    """The record with a box around every region, and the regions as truth."""
    instances: list[Instance] = []
    truth: list[tuple[int, Rle]] = []
    shown = {*np.unique(stored).tolist()}
    for label in [label for label in range(len(vocabulary)) if vocabulary.source_id(label) in shown]:
        boxes, rles, specks = connected_regions(stored == vocabulary.source_id(label))
        truth += [(label, rle) for rle in (*rles, *specks)]
        for box, rle in zip(boxes, rles, strict=True):
            instances.append(Instance(label, box, rle, number=len(instances) + 1))
    labelled = Boxes(np.array([i.box for i in instances], np.float32), np.array([i.label for i in instances], np.int64))
    sample = replace(record.sample, boxes=labelled)
    return replace(record, sample=sample, truth=tuple(truth), instances=tuple(instances))


def connected_regions(mask: NDArray[np.bool_]) -> tuple[list[Box], tuple[Rle, ...], tuple[Rle, ...]]:
    """The connected regions (8 neighbours) of a (H, W) mask, from top to bottom.

    Memory: :data:`CHUNK` masks.

    Returns:
        Boxes and masks of the regions of at least :data:`MIN_PIXELS` pixels, and one mask of all smaller ones together,
        if there are any.
    """
    _, numbered, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=_NEIGHBOURS)
    large = stats[:, cv2.CC_STAT_AREA] >= MIN_PIXELS
    large[0] = False  # what is outside the mask
    numbers = np.flatnonzero(large)
    chunks = [numbers[start : start + CHUNK] for start in range(0, len(numbers), CHUNK)]
    rles = tuple(rle for chunk in chunks for rle in encode_masks(numbered == chunk[:, None, None]))
    x, y, width, height = stats[numbers, :4].T
    boxes = np.stack([x, y, x + width, y + height], 1).astype(float).tolist()
    specks = mask & ~large[numbered]
    return [(x0, y0, x1, y1) for x0, y0, x1, y1 in boxes], rles, encode_masks(specks[None]) if specks.any() else ()
