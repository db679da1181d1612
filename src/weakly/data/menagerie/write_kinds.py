"""Writes a world of the menagerie with its object kinds as objects: a category is the part of one kind.

    world.json                              which world this is, and which splits are finished
    images/{split}/<wnid>_<n>.JPEG          as in PartImageNet's layout, same scenes
    annotations/{split}/<stem>.png          class map: category 0..K-1, background K
    annotations/{split}/{split}.json        COCO instances: one annotation per visible part

Categories are named ``"<kind>'s <part>"`` (``"horse's head"``) with the kind for supercategory, so the reader of
PartImageNet's layout gives them their objects. Every kind is in every split: which kinds a method learns from is the
recipe's business, and nothing is removed here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from weakly.data.menagerie.kinds import KINDS, PART_NAMES, PARTS_OF
from weakly.data.menagerie.scene import render_scene
from weakly.data.menagerie.world import Entry, Layout, Progress, World, jpeg, png, write_if_changed, write_world
from weakly.data.menagerie.write import coco_document, part_instances
from weakly.files import write_json

TAILLESS = ("ape",)
"""Kinds that are drawn without the tail of their super-category."""

_OWN_PARTS: tuple[tuple[str, str], ...] = tuple(
    (name, part)
    for name, kind in KINDS.items()
    for part in PARTS_OF[kind.super_category]
    if not (part == "Tail" and name in TAILLESS)
)

KIND_CLASSES: tuple[tuple[str, str], ...] = tuple((f"{kind}'s {part.lower()}", kind) for kind, part in _OWN_PARTS)
"""(name, kind) of the K categories, kinds in their own order: ``("fox's head", "fox"), ...``."""

_CLASS_INDEX = {
    (kind, PART_NAMES.index(f"{KINDS[kind].super_category} {part}")): index
    for index, (kind, part) in enumerate(_OWN_PARTS)
}


def write_kinds(
    root: Path,
    splits: Mapping[str, int],
    *,
    seed: int,
    size: int = 256,
    kinds: Sequence[str] | None = None,
    workers: int | None = None,
    progress: Progress | None = None,
) -> None:
    """Write a world with parts of kinds. Scenes are those of ``write_partimagenet`` with the same seed and size.

    Resumable and growing like ``write_partimagenet``, with the same arguments and errors. A split's last file is its
    COCO file.

    Args:
        root: folder to write; made if it does not exist.
        splits: {``"train"``, ``"val"`` or ``"test"``: number of images}.
        seed: of the world; a few are reserved.
        size: side of the square images, pixels.
        kinds: names of the object kinds that occur; all of them by default. The categories are those of all kinds.
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


def _draw(world: World, split: str, index: int) -> Entry:
    """Write the files of one scene; its entry holds the annotations, without ids."""
    scene = render_scene(world.seed, index, world.size, kinds=world.kinds)
    stem = f"{KINDS[scene.objects[0].kind].wordnet_id}_{index}"
    classes = [_CLASS_INDEX[scene.objects[part.object_index].kind, part.category] for part in scene.parts]
    files = {
        f"images/{split}/{stem}.JPEG": jpeg(scene.image),
        f"annotations/{split}/{stem}.png": png(np.array([len(KIND_CLASSES), *classes], np.uint8)[scene.part_map]),
    }
    for name, content in files.items():
        write_if_changed(world.root / name, content)
    return {"files": list(files), "file_name": f"{stem}.JPEG", "parts": part_instances(scene.part_map, classes)}


def _finish(world: World, split: str, entries: Sequence[Entry]) -> None:
    """Write the COCO file of a split."""
    document = coco_document(entries, "parts", KIND_CLASSES, world.size)
    write_json(world.root / _last_file(split), document, indent=None)


def _last_file(split: str) -> str:
    return f"annotations/{split}/{split}.json"


_LAYOUT = Layout("kinds", ("images", "annotations"), _draw, _finish, _last_file)
