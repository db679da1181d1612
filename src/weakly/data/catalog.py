"""Datasets by kind: what recipes and the command line name. A new format is one file and one line in READERS."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from weakly.data.ade_part import read_ade_part
from weakly.data.carparts import read_carparts
from weakly.data.coco import read_coco
from weakly.data.coco_annotation import BadPolygons
from weakly.data.coco_instances import coco_files, read_coco_instances
from weakly.data.coco_tags import read_coco2014, read_coco_tags
from weakly.data.dataset import Dataset
from weakly.data.partimagenet import read_partimagenet
from weakly.data.partimagenet40 import read_partimagenet40
from weakly.data.pascal_part import read_pascal_part
from weakly.data.pascal_part_60 import read_pascal_part_60, read_pascal_part_mat
from weakly.data.pascal_part_compositor import read_pascal_part_compositor
from weakly.data.tags import read_class_folders, read_tag_csv
from weakly.data.voc import read_voc
from weakly.data.voc_instances import INSTANCE_SETS, read_voc_instances
from weakly.data.voc_pairs import read_voc_pairs
from weakly.data.yolo import find_config, read_yolo
from weakly.errors import UserError


@dataclass(frozen=True, slots=True)
class Source:
    """Where a dataset lies, as a person states it.

    Attributes:
        kind: key of :data:`READERS`.
        root: its folder.
        split: which part of it.
        annotations: annotation file, for kinds that are one file; folder of them for ``"pascal-part-mat"``.
        images: image folder, for kinds that are one file.
        allow_ood: read PartImageNet's OOD split too.
        bad_polygons: see :func:`~weakly.data.coco.read_coco`.
    """

    kind: str
    root: Path | None
    split: str
    annotations: Path | None = None
    images: Path | None = None
    allow_ood: bool = False
    bad_polygons: BadPolygons = "ring"

    def folder(self) -> Path:
        """The root folder, which must exist."""
        if self.root is None:
            raise UserError(f"No folder is given for the {self.kind!r} dataset; name it with --root.")
        if not self.root.is_dir():
            raise UserError(f"There is no folder {self.root} with the {self.kind!r} dataset; correct --root.")
        return self.root

    def below_root(self, path: Path | None, default: str) -> Path:
        """A stated path, relative to the root where there is one; ``default`` below the root where none is stated."""
        if path is None:
            return self.folder() / default
        return path if self.root is None or path.is_absolute() else self.folder() / path

    def coco_files(self) -> tuple[Path, Path]:
        """Annotation file and image folder of COCO's layouts, each as stated or as found below the root."""
        annotations, images = self.stated(self.annotations), self.stated(self.images)
        if annotations is not None and images is not None:
            return annotations, images
        found = coco_files(self.folder(), self.split)
        return annotations or found[0], images or found[1]

    def stated(self, path: Path | None) -> Path | None:
        """A stated path, relative to the root where there is one, or None."""
        return None if path is None else self.below_root(path, "")

    def if_there(self, name: str) -> Path | None:
        """A file or folder below the root, or None where there is none."""
        path = self.folder() / name
        return path if path.exists() else None


READERS: dict[str, Callable[[Source], Dataset]] = {
    "partimagenet": lambda s: read_partimagenet(
        s.folder(), s.split, allow_ood=s.allow_ood, bad_polygons=s.bad_polygons
    ),
    "menagerie": lambda s: read_partimagenet(s.folder(), s.split, name="menagerie", allow_ood=True),
    "partimagenet-40": lambda s: read_partimagenet40(
        s.folder(), s.split, allow_ood=s.allow_ood, bad_polygons=s.bad_polygons
    ),
    "pascal-part-116": lambda s: read_pascal_part(s.folder(), s.split),
    "pascal-part-60": lambda s: read_pascal_part_60(s.folder(), s.split),
    "pascal-part-mat": lambda s: read_pascal_part_mat(s.folder(), s.split, annotations=s.stated(s.annotations)),
    "pascal-part-compositor": lambda s: read_pascal_part_compositor(s.folder(), s.split),
    "ade20k-part-234": lambda s: read_ade_part(s.folder(), s.split),
    "carparts": lambda s: read_carparts(s.folder(), s.split),
    "coco": lambda s: read_coco(
        s.below_root(s.annotations, f"annotations/{s.split}.json"),
        s.below_root(s.images, f"images/{s.split}"),
        split=s.split,
        bad_polygons=s.bad_polygons,
    ),
    "coco-tags": lambda s: read_coco_tags(
        s.below_root(s.annotations, f"annotations/{s.split}.json"),
        s.below_root(s.images, f"images/{s.split}"),
        split=s.split,
    ),
    "coco2014": lambda s: read_coco2014(s.folder(), s.split),
    "voc": lambda s: read_voc(s.folder(), s.split, tags="pixels"),
    "voc-xml": lambda s: read_voc(s.folder(), s.split, tags="xml"),
    "voc-detection": lambda s: read_voc_instances(s.folder(), s.split),
    "voc-instances": lambda s: read_voc_instances(s.folder(), s.split, sets=INSTANCE_SETS),
    "voc-pairs": lambda s: read_voc_pairs(s.folder(), s.split, images=s.stated(s.images)),
    "coco-instances": lambda s: read_coco_instances(*s.coco_files(), split=s.split),
    "yolo": lambda s: read_yolo(s.stated(s.annotations) or find_config(s.folder()), s.split, images=s.stated(s.images)),
    "tags": lambda s: read_tag_csv(
        s.below_root(s.annotations, f"{s.split}.csv"),
        s.below_root(s.images, "images"),
        split=s.split,
        classes=s.if_there("classes.txt"),
        label_maps=s.if_there("label_maps"),
    ),
    "class-folders": lambda s: read_class_folders(
        s.below_root(s.images, s.split),
        split=s.split,
        classes=s.if_there("classes.txt"),
        label_maps=s.if_there(f"label_maps/{s.split}"),
    ),
}


