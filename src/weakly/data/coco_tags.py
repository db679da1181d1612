"""Image tags and semantic truth from COCO instances: COCO 2014 as published, or any instance file.

    images/train2014/*.jpg                       or train2014/*.jpg beside annotations/, as COCO unpacks
    annotations/instances_train2014.json         objects: the tags, and their masks
    annotations/train2014[_ur|_wt]/<stem>.png    optional 81-class label maps: 0 background, k the k-th category
    imagesLists/train[2014].txt                  optional: the images of the split, stems (class ids after them are
                                                 not read)

A class is a tag of an image if an object *or a crowd region* is annotated with it. The truth is the label map where
there is one, else the masks, painted by the evaluator: larger first, so that the smaller object is on top. Two
conversions of COCO's masks to label maps are in use, "ur" and "wt"; numbers on one are not numbers on the other, and
not on painted masks either. The published splits hold the images with a tag only (82,081 and 40,137).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from weakly.data.coco import load_json, read_coco
from weakly.data.dataset import Dataset, Problem, Record
from weakly.data.geometry import rle_extent, usable_rings
from weakly.data.images import confined
from weakly.data.tags import HIDDEN_SPLIT, label_map_problem, no_tag_problem, numbered_vocabulary
from weakly.errors import UserError
from weakly.labels import Tags
from weakly.vocabulary import Category, Vocabulary

_NO_LONGER_TRUE = frozenset({"crowd-region", "unannotated-image", "all-annotations-dropped"})
_ABOUT_BOXES = frozenset({"box-clipped", "box-dropped", "box-mask-mismatch", "missing-box", "point-outside"})
"""Problems of the instance reader that image tags do not have."""

Crowds = Mapping[int | str, list[tuple[int, Any]]]
"""{image id: (category index, COCO segmentation or None) of its crowd regions}."""


def read_coco_tags(
    annotations: Path,
    images: Path,
    *,
    name: str = "coco",
    split: str = "train",
    label_maps: Path | None = None,
    listed: Path | None = None,
    crowds: bool = True,
) -> Dataset:
    """Read a COCO instance file as image tags. Boxes and clicks are not handed on: tags are all a person gave.

    Args:
        annotations: the JSON file with ``images``, ``annotations`` and ``categories``.
        images: the folder that ``file_name`` is relative to.
        name: what tables call the dataset.
        split: which part of it the file is; images of ``test`` get no tags.
        label_maps: folder of ``<stem>.png`` in which value k is the k-th category in order of id.
        listed: text file; only images whose stem begins a line of it are read.
        crowds: crowd regions count, for tags and truth. The file is then read twice. Scores of *instances* leave
            crowd regions out: pass False for them.

    Returns:
        Records as :func:`~weakly.data.coco.read_coco` has them. ``Category.source_id`` is the value in the label maps
        where there are any, else the category id of the file.

    Raises:
        UserError: the file or a folder is missing, or the file is not COCO's.
    """
    dataset = read_coco(annotations, images, name=name, split=split)
    if listed is not None:
        stems = _stems(listed)
        dataset = replace(dataset, records=tuple(r for r in dataset.records if r.sample.path.stem in stems))
    met_crowds = any(problem.check == "crowd-region" for problem in dataset.problems)
    regions = _crowd_regions(annotations, dataset) if crowds and met_crowds else {}
    unmasked = defaultdict(set)
    for image_id, label in dataset.extra["no_mask"]:
        unmasked[image_id].add(label)
    records = [_tagged(record, regions, unmasked[record.sample.image_id], split) for record in dataset.records]
    dropped = _ABOUT_BOXES | (_NO_LONGER_TRUE if crowds else _NO_LONGER_TRUE - {"crowd-region"})
    problems = [problem for problem in dataset.problems if problem.check not in dropped]
    for record in records:
        problems += no_tag_problem(record.sample, annotations)
    tagged = replace(dataset, records=tuple(records), vocabulary=whole_things(dataset.vocabulary))
    return _with_label_maps(tagged, problems, label_maps)


def read_coco2014(root: Path, split: str, *, name: str = "coco2014") -> Dataset:
    """Read a split of COCO 2014 in the layout above.

    Args:
        root: the folder with ``annotations/``.
        split: ``"train"``, ``"val"``, or a folder name with its year such as ``"train2017"``.
        name: what tables call the dataset.

    Raises:
        UserError: the annotation file or the image folder is missing.
    """
    folder = split if split[-4:].isdigit() else f"{split}2014"
    images = next((path for path in (root / "images" / folder, root / folder) if path.is_dir()), None)
    if images is None:
        raise UserError(f"There is no folder {root / 'images' / folder} nor {root / folder}; unpack the images there.")
    maps = [root / "annotations" / f"{folder}{conversion}" for conversion in ("", "_ur", "_wt")]
    lists = [root / "imagesLists" / f"{stem}.txt" for stem in (split, folder)]
    return read_coco_tags(
        root / "annotations" / f"instances_{folder}.json",
        images,
        name=name,
        split=split,
        label_maps=next((path for path in maps if path.is_dir()), None),
        listed=next((path for path in lists if path.is_file()), None),
    )


def _stems(listed: Path) -> set[str]:
    try:
        lines = listed.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"The image list {listed} cannot be read ({error}); restore it.") from error
    return {Path(line.split()[0]).name.removesuffix(".jpg") for line in lines if line.strip()}


def _crowd_regions(annotations: Path, dataset: Dataset) -> Crowds:
    sizes = {sample.image_id: sample.size for sample in dataset}
    index = dataset.vocabulary.by_source_id()
    regions: dict[int | str, list[tuple[int, Any]]] = defaultdict(list)
    for row in load_json(annotations)["annotations"]:
        if not isinstance(row, Mapping) or not row.get("iscrowd"):
            continue
        image_id, category = row.get("image_id"), row.get("category_id")
        if isinstance(image_id, int | str) and image_id in sizes and isinstance(category, int) and category in index:
            regions[image_id].append((index[category], _usable_mask(row.get("segmentation"), sizes[image_id])))
    return regions


def _usable_mask(segmentation: Any, size: tuple[int, int]) -> Any:
    """The segmentation if it can be rasterised, else None."""
    if isinstance(segmentation, Mapping):
        return dict(segmentation) if rle_extent(segmentation, size) is not None else None
    rings = usable_rings(segmentation)[0] if isinstance(segmentation, list) else []
    return rings or None


def _tagged(record: Record, regions: Crowds, unmasked: set[int], split: str) -> Record:
    """The record with tags in place of its boxes and clicks."""
    sample = record.sample
    crowds = regions.get(sample.image_id, [])
    given = [labels.labels for labels in (sample.boxes, sample.points) if labels is not None]
    masked = [label for label, _ in (*record.truth, *crowds)]
    tags = Tags(np.concatenate([*given, np.array([*masked, *unmasked], np.int64)]))
    return replace(
        record,
        sample=replace(sample, boxes=None, points=None, tags=None if split == HIDDEN_SPLIT else tags),
        truth=(*record.truth, *((label, mask) for label, mask in crowds if mask is not None)),
    )


def whole_things(vocabulary: Vocabulary) -> Vocabulary:
    """The categories without their super-categories, which are groups of classes and no wholes with parts."""
    return Vocabulary(tuple(Category(c.name, source_id=c.source_id) for c in vocabulary.categories))


def _with_label_maps(dataset: Dataset, problems: list[Problem], folder: Path | None) -> Dataset:
    if folder is None:
        return replace(dataset, problems=tuple(problems))
    records = []
    for record in dataset.records:
        path, found = _label_map(record, folder)
        records.append(replace(record, label_map_path=path))
        problems += found
    return replace(
        dataset,
        vocabulary=numbered_vocabulary(dataset.vocabulary.names),
        records=tuple(records),
        problems=tuple(problems),
        label_map_background=0,
    )


def _label_map(record: Record, folder: Path) -> tuple[Path | None, list[Problem]]:
    name, index = f"{record.sample.path.stem}.png", f"image id {record.sample.image_id}"
    try:
        path = confined(folder, name)
    except UserError as error:
        remedy = "Move the label map inside."
        return None, [Problem("path-outside", "warning", str(folder / name), index, str(error), remedy)]
    problem = label_map_problem(path, record.sample.size, index, "warning")
    return (path, []) if problem is None else (None, [problem])
