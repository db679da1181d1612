"""Image tags as people keep them: a CSV beside a folder of images, or one folder of images per class.

    <root>/images/...            <root>/train/<class>/...     images; sub-folders are fine
    <root>/train.csv             <root>/val/<class>/...       tags of a split
    <root>/classes.txt           class names, one per line: the order of the vocabulary
    <root>/label_maps/...        optional truth: an image's relative path with suffix .png; 0 background, k class k of
                                 classes.txt, 255 void

A row of the CSV is ``file,tags`` with the tags separated by ``;`` or ``|``; a first row whose first field is ``file``
is a header. Without ``classes.txt`` the classes are the names that occur, sorted. The images of a split called
``test`` are read without tags, so that nothing can learn from them.
"""

from __future__ import annotations

import csv
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import numpy as np

from weakly.data.class_names import hint
from weakly.data.dataset import Dataset, Problem, Record
from weakly.data.images import confined, image_size, list_images
from weakly.errors import UserError
from weakly.labels import Sample, Tags
from weakly.vocabulary import Category, Vocabulary

HIDDEN_SPLIT = "test"
"""The split whose images carry no tags."""

_SEPARATORS = re.compile(r"[;|]")
_THREADS = min(8, os.cpu_count() or 1)

T = TypeVar("T")
Read = tuple[Record | None, list[Problem]]
"""One record, or none if it is unusable, and what was wrong with it."""


def read_tag_csv(
    annotations: Path,
    images: Path,
    *,
    name: str = "tags",
    split: str = "train",
    classes: Path | None = None,
    label_maps: Path | None = None,
) -> Dataset:
    """Read a CSV of tags. Image headers are read for their sizes; a row that cannot be used is a Problem.

    Args:
        annotations: the CSV, in UTF-8. A file named in several rows has the tags of all of them.
        images: the folder that the files are relative to; names that lead outside are refused.
        name: what tables call the dataset.
        split: which part of it the CSV is.
        classes: the class list; tags that are not in it are Problems.
        label_maps: folder of true label maps; needs ``classes``.

    Returns:
        Records in the order of the CSV, ids are paths without suffix. ``extra``: ``annotations`` and ``images``.

    Raises:
        UserError: a file or folder is missing or not UTF-8, or no class is named.
    """
    if not images.is_dir():
        raise UserError(f"There is no image folder {images}; name the folder that the files in the CSV lie in.")
    rows, problems = _csv_rows(annotations)
    names = {tag for row in rows for tag in row.tags}
    vocabulary = _vocabulary(names, classes, label_maps, f"the file {annotations} has no tag in its second column")
    entries: dict[Path, _Entry] = {}
    for row in rows:
        path = _inside(images, row.file, str(annotations), row.index, problems)
        if path is None:
            continue
        if path in entries:
            message = f"The file {row.file} is already in {entries[path].index}; it has the tags of both rows."
            problems.append(
                Problem("duplicate-row", "warning", str(annotations), row.index, message, "Merge the two rows.")
            )
        labels = _labels(row.tags, vocabulary, str(annotations), row.index, problems)
        entries.setdefault(path, _Entry(path, row.index, Path(row.file))).labels.update(labels)
    return _dataset(entries, name, split, vocabulary, problems, annotations, images, label_maps)


def read_class_folders(
    images: Path,
    *,
    name: str = "class-folders",
    split: str = "train",
    classes: Path | None = None,
    label_maps: Path | None = None,
) -> Dataset:
    """Read one folder of images per class; the folder's name is the tag.

    An image of several classes lies in one folder and is linked from the others: symbolic links inside ``images`` to
    the same file are one record with all their tags.

    Args:
        images: the folder of class folders.
        name: what tables call the dataset.
        split: which part of it this is.
        classes: the class list; a folder that is not in it is a Problem.
        label_maps: folder of true label maps (``<class>/<stem>.png``); needs ``classes``.

    Returns:
        Records sorted by path, ids are ``<class>/<stem>``. ``extra``: ``images``.

    Raises:
        UserError: the folder is missing or has no class folder.
    """
    if not images.is_dir():
        raise UserError(f"There is no folder {images}; it must hold one folder of images per class.")
    folders = sorted(path for path in images.iterdir() if path.is_dir() and not path.name.startswith("."))
    names = {folder.name for folder in folders}
    vocabulary = _vocabulary(names, classes, label_maps, f"the folder {images} has no class folder")
    problems: list[Problem] = []
    entries: dict[Path, _Entry] = {}
    for folder in folders:
        labels = _labels([folder.name], vocabulary, str(folder), "", problems)
        if not labels:
            continue
        try:
            found = list_images(folder)
        except UserError as error:
            problems.append(Problem("empty-class", "warning", str(folder), "", str(error), "Add images of the class."))
            continue
        for file in found:
            relative = file.relative_to(images)
            path = _inside(images, relative.as_posix(), str(images), relative.as_posix(), problems)
            if path is not None:
                entries.setdefault(path, _Entry(path, relative.as_posix(), relative)).labels.update(labels)
    return _dataset(entries, name, split, vocabulary, problems, None, images, label_maps)


