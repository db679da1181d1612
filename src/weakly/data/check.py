"""``weakly data check``: everything that can be wrong with a dataset, before a training run finds it.

One pass over the files, a few images in memory at a time. What is found is a list of
:class:`~weakly.data.dataset.Problem` (file, index, remedy), counts per check and per category, and a content hash.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from weakly.data.ade_part import FOLDERS as ADE_FOLDERS
from weakly.data.carparts import FOLDERS as CARPARTS_FOLDERS
from weakly.data.catalog import open_dataset
from weakly.data.check_files import image_problems, label_map_problems, size_file_problems
from weakly.data.check_objects import object_map_problems, whole_problems
from weakly.data.check_report import CategoryCount, CheckReport
from weakly.data.dataset import Dataset, Problem, Record
from weakly.data.images import SUFFIXES
from weakly.data.partimagenet import is_ood
from weakly.data.voc import other_splits
from weakly.data.voc_instances import DETECTION_SETS, INSTANCE_SETS
from weakly.errors import UserError
from weakly.labels import Sample

COMPARED_LABEL_MAPS = 64
"""So many part maps, evenly spread over the split, are compared with the rasterised polygons."""


def check(
    kind: str,
    root: Path | None,
    split: str,
    *,
    annotations: Path | None = None,
    images: Path | None = None,
    queries: int = 25,
    fast: bool = False,
    workers: int = 4,
    progress: Callable[[int, int], None] | None = None,
) -> CheckReport:
    """Open a dataset and check it; arguments as :func:`~weakly.data.catalog.open_dataset` and :func:`check_dataset`.

    PartImageNet's OOD split is checked too, and reported.

    Raises:
        UserError: there is nothing to check: the folder, the annotation file or every image is missing.
    """
    dataset = open_dataset(kind, root, split, annotations=annotations, images=images, allow_ood=True)
    found = [] if root is None else list(_split_problems(kind, root, dataset))
    return check_dataset(dataset, queries=queries, fast=fast, workers=workers, progress=progress, also=tuple(found))


def check_dataset(
    dataset: Dataset,
    *,
    queries: int = 25,
    fast: bool = False,
    workers: int = 4,
    progress: Callable[[int, int], None] | None = None,
    also: tuple[Problem, ...] = (),
) -> CheckReport:
    """Open every file of a dataset.

    Args:
        dataset: with the problems its reader found.
        queries: S; images with more parts are counted.
        fast: read headers only: sizes and formats, no truncated files and no label values.
        workers: threads that decode; each holds one image and its part map.
        progress: called with (images done, images in all) after each image.
        also: problems already known about the dataset as a whole.
    """
    problems = [*also, *dataset.problems]
    compared = set(np.linspace(0, len(dataset) - 1, min(len(dataset), COMPARED_LABEL_MAPS)).astype(int).tolist())
    size_files = _size_file_folder(dataset)

    def inspect(position: int) -> tuple[list[Problem], list[int]]:
        record = dataset.records[position]
        found = list(image_problems(record, fast=fast))
        found += label_map_problems(dataset, position, fast=fast, compare=position in compared)
        found += object_map_problems(dataset, position, fast=fast)
        found += whole_problems(dataset, position, fast=fast)
        if size_files is not None:
            found += size_file_problems(record, size_files)
        found += _crowded(dataset, position, queries)
        return found, [] if fast else _mapped_labels(dataset, position)

    mapped: list[list[int]] = []
    with ThreadPoolExecutor(max(1, workers)) as pool:
        for done, (found, shown) in enumerate(pool.map(inspect, range(len(dataset))), 1):
            problems += found
            mapped.append(shown)
            if progress is not None:
                progress(done, len(dataset))
    parts = [_part_labels(dataset, i) for i in range(len(dataset))]
    return CheckReport(
        name=dataset.name,
        split=dataset.split,
        images=len(dataset),
        annotations=sum(len(labels) for labels in parts),
        unannotated=sum(not (labels or shown) for labels, shown in zip(parts, mapped, strict=True)),
        queries=queries,
        over_queries=sum(len(labels) > queries for labels in parts),
        categories=_category_counts(dataset, parts, mapped),
        problems=tuple(problems),
        content_hash=content_hash(dataset),
    )


def content_hash(dataset: Dataset) -> str:
    """SHA-256 (hex) of the annotation file's bytes and of every record's image name, file size, tags and true objects.

    Boxes belong to it where no annotation file states them. It changes when labels or images do, but not when the
    folder moves: features computed for one hash fit no other.
    """
    digest = hashlib.sha256()
    annotations = dataset.extra.get("annotations")
    if annotations is not None:
        with Path(annotations).open("rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    entries = sorted(
        (
            r.sample.path.name,
            str(r.sample.image_id),
            _file_size(r.sample.path),
            f"{_tag_text(r.sample)}{_object_text(r)}{_map_text(r)}{'' if annotations else _box_text(r.sample)}",
        )
        for r in dataset.records
    )
    for name, image_id, size, labels in entries:
        digest.update(f"{name}\0{image_id}\0{size}\0{labels}".encode())
    return digest.hexdigest()


def _tag_text(sample: Sample) -> str:
    """The tags, which may come from files that the hash does not read; nothing where the dataset has none."""
    return "" if sample.tags is None else " ".join(map(str, sample.tags.labels.tolist())) + "\0"


def _box_text(sample: Sample) -> str:
    """The boxes, which come from files that the hash does not read."""
    return "" if sample.boxes is None else repr((sample.boxes.labels.tolist(), sample.boxes.xyxy.tolist())) + "\0"


def _object_text(record: Record) -> str:
    """The true objects of tagged images, which may come from files that the hash does not read."""
    if record.sample.boxes is not None or not record.instances:
        return ""
    return repr([(i.label, i.box, i.difficult, i.crowd) for i in record.instances]) + "\0"


def _map_text(record: Record) -> str:
    """Sizes of the maps that are all the labels of an image."""
    sample = record.sample
    if not (sample.boxes is None and sample.points is None and sample.tags is None and record.instances is None):
        return ""
    paths = [path for path in (record.label_map_path, record.whole_map_path) if path is not None]
    return "".join(f"{_file_size(path)}\0" for path in paths)


def _file_size(path: Path) -> int:
    """Bytes of a file; -1 if it has gone since the dataset was opened (which the check itself reports)."""
    try:
        return path.stat().st_size
    except OSError:
        return -1


def leaked_stems(dataset: Dataset, others: Mapping[str, set[str]]) -> Iterator[Problem]:
    """Images whose stem also occurs in another split.

    Args:
        dataset: the split that is checked.
        others: {other split: stems of its image files}.
    """
    for sample in dataset:
        for split, stems in others.items():
            if sample.path.stem in stems:
                message = f"An image with the stem {sample.path.stem!r} is in split {split!r} too."
                remedy = "Remove it from one of them, or scores are too good."
                yield Problem("split-leak", "error", str(sample.path), f"image id {sample.image_id}", message, remedy)


def _split_problems(kind: str, root: Path, dataset: Dataset) -> Iterator[Problem]:
    if kind in {"partimagenet", "partimagenet-40"} and is_ood(root, dataset.split):
        message = f"The object classes of split {dataset.split!r} are disjoint from another split's: the OOD split."
        remedy = "Use PartImageNet_Seg, unless the OOD split is what you want."
        yield Problem("ood-split", "error", str(root), dataset.split, message, remedy)
    yield from leaked_stems(dataset, _stems_elsewhere(kind, root, dataset))


def _stems_elsewhere(kind: str, root: Path, dataset: Dataset) -> dict[str, set[str]]:
    """{other split: stems of its image files}, from the folders or image sets alone."""
    split = dataset.split
    if kind in {"voc", "voc-xml"}:
        return other_splits(root, split)
    if kind in {"voc-detection", "voc-instances", "pascal-part-mat"}:
        return other_splits(root, split, INSTANCE_SETS if kind == "voc-instances" else DETECTION_SETS)
    if kind in {"coco2014", "tags", "class-folders"}:
        return {}  # their folders are no splits
    if kind == "carparts":
        own = CARPARTS_FOLDERS.get(split)
        folders = {name: root / name / "JPEGImages" for name in set(CARPARTS_FOLDERS.values()) - {own}}
    elif kind in {"voc-pairs", "yolo"}:
        folders = dataset.extra["elsewhere"]
    else:
        parent = root / ("JPEGImages" if kind == "pascal-part-compositor" else "images")
        folders = {path.name: path for path in sorted(parent.iterdir())} if parent.is_dir() else {}
        folders.pop(ADE_FOLDERS[split] if kind == "ade20k-part-234" else split, None)
    return {
        name: {path.stem for path in folder.iterdir() if path.suffix.lower() in SUFFIXES}
        for name, folder in folders.items()
        if folder.is_dir()
    }


def _size_file_folder(dataset: Dataset) -> Path | None:
    """The folder of ``<stem>.json`` size files, where the dataset ships any."""
    folder, annotations = dataset.extra.get("label_maps"), dataset.extra.get("annotations")
    if folder is None:
        return None
    return Path(folder) if any(p.suffix == ".json" and p != annotations for p in Path(folder).iterdir()) else None


def _part_labels(dataset: Dataset, position: int) -> list[int]:
    """Category of every weak label of an image: its boxes, else its points, else its tags."""
    sample = dataset[position]
    given = next((labels for labels in (sample.boxes, sample.points, sample.tags) if labels is not None), None)
    return [] if given is None else [int(label) for label in given.labels]


def _mapped_labels(dataset: Dataset, position: int) -> list[int]:
    """Categories in the part map of an image without weak labels; none where it cannot be read, which is reported."""
    sample = dataset[position]
    if any(labels is not None for labels in (sample.boxes, sample.points, sample.tags)):
        return []
    try:
        label_map = dataset.label_map(position)
    except UserError:
        return []
    return [] if label_map is None else [int(k) for k in np.unique(label_map) if k < len(dataset.vocabulary)]


def _crowded(dataset: Dataset, position: int, queries: int) -> list[Problem]:
    count = len(_part_labels(dataset, position))
    if count <= queries:
        return []
    sample = dataset[position]
    message = f"The image has {count} parts but a method with {queries} queries predicts at most {queries}."
    remedy = "Raise the number of queries, or accept that the rest is missed."
    return [
        Problem("more-parts-than-queries", "warning", str(sample.path), f"image id {sample.image_id}", message, remedy)
    ]


def _category_counts(dataset: Dataset, parts: list[list[int]], mapped: list[list[int]]) -> tuple[CategoryCount, ...]:
    boxes = Counter(label for labels in parts for label in labels)
    images = Counter(label for labels in [*parts, *mapped] for label in set(labels))
    masks = Counter(
        label
        for record, shown in zip(dataset.records, mapped, strict=True)
        for label in shown or _masked_labels(record)
    )
    stated_apart = (record.instances or () for record in dataset.records if record.sample.boxes is None)
    objects = Counter(instance.label for instances in stated_apart for instance in instances if not instance.crowd)
    names = dataset.vocabulary.names
    return tuple(CategoryCount(n, images[i], boxes[i], masks[i], objects[i]) for i, n in enumerate(names))


def _masked_labels(record: Record) -> list[int]:
    return [label for label, _ in record.truth] or [i.label for i in record.masked_instances if not i.crowd]
