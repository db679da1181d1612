"""PASCAL VOC 2012 with SBD's additional label maps, as published (the rendered Menagerie can be written like it).

    JPEGImages/<stem>.jpg
    Annotations/<stem>.xml                          objects by name
    SegmentationClass/<stem>.png                    label map: 0 background, k class k, 255 void
    SegmentationClassAug/<stem>.png                 the same for the 10,582 images of trainaug
    ImageSets/Segmentation/{split}.txt              stems (a stem and an image folder make a record)
    ImageSets/SegmentationAug/{split}.txt           or two paths a line, image and label map, relative to the root
    ImageSets/Main/{split}.txt                      stems, most of them without a label map
    ImageSets/Main/{class}_{split}.txt              the names of the classes
    classes.txt                                     optional: the names, one per line, where they are not VOC's

Image tags come from the pixels of the label maps (the source of FMA-WSSS's numbers) or from the objects of the XML,
difficult ones included, as most of the literature does; on trainaug the two differ in about 818 images (spec fma-wsss
section 8.1). The split ``test`` has no tags, whatever lies in the folder.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal
from xml.etree import ElementTree as ET

import numpy as np

from weakly.data.class_names import VOC_NAMES, hint
from weakly.data.dataset import Dataset, Problem, Record
from weakly.data.images import confined, image_size, read_image
from weakly.data.tags import (
    HIDDEN_SPLIT,
    Read,
    image_problem,
    label_map_problem,
    no_tag_problem,
    numbered_vocabulary,
    read_class_list,
    read_records,
)
from weakly.errors import UserError
from weakly.labels import Sample, Tags
from weakly.vocabulary import Vocabulary

VOID = 255
"""Value of label maps that belongs to no class."""

_SETS = ("Segmentation", "SegmentationAug", "Main")
"""Folders of image sets, in the order in which they are looked through."""

_CLASS_FILE = re.compile(r"(.+)_(?:train|val|trainval|test)")
_SUFFIXES = (".jpg", ".jpeg", ".png")


def read_voc(root: Path, split: str, *, tags: Literal["pixels", "xml"] = "pixels", name: str = "voc") -> Dataset:
    """Read one split. With tags from pixels every label map is decoded once; pixels are not kept.

    Args:
        root: the folder with ``JPEGImages/`` and ``ImageSets/`` (what the published archive calls ``VOC2012``).
        split: name of an image set, looked for in Segmentation, SegmentationAug and Main in this order;
            ``trainaug`` and ``train_aug`` are the same.
        tags: where image tags come from. Images without usable tags are left out; known to show nothing, they stay.
        name: what tables call the dataset.

    Returns:
        Records in the order of the image set, ids are stems; their label maps are the truth. ``extra``:
        ``annotations`` (the image set) and ``tags`` (their source; None for the test split).

    Raises:
        UserError: a folder or the image set is missing or not UTF-8.
    """
    image_set = image_set_file(root, split)
    vocabulary = voc_vocabulary(root)
    source = None if split == HIDDEN_SPLIT else tags
    entries, problems = image_set_entries(root, image_set)
    tag_reader = {"pixels": _pixel_tags, "xml": _xml_tags, None: None}[source]
    # Main lists detection images, which have no label map; so does the test split of the published data.
    expects_maps = image_set.parent.name != "Main" and source is not None
    records, found = read_records(
        partial(_read, vocabulary=vocabulary, tag_reader=tag_reader, expects_maps=expects_maps), entries
    )
    extra = {"annotations": image_set, "tags": source}
    return Dataset(name, split, vocabulary, records, (*problems, *found), 0, extra)


def other_splits(root: Path, split: str, sets: Sequence[str] = _SETS) -> dict[str, set[str]]:
    """{image set that should share no image with this one: its stems}: training sets, ``val`` and ``test``.

    ``trainval`` holds both by design and is compared with ``test`` alone. ``sets``: see :func:`image_set_file`.
    """
    own = _image_set(root, split, sets)
    if own is None:
        return {}
    others = [other for other in ("train", "train_aug", "val", "test") if _disjoint(split, other)]
    paths = {other: _image_set(root, other, sets) for other in others}
    return {
        other: {entry.stem for entry in image_set_entries(root, path)[0]}
        for other, path in paths.items()
        if path is not None and (path.parent.name == "Main") == (own.parent.name == "Main")
    }


@dataclass(frozen=True, slots=True)
class VocEntry:
    """One line of an image set.

    Attributes:
        stem: of the image; its id.
        index: the line, as problems name it.
        image: the image file.
        label_map: where its label map is, if it has one.
        annotation: where its XML is, if it has one.
        file: the image set.
    """

    stem: str
    index: str
    image: Path
    label_map: Path
    annotation: Path
    file: Path


_TagReader = Callable[[VocEntry, Vocabulary, list[Problem]], set[int]]
"""Category indices of an entry; lesser problems are appended. Raises UserError where there are no tags to read."""


def image_set_file(root: Path, split: str, sets: Sequence[str] = _SETS) -> Path:
    """The file of an image set, from the first of these folders that has it.

    Raises:
        UserError: a folder of the layout, or the image set, is missing.
    """
    for folder in ("JPEGImages", "ImageSets"):
        if not (root / folder).is_dir():
            raise UserError(f"There is no folder {root / folder}; the data folder needs JPEGImages/ and ImageSets/.")
    image_set = _image_set(root, split, sets)
    if image_set is None:
        stems = {path.stem for path in (root / "ImageSets").glob("*/*.txt")}
        known = sorted(stem for stem in stems if not _CLASS_FILE.fullmatch(stem))
        raise UserError(f"There is no image set {split!r} in {root / 'ImageSets'}; choose one of {', '.join(known)}.")
    return image_set


def _image_set(root: Path, split: str, sets: Sequence[str]) -> Path | None:
    """The file of an image set, or None."""
    if Path(split).name != split:
        raise UserError(f"The split {split!r} is a path; name an image set such as 'train'.")
    names = {"trainaug": ("trainaug", "train_aug"), "train_aug": ("train_aug", "trainaug")}.get(split, (split,))
    candidates = (root / "ImageSets" / folder / f"{name}.txt" for folder in sets for name in names)
    return next((path for path in candidates if path.is_file()), None)


def _disjoint(split: str, other: str) -> bool:
    if split == "trainval":
        return other == HIDDEN_SPLIT
    return ("train" if split.startswith("train") else split) != ("train" if other.startswith("train") else other)


def voc_vocabulary(root: Path) -> Vocabulary:
    """``classes.txt``, else the classes that ImageSets/Main has lists of, else VOC's; alphabetical, as VOC's are."""
    if (root / "classes.txt").is_file():
        return numbered_vocabulary(read_class_list(root / "classes.txt"))
    matches = (_CLASS_FILE.fullmatch(path.stem) for path in (root / "ImageSets" / "Main").glob("*.txt"))
    names = {match.group(1) for match in matches if match}
    # Of VOC's own lists a few may be missing, and no class may move for that.
    return numbered_vocabulary(VOC_NAMES if names <= set(VOC_NAMES) else sorted(names))


def image_set_entries(root: Path, image_set: Path) -> tuple[list[VocEntry], list[Problem]]:
    """The usable lines of an image set."""
    try:
        lines = image_set.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise UserError(f"The image set {image_set} is not text in UTF-8 ({error}); restore it.") from error
    augmented = "Aug" in image_set.parent.name or "aug" in image_set.stem
    maps = "SegmentationClassAug" if augmented and (root / "SegmentationClassAug").is_dir() else "SegmentationClass"
    entries: dict[str, VocEntry] = {}
    problems: list[Problem] = []

    def report(check: str, severity: str, index: str, message: str, remedy: str) -> None:
        problems.append(Problem(check, severity, str(image_set), index, message, remedy))

    for number, line in enumerate(lines, 1):
        fields, index = line.split(), f"line {number}"
        if not fields:
            continue
        if len(fields) > 2:
            message = f"The line has {len(fields)} fields; it needs a stem, or an image and its label map."
            report("malformed-line", "error", index, message, "Write one stem per line.")
            continue
        try:
            entry = _entry(root, fields, maps, number, image_set)
        except UserError as error:
            report("path-outside", "error", index, str(error), "Use paths below the data folder.")
            continue
        if entry.stem in entries:
            message = f"The image {entry.stem} is already in {entries[entry.stem].index}; the first is used."
            report("duplicate-image", "warning", index, message, "Remove one of the lines.")
            continue
        entries[entry.stem] = entry
    return list(entries.values()), problems


def _entry(root: Path, fields: list[str], maps: str, number: int, image_set: Path) -> VocEntry:
    """An entry of one or two fields: a stem, or the paths of image and label map.

    Raises:
        UserError: a path leads outside the root.
    """
    if len(fields) == 2:
        image, label_map = (confined(root, field.lstrip("/")) for field in fields)
        stem = Path(fields[0]).stem
    else:
        stem = fields[0]
        candidates = [confined(root / "JPEGImages", stem + suffix) for suffix in _SUFFIXES]
        image = next((path for path in candidates if path.is_file()), candidates[0])
        label_map = confined(root / maps, f"{stem}.png")
    annotation = confined(root / "Annotations", f"{stem}.xml")
    return VocEntry(stem, f"line {number} ({stem})", image, label_map, annotation, image_set)


def _read(entry: VocEntry, vocabulary: Vocabulary, tag_reader: _TagReader | None, *, expects_maps: bool) -> Read:
    try:
        size = image_size(entry.image)
    except UserError as error:
        return None, [image_problem(entry.image, entry.index, error)]
    # Tags from pixels stand and fall with the label map; without it nobody knows what the image shows.
    severity = "error" if tag_reader is _pixel_tags else "warning"
    map_problem = label_map_problem(entry.label_map, size, entry.index, severity)
    if map_problem is not None and severity == "error":
        return None, [map_problem]
    unexpected = map_problem is not None and (expects_maps or map_problem.check != "label-map-missing")
    problems = [map_problem] if map_problem is not None and unexpected else []
    tags = None
    if tag_reader is not None:
        try:
            labels = tag_reader(entry, vocabulary, problems)
        except UserError as error:
            file = entry.label_map if tag_reader is _pixel_tags else entry.annotation
            remedy = "Restore the file; until then the image is left out."
            return None, [Problem("tags-unreadable", "error", str(file), entry.index, str(error), remedy)]
        tags = Tags(np.array(sorted(labels), np.int64))
    sample = Sample(entry.stem, entry.image, size, tags=tags)
    record = Record(sample, label_map_path=entry.label_map if map_problem is None else None)
    return record, [*problems, *no_tag_problem(sample, entry.file)]


def _pixel_tags(entry: VocEntry, vocabulary: Vocabulary, problems: list[Problem]) -> set[int]:
    """The classes that have a pixel in the label map."""
    values = set(np.unique(read_image(entry.label_map, mode="index")).tolist())
    strange = sorted(values - set(range(len(vocabulary) + 1)) - {VOID})
    if strange:
        message = f"The label map holds the values {strange[:8]}, which are no class; they give no tag."
        remedy = "Restore the label map, or name the classes in classes.txt."
        problems.append(Problem("unknown-class", "error", str(entry.label_map), entry.index, message, remedy))
    return {value - 1 for value in values if 0 < value <= len(vocabulary)}


def _xml_tags(entry: VocEntry, vocabulary: Vocabulary, problems: list[Problem]) -> set[int]:
    """The classes that an object of the XML has."""
    labels = set()
    for number, element in enumerate(read_xml(entry.annotation).iterfind("object")):
        name = (element.findtext("name") or "").strip()
        if name in vocabulary.names:
            labels.add(vocabulary.index(name))
            continue
        close = hint(name, vocabulary.names)
        message = f"There is no class {name!r}{close or '.'} The object gives no tag."
        remedy = "Correct the name, or name the classes in classes.txt."
        index = f"object[{number}] of {entry.index}"
        problems.append(Problem("unknown-class", "error", str(entry.annotation), index, message, remedy))
    return labels


def read_xml(path: Path) -> ET.Element:
    """The root element of an annotation.

    Raises:
        UserError: missing, or not XML. A document type is refused: it is how XML makes a parser expand or fetch things.
    """
    if not path.is_file():
        raise UserError(f"There is no annotation {path}; check the path.")
    content = path.read_bytes()
    if b"<!DOCTYPE" in content:
        raise UserError(f"The annotation {path} declares a document type, which VOC's do not; remove it.")
    try:
        return ET.fromstring(content)  # noqa: S314 - without a document type there are no entities to expand
    except (ET.ParseError, ValueError, LookupError) as error:
        raise UserError(f"The annotation {path} is not XML ({error}); restore it.") from error