def read_class_list(path: Path) -> tuple[str, ...]:
    """The class names of a text file, one per line; blank lines do not count.

    Raises:
        UserError: missing, not UTF-8, empty, or its first class is background, which has no line.
    """
    names = tuple(line.strip() for line in _text(path).splitlines() if line.strip())
    if not names:
        raise UserError(f"The class list {path} is empty; write one class name per line.")
    if names[0].strip("_").casefold() == "background":
        raise UserError(f"The class list {path} begins with {names[0]!r}; remove it: value 0 is background anyway.")
    return names


def numbered_vocabulary(names: Iterable[str]) -> Vocabulary:
    """Categories of label maps in which 0 is background: the k-th name is value k (``source_id``)."""
    return Vocabulary(tuple(Category(name, source_id=k) for k, name in enumerate(names, 1)))


def read_records(
    read: Callable[[T], Read], entries: Sequence[T], progress: Callable[[int, int], None] | None = None
) -> tuple[tuple[Record, ...], list[Problem]]:
    """Read entries in a few threads; records and problems in the entries' order. ``progress`` hears (done, in all)."""
    found: list[Read] = []
    with ThreadPoolExecutor(_THREADS) as pool:
        for done, one in enumerate(pool.map(read, entries), 1):
            found.append(one)
            if progress is not None:
                progress(done, len(entries))
    records = tuple(record for record, _ in found if record is not None)
    return records, [problem for _, problems in found for problem in problems]


def image_problem(path: Path, index: str, error: UserError) -> Problem:
    """An image that is missing or unreadable and so left out."""
    check = "unreadable-image" if path.is_file() else "missing-image"
    return Problem(check, "error", str(path), index, str(error), "Restore the file, or take the image off the list.")


def label_map_problem(
    path: Path, size: tuple[int, int], index: str, severity: str, *, what: str = "label map"
) -> Problem | None:
    """What keeps a label map from being used, from its header: missing, unreadable or not of the image's size."""
    check = what.replace(" ", "-")
    remedy = f"Restore the {what}." + (" The image is used without truth." if severity == "warning" else "")
    try:
        stored = image_size(path)
    except UserError as error:
        check += "-unreadable" if path.is_file() else "-missing"
        return Problem(check, severity, str(path), index, str(error), remedy)
    if stored == size:
        return None
    message = f"The {what} is {stored[0]} x {stored[1]} but the image is {size[0]} x {size[1]} (height x width)."
    return Problem(f"{check}-size", severity, str(path), index, message, remedy)


def no_tag_problem(sample: Sample, file: Path) -> list[Problem]:
    """A warning for an image whose tags are known to be none."""
    if sample.tags is None or len(sample.tags):
        return []
    message = "The image has no tag; it is kept as background only."
    index = f"image id {sample.image_id}"
    return [Problem("no-tag", "warning", str(file), index, message, "Tag it if it shows a class.")]


@dataclass(frozen=True, slots=True)
class _Row:
    """A row of the CSV."""

    index: str
    file: str
    tags: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Entry:
    """An image file and its tags.

    Attributes:
        path: the resolved file.
        index: where it is named first.
        relative: its path below the image folder, as named.
        labels: category indices.
    """

    path: Path
    index: str
    relative: Path
    labels: set[int] = field(default_factory=set)


def _csv_rows(path: Path) -> tuple[list[_Row], list[Problem]]:
    rows: list[_Row] = []
    problems: list[Problem] = []
    for line, fields in _csv_fields(path, problems):
        index = f"line {line}"
        if not any(fields) or (line == 1 and fields[0].casefold() == "file"):
            continue
        if len(fields) > 2 or not fields[0]:
            message = f"The row has {len(fields)} fields; it needs a file and its tags."
            remedy = "Write file,tags and separate the tags with ; or |."
            problems.append(Problem("malformed-row", "error", str(path), index, message, remedy))
            continue
        stated = _SEPARATORS.split(fields[1]) if len(fields) == 2 else []
        rows.append(_Row(index, fields[0], tuple(tag.strip() for tag in stated if tag.strip())))
    return rows, problems


