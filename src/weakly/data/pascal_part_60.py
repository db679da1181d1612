"""Pascal-Part with merged parts, for weak boxes: 60 parts of the 16 classes of VOC that have parts (spec wps-sam 8.4).

Raw, as published (Chen et al., CVPR 2014, on VOC 2010):

    Annotations_Part/<stem>.mat             masks of objects and their parts
    JPEGImages/<stem>.jpg
    ImageSets/Main/{split}.txt              stems (train 4,998, val 5,105)

or converted by ``weakly data convert`` (:func:`~weakly.data.coco_writing.write_coco`), which opens in seconds:

    annotations/{split}.json                COCO: a box and a mask per part
    images/{split}/<stem>.jpg

**One box per object and merged part**: the four legs of a dog are one box, the legs of two dogs are two. Names follow
``part_names/pascal_part_60_merges.yaml``, a table of our own: WPS-SAM's was never published. A box goes around what can
be seen: later objects hide earlier ones. Objects without part masks (small ones) give no box; pixels of an object
without a part are background.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from weakly.data.coco import read_coco
from weakly.data.dataset import Dataset, Instance, Record
from weakly.data.images import confined, image_size
from weakly.data.part_lists import merge_table
from weakly.data.pascal_part_annotation import PaintedParts, paint_annotation, read_annotation
from weakly.data.tags import Read, image_problem, read_records
from weakly.data.voc import VocEntry, image_set_entries, image_set_file
from weakly.data.voc_instances import DETECTION_SETS, annotation_problem
from weakly.errors import UserError
from weakly.labels import Boxes, Sample
from weakly.segmentation import encode_masks, rle_areas, rle_boxes
from weakly.vocabulary import Vocabulary

NAME = "pascal-part-60"
"""What tables call the dataset, raw or converted."""

RAW_FOLDER = "Annotations_Part"
"""Where the ``.mat`` files lie below VOC's folder, unless somebody says otherwise."""


def read_pascal_part_mat(
    root: Path,
    split: str,
    *,
    annotations: Path | None = None,
    image_set: Path | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Dataset:
    """Read one split of the raw annotations. Every ``.mat`` file is opened, which takes tens of milliseconds each.

    Args:
        root: the folder with ``JPEGImages/`` and ``ImageSets/`` (``VOC2010``).
        split: name of an image set, looked for in ``ImageSets/Main`` first.
        annotations: the folder of ``.mat`` files; None: ``Annotations_Part`` below the root.
        image_set: a text file of stems to read instead of the split's own.
        progress: called with (images done, images in all).

    Returns:
        Records in the order of the image set, ids are stems. Boxes and truth masks belong together; masks of one image
        are disjoint. An image that shows none of the 60 parts is background only. ``extra``: ``merges_version``.

    Raises:
        UserError: a folder or the image set is missing.
    """
    folder = annotations or root / RAW_FOLDER
    entries, problems = image_set_entries(root, stems_file(root, split, image_set))
    if not folder.is_dir():
        raise UserError(f"There is no folder {folder}; name the folder of Pascal-Part's .mat files with --annotations.")
    table = merge_table("pascal_part_60")
    vocabulary = table.vocabulary()
    records, found = read_records(partial(_read, folder=folder, vocabulary=vocabulary), entries, progress)
    extra = {"merges_version": table.version}
    return Dataset(NAME, split, vocabulary, records, (*problems, *found), extra=extra)


def read_pascal_part_60(root: Path, split: str) -> Dataset:
    """Read one split that ``weakly data convert`` wrote.

    Args:
        root: the folder with ``annotations/`` and ``images/``.
        split: ``"train"``, ``"val"`` ...

    Returns:
        What :func:`read_pascal_part_mat` finds in its source, image ids counted from 1.

    Raises:
        UserError: a file or folder is missing, or the file was written with another merge table.
    """
    file = root / "annotations" / f"{split}.json"
    dataset = read_coco(file, root / "images" / split, name=NAME, split=split)
    table = merge_table("pascal_part_60")
    if dataset.vocabulary.names != table.vocabulary().names:
        raise UserError(
            f"The parts in {file} are not those of the merge table (version {table.version}); convert the raw "
            "annotations again with `weakly data convert`, or read the file as 'coco'."
        )
    problems = tuple(problem for problem in dataset.problems if problem.check != "unannotated-image")
    return replace(dataset, problems=problems, extra={**dataset.extra, "merges_version": table.version})


def stems_file(root: Path, split: str, stated: Path | None) -> Path:
    """The text file with the stems of a split: the stated one, else VOC's image set.

    Raises:
        UserError: it does not exist.
    """
    if stated is None:
        return image_set_file(root, split, DETECTION_SETS)
    if not stated.is_file():
        raise UserError(f"There is no file {stated}; name a text file with one stem per line.")
    return stated


def _read(entry: VocEntry, folder: Path, vocabulary: Vocabulary) -> Read:
    try:
        size = image_size(entry.image)
    except UserError as error:
        return None, [image_problem(entry.image, entry.index, error)]
    file = folder / f"{entry.stem}.mat"
    try:
        objects = read_annotation(confined(folder, file.name))
        painted = paint_annotation(objects, size, merge_table("pascal_part_60"))
    except UserError as error:
        return None, [annotation_problem(file, entry.index, error)]
    instances = _instances(painted, vocabulary)
    boxes = np.array([instance.box for instance in instances], np.float32).reshape(-1, 4)
    labels = np.array([instance.label for instance in instances], np.int64)
    sample = Sample(entry.stem, entry.image, size, boxes=Boxes(boxes, labels))
    truth = tuple((instance.label, instance.segmentation) for instance in instances)
    return Record(sample, truth, instances=instances), painted.problems(file, entry.index)


def _instances(painted: PaintedParts, vocabulary: Vocabulary) -> tuple[Instance, ...]:
    """The parts that have a pixel, in the annotation's order."""
    numbers = np.arange(1, len(painted.names) + 1, dtype=np.uint16)
    rles = encode_masks(painted.parts[None] == numbers[:, None, None])
    return tuple(
        Instance(vocabulary.index(f"{whole}'s {part}"), tuple(box), rle, number=number)
        for number, ((whole, part), rle, box, area) in enumerate(
            zip(painted.names, rles, rle_boxes(rles).tolist(), rle_areas(rles), strict=True), 1
        )
        if area
    )
