"""Pascal-Part-116 as OV-PARTS published it (8,431 training and 850 validation images).

    images/{train,val}/<stem>.jpg
    annotations_detectron2_part/{train,val}/<stem>.png      value k: class k of the list of 116; 255: no part label
    annotations_detectron2_obj/{train,val}/<stem>.png       value o: VOC's class o from 0; 255: none, or void

A pixel of an object that owns parts but without a part label is void. VOC's void borders cannot be told from the
background in these files. Raw annotations of Pascal-Part become this layout with
:func:`~weakly.data.pascal_part_raw.convert_pascal_part`.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

from weakly.data.class_names import VOC_NAMES
from weakly.data.dataset import Dataset, Problem
from weakly.data.images import confined
from weakly.data.part_lists import part_list
from weakly.data.part_maps import MapEntry, map_entries, read_part_map
from weakly.data.tags import Read, label_map_problem, read_records
from weakly.errors import UserError

PART_MAPS, OBJECT_MAPS = "annotations_detectron2_part", "annotations_detectron2_obj"
"""Names of the two label folders."""


def read_pascal_part(root: Path, split: str, *, name: str = "pascal-part-116") -> Dataset:
    """Read one split; headers are read for sizes, pixels are not opened.

    Args:
        root: the folder with ``images/`` and the two label folders (what the archive calls ``PascalPart116``).
        split: ``"train"`` or ``"val"``.
        name: what tables call the dataset.

    Returns:
        Records in order of path, ids are stems, without weak labels: part maps are the truth, and unseen objects are in
        all of them. An image without an object map is kept; its unlabelled pixels are void. ``extra``: ``unseen`` (the
        published unseen objects) and ``list_version``.

    Raises:
        UserError: a folder is missing, or has no image.
    """
    classes = part_list("pascal_part_116")
    problems: list[Problem] = []
    entries = map_entries(root / "images" / split, root / PART_MAPS / split, problems)
    records, found = read_records(partial(_read, objects=root / OBJECT_MAPS / split), entries)
    extra = {"unseen": classes.unseen, "list_version": classes.version}
    found = [*problems, *found]
    return Dataset(name, split, classes.vocabulary(), records, tuple(found), None, extra, wholes=VOC_NAMES)


def _read(entry: MapEntry, objects: Path) -> Read:
    record, problems = read_part_map(entry)
    if record is None:
        return None, problems
    try:
        path = confined(objects, f"{entry.image_id}.png")
    except UserError as error:
        return record, [Problem("path-outside", "warning", str(objects), entry.index, str(error), "Move it inside.")]
    problem = label_map_problem(path, record.sample.size, entry.index, "warning", what="object map")
    return (replace(record, whole_map_path=path), []) if problem is None else (record, [problem])