def _csv_fields(path: Path, problems: list[Problem]) -> Iterator[tuple[int, list[str]]]:
    """(number of its last line from 1, stripped fields) of every row that can be parsed."""
    reader = csv.reader(_text(path).splitlines(), skipinitialspace=True)
    while True:
        try:
            fields = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            index, remedy = f"line {reader.line_num}", "Write the row again."
            problems.append(Problem("malformed-row", "error", str(path), index, f"Not CSV ({error}).", remedy))
            continue
        if fields:
            yield reader.line_num, [value.strip() for value in fields]


def _text(path: Path) -> str:
    if not path.is_file():
        raise UserError(f"There is no file {path}; check the path.")
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(f"The file {path} is not text in UTF-8 ({error}); save it as UTF-8.") from error


def _vocabulary(names: Iterable[str], classes: Path | None, label_maps: Path | None, nothing: str) -> Vocabulary:
    if classes is not None:
        return numbered_vocabulary(read_class_list(classes))
    if label_maps is not None:
        raise UserError(
            f"The label maps in {label_maps} hold numbers without names; write classes.txt with one class name per "
            "line, the first for value 1."
        )
    found = sorted(names)
    if not found:
        raise UserError(f"No class is named: {nothing}; add some, or a class list.")
    return numbered_vocabulary(found)


def _labels(names: Sequence[str], vocabulary: Vocabulary, file: str, index: str, problems: list[Problem]) -> list[int]:
    """Indices of known names; each unknown one is a Problem."""
    for name in names:
        if name not in vocabulary.names:
            message = f"There is no class {name!r}{hint(name, vocabulary.names)}"
            message += "" if message.endswith("?") else "."
            remedy = "Correct the name, or add it to the class list."
            problems.append(Problem("unknown-class", "error", file, index, message, remedy))
    return [vocabulary.index(name) for name in names if name in vocabulary.names]


def _inside(root: Path, name: str, file: str, index: str, problems: list[Problem]) -> Path | None:
    try:
        return confined(root, name)
    except UserError as error:
        remedy = "Use file names below the image folder."
        problems.append(Problem("path-outside", "error", file, index, str(error), remedy))
        return None


def _dataset(
    entries: dict[Path, _Entry],
    name: str,
    split: str,
    vocabulary: Vocabulary,
    problems: list[Problem],
    annotations: Path | None,
    images: Path,
    label_maps: Path | None,
) -> Dataset:
    ids = _image_ids(entries.values())
    listing = images if annotations is None else annotations

    def read(entry: _Entry) -> Read:
        index = f"{entry.index} ({entry.relative.as_posix()})" if annotations is not None else entry.index
        try:
            size = image_size(entry.path)
        except UserError as error:
            return None, [image_problem(entry.path, index, error)]
        tags = None if split == HIDDEN_SPLIT else Tags(np.array(sorted(entry.labels), np.int64))
        sample = Sample(ids[entry.path], entry.path, size, tags=tags)
        label_map, found = _label_map(entry, size, label_maps, index)
        return Record(sample, label_map_path=label_map), [*found, *no_tag_problem(sample, listing)]

    records, found = read_records(read, list(entries.values()))
    extra = {"images": images} if annotations is None else {"annotations": annotations, "images": images}
    background = None if label_maps is None else 0
    return Dataset(name, split, vocabulary, records, (*problems, *found), background, extra)


def _label_map(
    entry: _Entry, size: tuple[int, int], folder: Path | None, index: str
) -> tuple[Path | None, list[Problem]]:
    if folder is None:
        return None, []
    relative = entry.relative.with_suffix(".png").as_posix()
    try:
        path = confined(folder, relative)
    except UserError as error:
        return None, [Problem("path-outside", "warning", str(folder), index, str(error), "Move the label map inside.")]
    problem = label_map_problem(path, size, index, "warning")
    return (path, []) if problem is None else (None, [problem])


def _image_ids(entries: Iterable[_Entry]) -> dict[Path, str]:
    """Unique ids: the relative path without suffix, or with it where two files differ in the suffix alone."""
    ids: dict[Path, str] = {}
    taken: set[str] = set()
    for entry in entries:
        short = entry.relative.with_suffix("").as_posix()
        ids[entry.path] = short if short not in taken else entry.relative.as_posix()
        taken.add(ids[entry.path])
    return ids
