"""Writes a world of the menagerie to disk in the layout of PASCAL VOC 2012. The kinds are the classes.

    world.json                               which world this is, and which splits are finished
    JPEGImages/<stem>.jpg                    stem: 2026_ and the number of the scene from 1, at least six digits
    Annotations/<stem>.xml                   objects with 1-based inclusive boxes, and their parts
    SegmentationClass/<stem>.png             palette PNG: 0 background, k class ``VOC_CLASSES[k - 1]``
    SegmentationObject/<stem>.png            palette PNG: 0 background, o the o-th object of the XML
    ImageSets/Main/{split}.txt               stems
    ImageSets/Main/{class}_{split}.txt       stems with 1 (present), 0 (only difficult ones) or -1
    ImageSets/Segmentation/{split}.txt       stems

Unlike VOC, maps have no void border (255): rendered borders are certain.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from xml.etree import ElementTree as ET

import numpy as np
from numpy.typing import NDArray

from weakly.data.menagerie.kinds import KINDS, PART_NAMES, PART_SUPER_CATEGORIES
from weakly.data.menagerie.scene import Scene, render_scene
from weakly.data.menagerie.world import (
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
from weakly.files import write_atomic

VOC_CLASSES: tuple[str, ...] = tuple(sorted(KINDS))
"""Class ``k`` of the maps is ``VOC_CLASSES[k - 1]``: alphabetical, as in VOC."""

DIFFICULT_SHARE = 0.005
"""An object that fills less of the image is marked difficult (VOC's evaluation leaves such objects out)."""

_LAYOUT_FOLDERS = ("JPEGImages", "Annotations", "SegmentationClass", "SegmentationObject", "ImageSets")


def write_voc(
    root: Path,
    splits: Mapping[str, int],
    *,
    seed: int,
    size: int = 256,
    kinds: Sequence[str] | None = None,
    workers: int | None = None,
    progress: Progress | None = None,
) -> None:
    """Write a world in VOC 2012's layout. Scenes are those of ``write_partimagenet`` with the same seed and size.

    Resumable and growing like ``write_partimagenet``, with the same arguments and errors. A split's last file is
    ``ImageSets/Main/{split}.txt``.

    Args:
        root: folder to write (what VOC calls ``VOC2012``); made if it does not exist.
        splits: {``"train"``, ``"val"`` or ``"test"``: number of images}.
        seed: of the world; a few are reserved.
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


def voc_palette() -> NDArray[np.uint8]:
    """VOC's colour map, uint8 (256, 3) RGB: the bits of an index, lowest three first, are the colours' top bits."""
    index = np.arange(256)
    palette = np.zeros((256, 3), np.uint8)
    for bit in range(8):
        for channel in range(3):
            palette[:, channel] |= ((index >> (3 * bit + channel) & 1) << (7 - bit)).astype(np.uint8)
    return palette


def _draw(world: World, split: str, index: int) -> Entry:  # noqa: ARG001 - VOC's folders know no splits
    """Write the files of one scene; its entry holds its stem and the classes and difficulty of its objects."""
    scene = render_scene(world.seed, index, world.size, kinds=world.kinds)
    stem = f"2026_{index + 1:06d}"
    classes = np.array([0, *(VOC_CLASSES.index(o.kind) + 1 for o in scene.objects)], np.uint8)
    palette = voc_palette()
    document = _annotation(scene, stem)
    files = {
        f"JPEGImages/{stem}.jpg": jpeg(scene.image),
        f"Annotations/{stem}.xml": ET.tostring(document, encoding="utf-8") + b"\n",
        f"SegmentationClass/{stem}.png": png(classes[scene.object_map], palette),
        f"SegmentationObject/{stem}.png": png(scene.object_map, palette),
    }
    for name, content in files.items():
        write_if_changed(world.root / name, content)
    objects = [[o.findtext("name"), o.findtext("difficult") == "1"] for o in document.iter("object")]
    return {"files": list(files), "stem": stem, "objects": objects}


def _annotation(scene: Scene, stem: str) -> ET.Element:
    """The XML of one scene."""
    height, width = scene.object_map.shape
    top = ET.Element("annotation")
    _texts(top, folder="VOC2012", filename=f"{stem}.jpg")
    _texts(ET.SubElement(top, "source"), database="weakly menagerie", annotation="rendered", image="rendered")
    _texts(ET.SubElement(top, "size"), width=width, height=height, depth=3)
    _texts(top, segmented=1)
    for number in range(1, len(scene.objects) + 1):
        _object(top, scene, number)
    ET.indent(top, "\t")
    return top


def _object(top: ET.Element, scene: Scene, number: int) -> None:
    """Append object ``number`` (from 1) with its parts, as VOC's person layout states them."""
    mask = scene.object_map == number
    x0, y0, x1, y1 = tight_box(mask)
    side = len(mask)
    element = ET.SubElement(top, "object")
    _texts(
        element,
        name=scene.objects[number - 1].kind,
        pose="Unspecified",
        truncated=int(min(x0, y0) == 0 or max(x1, y1) == side),
        occluded=int(_behind_another(scene.object_map, number)),
        difficult=int(mask.sum() < DIFFICULT_SHARE * mask.size),
    )
    _box(element, (x0, y0, x1, y1))
    for k, part in enumerate(scene.parts, 1):
        if part.object_index == number - 1:
            category = part.category
            inside = ET.SubElement(element, "part")
            _texts(inside, name=PART_NAMES[category].removeprefix(f"{PART_SUPER_CATEGORIES[category]} ").lower())
            _box(inside, tight_box(scene.part_map == k))


def _behind_another(object_map: NDArray[np.uint8], number: int) -> bool:
    """Whether a nearer object (of a higher number) touches this one. Clutter in front is in no map and not counted."""
    across = object_map[:, :-1], object_map[:, 1:]
    down = object_map[:-1], object_map[1:]
    pairs = ((across[0], across[1]), (across[1], across[0]), (down[0], down[1]), (down[1], down[0]))
    return any(bool(((a == number) & (b > number)).any()) for a, b in pairs)


def _box(parent: ET.Element, box: tuple[int, int, int, int]) -> None:
    """Append a bounding box: VOC counts pixels from 1 and includes the last one."""
    x0, y0, x1, y1 = box
    _texts(ET.SubElement(parent, "bndbox"), xmin=x0 + 1, ymin=y0 + 1, xmax=x1, ymax=y1)


def _texts(parent: ET.Element, **values: str | int) -> None:
    """Append one element per value."""
    for tag, value in values.items():
        ET.SubElement(parent, tag).text = str(value)


def _finish(world: World, split: str, entries: Sequence[Entry]) -> None:
    """Write the image sets of a split, ``Main/{split}.txt`` last."""
    sets = world.root / "ImageSets"
    for name in VOC_CLASSES:
        lines = [f"{entry['stem']} {_presence(name, entry):2d}" for entry in entries]
        write_atomic(sets / "Main" / f"{name}_{split}.txt", "\n".join(lines) + "\n")
    stems = "\n".join(entry["stem"] for entry in entries) + "\n"
    write_atomic(sets / "Segmentation" / f"{split}.txt", stems)
    write_atomic(sets / "Main" / f"{split}.txt", stems)


def _presence(name: str, entry: Entry) -> int:
    """1: an object of the class is in the image; 0: difficult ones only; -1: none."""
    difficult = [hard for kind, hard in entry["objects"] if kind == name]
    if not difficult:
        return -1
    return 0 if all(difficult) else 1


def _last_file(split: str) -> str:
    return f"ImageSets/Main/{split}.txt"


_LAYOUT = Layout("voc", _LAYOUT_FOLDERS, _draw, _finish, _last_file)