def open_dataset(
    kind: str,
    root: Path | None,
    split: str,
    *,
    annotations: Path | None = None,
    images: Path | None = None,
    limit: int | None = None,
    seed: int = 0,
    allow_ood: bool = False,
    bad_polygons: BadPolygons = "ring",
) -> Dataset:
    """Open a dataset by kind.

    Args:
        kind: boxes and part masks: ``"partimagenet"``, ``"menagerie"``, ``"carparts"``, ``"coco"``,
            ``"pascal-part-60"``, ``"pascal-part-mat"`` or ``"pascal-part-compositor"``; part masks of named objects:
            ``"pascal-part-116"``, ``"ade20k-part-234"`` or ``"partimagenet-40"``; image tags: ``"voc"`` (from the
            pixels of its label maps), ``"voc-xml"`` (from its XML), ``"coco2014"``, ``"coco-tags"``, ``"tags"`` (a
            CSV) or ``"class-folders"``; image tags, with the boxes and masks of objects as truth:
            ``"voc-detection"``, ``"voc-instances"`` (the images with masks), ``"voc-pairs"`` (XML beside the images),
            ``"coco-instances"`` or ``"yolo"``.
        root: the dataset's folder; for ``"coco"``, ``"coco-tags"`` and ``"coco-instances"`` optional if
            ``annotations`` and ``images`` are given.
        split: ``"train"``, ``"val"``, ``"test"`` ..., as the kind names them.
        annotations: annotation file of kinds ``"coco"``, ``"coco-tags"`` and ``"coco-instances"`` (default
            ``annotations/{split}.json`` below the root), ``"tags"`` (``{split}.csv``) and ``"yolo"`` (the YAML);
            the folder of ``.mat`` files of ``"pascal-part-mat"`` (``Annotations_Part``).
        images: image folder of the same kinds (default ``images/{split}`` below the root; for ``"tags"`` ``images``;
            for ``"yolo"`` as the YAML says), of ``"class-folders"`` (``{split}``) and of ``"voc-pairs"``
            (``images``, with a folder for each split).
        limit: take so many records only.
        seed: with ``limit``: 0 takes the first records, any other seed a random draw of them, in the file's order.
        allow_ood: read PartImageNet's OOD split too.
        bad_polygons: what a degenerate polygon ring costs: ``ring`` or ``annotation`` (PartImageNet and COCO).

    Raises:
        UserError: an unknown kind, a missing folder or file, nothing usable in it, or a limit below 1.
    """
    if kind not in READERS:
        raise UserError(f"There is no dataset kind {kind!r}; choose one of {', '.join(READERS)}.")
    if limit is not None and limit < 1:
        raise UserError(f"The limit of {limit} records is below 1; give a positive number or none.")
    source = Source(kind, root, split, annotations, images, allow_ood, bad_polygons)
    dataset = READERS[kind](source)
    if not dataset.records:
        first = f" First problem: {dataset.problems[0].message}" if dataset.problems else ""
        raise UserError(f"The {kind!r} dataset {root or annotations} has no usable image in {split!r}.{first}")
    if limit is None or limit >= len(dataset):
        return dataset
    if seed == 0:
        return dataset.select(range(limit))
    drawn = np.random.default_rng(seed).choice(len(dataset), limit, replace=False)
    return dataset.select([int(i) for i in np.sort(drawn)])
