"""COCO instances for detection and instance segmentation from tags: tags to learn from, objects to score.

    annotations/instances_val2017.json      or annotations/{split}.json
    val2017/*.jpg                           or images/{split}/*.jpg

The published layouts of 2014 and 2017 and our own are found by the split's name. Category ids may have gaps; the
categories are contiguous here, in order of id (``Category.source_id``).

A class is a tag of an image if an object is annotated with it; a crowd region (``iscrowd``) gives none, as detectors
learn. Crowd regions stay among the true objects, marked, because what is found in one is no error.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np

from weakly.data.coco import read_coco
from weakly.data.coco_tags import whole_things
from weakly.data.dataset import Dataset, Record
from weakly.data.tags import HIDDEN_SPLIT
from weakly.labels import Tags


def read_coco_instances(annotations: Path, images: Path, *, name: str = "coco", split: str = "train") -> Dataset:
    """Read a COCO instance file as image tags, with boxes and masks as truth.

    Args:
        annotations: the JSON file with ``images``, ``annotations`` and ``categories``.
        images: the folder that ``file_name`` is relative to.
        name: what tables call the dataset.
        split: which part of it the file is; images of ``test`` get no tags.

    Returns:
        Records, problems and ``extra`` as :func:`~weakly.data.coco.read_coco` has them. Samples have tags alone;
        ``Record.instances`` are the objects with a usable box, or with a mask that gives one, and crowd regions.

    Raises:
        UserError: the file or folder is missing, or the file is not COCO's.
    """
    dataset = read_coco(annotations, images, name=name, split=split)
    unmasked = defaultdict(list)
    for image_id, label in dataset.extra["no_mask"]:
        unmasked[image_id].append(label)
    records = tuple(_tagged(record, unmasked[record.sample.image_id], split) for record in dataset.records)
    return replace(dataset, records=records, vocabulary=whole_things(dataset.vocabulary))


def coco_files(root: Path, split: str) -> tuple[Path, Path]:
    """Annotation file and image folder of a split: our own layout or a published one; the first where none is there."""
    stems = (split, f"instances_{split}")
    files = [root / "annotations" / f"{stem}.json" for stem in stems]
    folders = [root / "images" / split, root / split]
    return (
        next((path for path in files if path.is_file()), files[0]),
        next((path for path in folders if path.is_dir()), folders[0]),
    )


def _tagged(record: Record, unmasked: Iterable[int], split: str) -> Record:
    """The record with the categories of its objects, whatever is wrong with their boxes or masks, as tags."""
    sample = record.sample
    labels = [instance.label for instance in record.instances or () if not instance.crowd]
    labels += [] if sample.points is None else sample.points.labels.tolist()
    tags = None if split == HIDDEN_SPLIT else Tags(np.array([*labels, *unmasked], np.int64))
    return replace(record, sample=replace(sample, boxes=None, points=None, tags=tags))
