"""Writes a world of the menagerie to disk, in PartImageNet's layout (and, from ``write_voc``, in VOC's).

world.json                              which world this is, and which splits are finished
images/{split}/<wnid>_<n>.JPEG          n: number of the scene; wnid: pseudo WordNet id of its first object's kind
annotations/{split}/<stem>.png          part map: category 0..39, background 40
annotations/{split}/<stem>.json         imgHeight, imgWidth
annotations/{split}/{split}.json        COCO instances: one annotation per visible part
annotations/{split}_whole/<stem>.png    object map: index of the kind in ``KINDS``, background ``len(KINDS)``
annotations/{split}_whole/{split}.json  COCO instances: one annotation per visible object
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from weakly.data.menagerie.kinds import KINDS, PART_NAMES, PART_SUPER_CATEGORIES
from weakly.data.menagerie.scene import render_scene
from weakly.data.menagerie.world import (
    RESERVED_SEEDS,
    Entry,
    Layout,
    Progress,
    World,
    jpeg,
    png,
    tight_box,
    write_if_changed,
    write_world,
)
from weakly.data.menagerie.write_voc import write_voc
from weakly.files import write_json

__all__ = ["RESERVED_SEEDS", "instance_segmentation", "write_partimagenet", "write_voc"]

MIN_POLYGON_IOU = 0.9
"""Polygons that rasterise to less overlap with their mask (holes, for which COCO has none) give way to run lengths."""

_SMOOTHING = 0.4  # pixels by which a polygon may leave its outline
_KIND_INDEX = {name: index for index, name in enumerate(KINDS)}


def write_partimagenet(
    root: Path,
    splits: Mapping[str, int],
    *,
    seed: int,
    size: int = 256,
    kinds: Sequence[str] | None = None,
    workers: int | None = None,
    progress: Progress | None = None,
) -> None:
    """Write a world in the layout of PartImageNet's Seg split: the same kinds in every split.

    Resumable: killed at any moment, the next call goes on and ends with the same bytes. A finished world is left
    alone, more splits can be added, and a split can grow (it keeps its images). The COCO file of the parts is a
    split's last file: where it is, the split is complete.

    Args:
        root: folder to write; made if it does not exist.
        splits: {``"train"``, ``"val"`` or ``"test"``: number of images}.
        seed: of the world; see :data:`RESERVED_SEEDS` for those that it may not have.
        size: side of the square images, pixels.
        kinds: names of the object kinds that occur; all of them by default.
        workers: processes; one per available core by default; 1 draws in this process.
        progress: called with (images done, images in all) after every few images.

    Raises:
        UserError: wrong arguments, or ``root`` holds another world or something else.
        WeaklyError: the disk is full, or a worker process was killed.
    """
    write_world(
        World(root, seed, size, None if kinds is None else tuple(kinds)),
        _LAYOUT,
        splits,
        workers=workers,
        progress=progress,
    )


def instance_segmentation(mask: NDArray[np.bool_]) -> list[list[float]] | dict[str, Any]:
    """A mask as COCO segmentation.

    Args:
        mask: (H, W), not empty.

    Returns:
        Polygons ``[[x0, y0, x1, y1, ...], ...]`` in image pixels, one per connected region; compressed run lengths
        ``{"size": [H, W], "counts": str}`` where polygons would miss :data:`MIN_POLYGON_IOU`.
    """
    height, width = mask.shape
    rings = _outlines(mask)
    rasterised = coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(rings, height, width))).astype(bool)
    if (rasterised & mask).sum() >= MIN_POLYGON_IOU * (rasterised | mask).sum():
        return rings
    encoded = coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {"size": [height, width], "counts": encoded["counts"].decode("ascii")}


def _outlines(mask: NDArray[np.bool_]) -> list[list[float]]:
    """Outer outlines of the connected regions.

    Contours run through pixel centres and so lose half a pixel on every side, most of a thin limb. On the mask at
    twice its size they pass a quarter of an image pixel inside the true border, which rasterises exactly.
    """
    x0, y0, x1, y1 = tight_box(mask)
    doubled = mask[y0:y1, x0:x1].astype(np.uint8).repeat(2, axis=0).repeat(2, axis=1)
    contours, _ = cv2.findContours(doubled, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    rings = []
    for contour in contours:
        smooth = cv2.approxPolyDP(contour, 2 * _SMOOTHING, closed=True)
        ring = (smooth if len(smooth) >= 3 else contour).reshape(-1, 2)
        rings.append(((ring + 0.5) / 2 + (x0, y0)).ravel().tolist())
    return rings


def _draw(world: World, split: str, index: int) -> Entry:
    """Write the files of one scene; its entry holds the annotations, without ids."""
    scene = render_scene(world.seed, index, world.size, kinds=world.kinds)
    stem = f"{KINDS[scene.objects[0].kind].wordnet_id}_{index}"
    categories = [part.category for part in scene.parts]
    kinds = [_KIND_INDEX[o.kind] for o in scene.objects]
    labels, whole = f"annotations/{split}", f"annotations/{split}_whole"
    files = {
        f"images/{split}/{stem}.JPEG": jpeg(scene.image),
        f"{labels}/{stem}.png": png(np.array([len(PART_NAMES), *categories], np.uint8)[scene.part_map]),
        f"{labels}/{stem}.json": json.dumps({"imgHeight": world.size, "imgWidth": world.size}).encode(),
        f"{whole}/{stem}.png": png(np.array([len(KINDS), *kinds], np.uint8)[scene.object_map]),
    }
    for name, content in files.items():
        write_if_changed(world.root / name, content)
    return {
        "files": list(files),
        "file_name": f"{stem}.JPEG",
        "parts": part_instances(scene.part_map, categories),
        "objects": part_instances(scene.object_map, kinds),
    }


def part_instances(numbered: NDArray[np.uint8], categories: Sequence[int]) -> list[dict[str, Any]]:
    """COCO annotations of the N instances of an (H, W) map (0 none, k instance ``k - 1``), without ids."""
    instances = []
    for number, category in enumerate(categories, 1):
        mask = numbered == number
        x0, y0, x1, y1 = tight_box(mask)
        instances.append(
            {
                "category_id": category,
                "bbox": [x0, y0, x1 - x0, y1 - y0],
                "area": int(mask.sum()),
                "iscrowd": 0,
                "segmentation": instance_segmentation(mask),
            }
        )
    return instances


def _finish(world: World, split: str, entries: Sequence[Entry]) -> None:
    """Write the COCO files of a split, that of the parts last."""
    kinds = [(kind.name, kind.super_category) for kind in KINDS.values()]
    parts = list(zip(PART_NAMES, PART_SUPER_CATEGORIES, strict=True))
    for folder, key, categories in ((f"{split}_whole", "objects", kinds), (split, "parts", parts)):
        document = coco_document(entries, key, categories, world.size)
        write_json(world.root / "annotations" / folder / f"{split}.json", document, indent=None)


def coco_document(
    entries: Sequence[Entry], key: str, categories: Sequence[tuple[str, str]], size: int
) -> dict[str, Any]:
    """The COCO document of a split; image ids from 0, annotation ids from 1 (0 means "unmatched" to COCO's evaluation).

    Args:
        entries: of the scenes.
        key: under which they hold their annotations.
        categories: (name, supercategory) of ids 0, 1, ...
        size: side of the square images, pixels.
    """
    found = [(image_id, row) for image_id, entry in enumerate(entries) for row in entry[key]]
    return {
        "images": [
            {"id": image_id, "file_name": entry["file_name"], "height": size, "width": size}
            for image_id, entry in enumerate(entries)
        ],
        "annotations": [{"id": n, "image_id": image_id, **row} for n, (image_id, row) in enumerate(found, 1)],
        "categories": [{"id": i, "name": name, "supercategory": whole} for i, (name, whole) in enumerate(categories)],
    }


def _last_file(split: str) -> str:
    return f"annotations/{split}/{split}.json"


_LAYOUT = Layout("partimagenet", ("images", "annotations"), _draw, _finish, _last_file)
