"""PartImageNet in its published "Seg" layout (the rendered Menagerie is written in the same one).

    images/{split}/<stem>.JPEG
    annotations/{split}/{split}.json    COCO instances: polygons of parts
    annotations/{split}/<stem>.png      part map: category ids, background = number of categories (40), void 255
    annotations/{split}/<stem>.json     imgHeight and imgWidth
    annotations/{split}_whole/          object maps; not read

Two different splits of PartImageNet share this layout and its split names: *Seg* (the same object classes in every
split) and *OOD* (classes of val and test never occur in train). Numbers on one say nothing about the other.
"""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

from weakly.data.coco import read_coco
from weakly.data.coco_annotation import BadPolygons
from weakly.data.dataset import Dataset, Problem, Record
from weakly.data.images import confined
from weakly.errors import UserError

_WORDNET_ID = re.compile(r"n\d{8}(?=_)")


def read_partimagenet(
    root: Path,
    split: str,
    *,
    name: str = "partimagenet",
    allow_ood: bool = False,
    bad_polygons: BadPolygons = "ring",
) -> Dataset:
    """Read one split. Category names and ids are taken from the JSON; images are only looked for, not opened.

    Args:
        root: the folder with ``images/`` and ``annotations/``.
        split: ``"train"``, ``"val"`` or ``"test"``.
        name: what tables call the dataset.
        allow_ood: read the OOD split too.
        bad_polygons: see :func:`~weakly.data.coco.read_coco`.

    Raises:
        UserError: the split is not there, or it is the OOD split and that was not asked for.
    """
    images, labels = root / "images" / split, root / "annotations" / split
    for folder in (images, labels):
        if not folder.is_dir():
            raise UserError(
                f"There is no folder {folder}; the data folder must hold images/{split} and annotations/{split}."
            )
    if not allow_ood and is_ood(root, split):
        raise UserError(
            f"The data in {root} are PartImageNet's OOD split (the object classes of {split!r} and another split are "
            "disjoint), not the Seg split; download PartImageNet_Seg or allow the OOD split."
        )
    dataset = read_coco(labels / f"{split}.json", images, name=name, split=split, bad_polygons=bad_polygons)
    ships_maps = any(path.suffix == ".png" for path in labels.iterdir())
    records, problems = _with_label_maps(dataset.records, labels) if ships_maps else (dataset.records, [])
    last_id = max(dataset.vocabulary.by_source_id())
    return replace(
        dataset,
        records=records,
        problems=(*dataset.problems, *problems),
        label_map_background=last_id + 1 if ships_maps else None,
        extra={**dataset.extra, "label_maps": labels},
    )


def is_ood(root: Path, split: str) -> bool:
    """Whether a split shares no WordNet id with train (train: with val or test). Names without ids are never OOD."""
    own = wordnet_ids(root / "images" / split)
    others = [wordnet_ids(root / "images" / other) for other in (("val", "test") if split == "train" else ("train",))]
    return bool(own) and any(other and own.isdisjoint(other) for other in others)


def wordnet_ids(folder: Path) -> set[str]:
    """The WordNet ids (``n01440764``) that the file names of a folder begin with; empty if it does not exist."""
    if not folder.is_dir():
        return set()
    return {match.group() for path in folder.iterdir() if (match := _WORDNET_ID.match(path.name))}


def _with_label_maps(records: tuple[Record, ...], folder: Path) -> tuple[tuple[Record, ...], list[Problem]]:
    """Attach ``<stem>.png`` to every record; a record without one is reported and keeps its polygons."""
    attached, problems = [], []
    for record in records:
        name = f"{record.sample.path.stem}.png"
        try:
            path = confined(folder, name)
            message = "The image has no part map; scores on part maps use its polygons."
        except UserError as error:
            path, message = None, str(error)
        if path is not None and path.is_file():
            attached.append(replace(record, label_map_path=path))
            continue
        attached.append(record)
        index, remedy = f"image id {record.sample.image_id}", f"Restore {name} in {folder}."
        problems.append(Problem("label-map-missing", "warning", str(folder / name), index, message, remedy))
    return tuple(attached), problems
