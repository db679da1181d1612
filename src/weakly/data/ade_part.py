"""ADE20K-Part-234 as OV-PARTS published it (7,347 training and 1,016 validation images).

    images/{training,validation}/<stem>.jpg
    annotations_detectron2_part/{training,validation}/<stem>.png    16 bits: class k of the list of 234; 65535: none
    ade20k_instance_{train,val}.json                                COCO: masks of whole objects; category ids are
                                                                    places in the alphabetical list of the 44 objects

The published test set also counts every instance of an unseen object *in a training image*; here a split is its own
images alone.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from weakly.data.coco import read_coco
from weakly.data.dataset import Dataset, Problem
from weakly.data.part_lists import part_list
from weakly.data.part_maps import map_entries, read_part_map
from weakly.data.tags import read_records
from weakly.errors import UserError

FOLDERS = {"train": "training", "val": "validation"}


def read_ade_part(root: Path, split: str, *, name: str = "ade20k-part-234") -> Dataset:
    """Read one split; headers are read for sizes, pixels are not opened.

    Args:
        root: the folder with ``images/`` and the instance files (what the archive calls ``ADE20KPart234``).
        split: ``"train"`` or ``"val"``.
        name: what tables call the dataset.

    Returns:
        Records in order of path, ids are stems, without weak labels: part maps are the truth. Pixels of an object that
        owns parts but without a part label are void. An image that the instance file does not have is kept; its
        unlabelled pixels are void. ``extra``: ``annotations`` (the instance file), ``unseen`` (the published unseen
        objects) and ``list_version``.

    Raises:
        UserError: an unknown split, or a folder or the instance file is missing or unusable.
    """
    if split not in FOLDERS:
        raise UserError(f"ADE20K-Part-234 has no split {split!r}; choose one of {', '.join(FOLDERS)}.")
    classes, folder = part_list("ade20k_part_234"), FOLDERS[split]
    problems: list[Problem] = []
    entries = map_entries(root / "images" / folder, root / "annotations_detectron2_part" / folder, problems)
    file = root / f"ade20k_instance_{split}.json"
    instances = read_coco(file, root / "images" / folder, name=name, split=split)
    problems += (problem for problem in instances.problems if problem.check not in _HARMLESS)
    number = [instances.vocabulary.source_id(label) for label in range(len(instances.vocabulary))]
    wholes = {
        r.sample.path: tuple((number[label], segmentation) for label, segmentation in r.truth)
        for r in instances.records
    }
    records, found = read_records(read_part_map, entries)
    for record in records:
        if record.sample.path not in wholes:
            message = "The instance file does not have the image; its pixels without a part label are void."
            index, remedy = f"image id {record.sample.image_id}", "Restore the published instance file."
            found.append(Problem("objects-missing", "warning", str(file), index, message, remedy))
    return Dataset(
        name,
        split,
        classes.vocabulary(),
        tuple(replace(record, wholes=wholes.get(record.sample.path)) for record in records),
        (*problems, *found),
        extra={"annotations": file, "unseen": classes.unseen, "list_version": classes.version},
        wholes=tuple(sorted(classes.objects)),
    )


_HARMLESS = {"box-clipped", "box-dropped", "box-mask-mismatch", "missing-box", "all-annotations-dropped"}
"""Defects of boxes, which nobody reads here."""
