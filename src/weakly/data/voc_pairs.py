"""What LabelImg and its like leave behind: images and VOC XML files side by side, a folder per split.

    <root>/images/train/<stem>.jpg + <stem>.xml     or <root>/train/...: where there is no folder images/
    <root>/images/test/<stem>.jpg + <stem>.xml
    <root>/classes.txt                              optional: class names, one per line
    <root>/labelmap.pbtxt                           optional: item { id: 1 name: 'cat' } ..., in order of id

Splits are

* the folders: ``train``, ``test`` ...;
* ``all``: the images of every folder;
* ``test@N``, ``val@N`` and ``train@N``, for folders with too few test images or none: in order of path, every N-th of
  all images (the 0th, the N-th ...) is held out as ``test@N`` or, the same images, ``val@N``; ``train@N`` is the rest.

Without a class list the classes are the names in all XML files, whatever the split, in alphabetical order. The images
of ``test`` and ``test@N`` carry no tags. What the XML says about file names and paths is ignored.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from weakly.data.dataset import Dataset, Problem, Record
from weakly.data.images import confined, image_size, list_images
from weakly.data.tags import (
    HIDDEN_SPLIT,
    Read,
    image_problem,
    no_tag_problem,
    numbered_vocabulary,
    read_class_list,
    read_records,
)
from weakly.data.voc_instances import annotation_problem
from weakly.data.voc_objects import object_names, read_objects
from weakly.errors import UserError
from weakly.labels import Sample
from weakly.vocabulary import Category, Vocabulary

_HELD_OUT = re.compile(r"(train|val|test)@(\d{1,6})")
_ITEM = re.compile(r"\bitem\s*\{([^{}]*)\}")
_ID = re.compile(r"\bid\s*:\s*(\d{1,9})")
_NAME = re.compile(r"\bname\s*:\s*(?:'([^'\n]*)'|\"([^\"\n]*)\")")


def read_voc_pairs(
    root: Path, split: str, *, images: Path | None = None, difficult_tags: bool = False, name: str = "voc-pairs"
) -> Dataset:
    """Read one split; image headers are read for their sizes.

    Args:
        root: the folder with the class list, if there is one.
        split: as the module says.
        images: the folder of the split folders; ``images/`` below the root, else the root.
        difficult_tags: difficult objects give tags too.
        name: what tables call the dataset.

    Returns:
        Records in order of path; ids are paths without suffix, relative to ``images``. Samples have tags alone;
        ``Record.instances`` are the objects with a usable box. ``extra``: ``images`` (the split's folder) and
        ``elsewhere`` (the folders of the other splits by name).

    Raises:
        UserError: an unknown split, no image in it, or no class anywhere.
    """
    base = images or (root / "images" if (root / "images").is_dir() else root)
    part = _part(base, split)
    vocabulary = _vocabulary(root, base)
    problems: list[Problem] = []
    pairs = [pair for pair in _pairs(base, part.folder, problems) if part.has(pair.rank)]
    hidden = split == HIDDEN_SPLIT or split.startswith(f"{HIDDEN_SPLIT}@")
    read = partial(_read, vocabulary=vocabulary, hidden=hidden, difficult_tags=difficult_tags)
    records, found = read_records(read, pairs)
    extra = {"images": part.folder, "elsewhere": part.elsewhere}
    return Dataset(name, split, vocabulary, records, (*problems, *found), extra=extra)


@dataclass(frozen=True, slots=True)
class _Part:
    """What a split is.

    Attributes:
        folder: its images.
        elsewhere: folders of the other splits by name.
        every: N of a held-out share; 1 takes every image.
        held_out: whether it is the held-out share or the rest.
    """

    folder: Path
    elsewhere: dict[str, Path]
    every: int = 1
    held_out: bool = True

    def has(self, rank: int) -> bool:
        return (rank % self.every == 0) == self.held_out


@dataclass(frozen=True, slots=True)
class _Pair:
    """An image and its annotation.

    Attributes:
        image_id: relative path without suffix.
        rank: among all images of the folder, from 0.
        image: the file.
        annotation: where its XML should be.
    """

    image_id: str
    rank: int
    image: Path
    annotation: Path


def _part(base: Path, split: str) -> _Part:
    if not base.is_dir():
        raise UserError(f"There is no folder {base}; name the folder with the images and their XML files.")
    if split == "all":
        return _Part(base, {})
    if match := _HELD_OUT.fullmatch(split):
        if int(match[2]) < 2:
            raise UserError(f"The split {split!r} holds out every {match[2]}-th image; take every 2nd or fewer.")
        return _Part(base, {}, int(match[2]), match[1] != "train")
    folders = {path.name: path for path in sorted(base.iterdir()) if path.is_dir() and not path.name.startswith(".")}
    if split not in folders:
        known = ", ".join([*folders, "all", "train@5", "test@5"])
        raise UserError(f"There is no split {split!r} in {base}; choose one of {known} (every 5th image held out).")
    return _Part(folders.pop(split), folders)


def _pairs(base: Path, folder: Path, problems: list[Problem]) -> Iterator[_Pair]:
    """The images of a folder with the place of their XML. An XML file without an image is a Problem."""
    files = list_images(folder)
    taken: dict[Path, Path] = {}
    for rank, path in enumerate(files):
        relative = path.relative_to(base)
        try:
            image = confined(base, relative)
            annotation = confined(base, relative.with_suffix(".xml"))
        except UserError as error:
            remedy = "Move the file inside."
            problems.append(Problem("path-outside", "error", str(path), relative.as_posix(), str(error), remedy))
            continue
        if annotation in taken:
            message = f"The image has the annotation of {taken[annotation].name} too; the first is used."
            remedy = "Rename or remove one of the two."
            problems.append(Problem("duplicate-image", "warning", str(path), relative.as_posix(), message, remedy))
            continue
        taken[annotation] = path
        yield _Pair(relative.with_suffix("").as_posix(), rank, image, annotation)
    alone = {path for path in folder.rglob("*.xml") if not path.name.startswith(".")}
    for path in sorted(alone - {path.with_suffix(".xml") for path in files}):
        index = path.relative_to(base).as_posix()
        message, remedy = "The annotation has no image beside it.", "Restore the image, or remove the annotation."
        problems.append(Problem("missing-image", "error", str(path), index, message, remedy))


def _read(pair: _Pair, vocabulary: Vocabulary, *, hidden: bool, difficult_tags: bool) -> Read:
    try:
        size = image_size(pair.image)
    except UserError as error:
        return None, [image_problem(pair.image, pair.image_id, error)]
    problems: list[Problem] = []
    try:
        objects = read_objects(pair.annotation, size, vocabulary, pair.image_id, problems)
    except UserError as error:
        return None, [annotation_problem(pair.annotation, pair.image_id, error)]
    tags = None if hidden else objects.tags(difficult=difficult_tags)
    sample = Sample(pair.image_id, pair.image, size, tags=tags)
    return Record(sample, instances=objects.instances), [*problems, *no_tag_problem(sample, pair.annotation)]


def _vocabulary(root: Path, base: Path) -> Vocabulary:
    """The class list, else the label map, else every name in an annotation."""
    if (root / "classes.txt").is_file():
        return numbered_vocabulary(read_class_list(root / "classes.txt"))
    if (root / "labelmap.pbtxt").is_file():
        return read_label_map(root / "labelmap.pbtxt")
    names = sorted({name for path in sorted(base.rglob("*.xml")) for name in _names(base, path)})
    if not names:
        raise UserError(
            f"No annotation (XML) below {base} names an object; annotate some images, or write a class list."
        )
    return numbered_vocabulary(names)


def _names(base: Path, path: Path) -> list[str]:
    """Class names in an annotation; none where it cannot be read, which its own record reports."""
    try:
        return list(object_names(confined(base, path.relative_to(base))))
    except UserError:
        return []


def read_label_map(path: Path) -> Vocabulary:
    """TensorFlow's ``labelmap.pbtxt``: categories in order of id, which is their ``source_id``.

    Raises:
        UserError: not UTF-8, an item without id or name, or one of them twice.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"The label map {path} is not text in UTF-8 ({error}); restore it.") from error
    names: dict[int, str] = {}
    for position, item in enumerate(_ITEM.findall(text)):
        identity, name = _ID.search(item), _NAME.search(item)
        if identity is None or name is None:
            raise UserError(f"Item {position} of {path} has no id or no name; write item {{ id: 1 name: 'cat' }}.")
        if int(identity[1]) in names:
            raise UserError(f"Item {position} of {path} has the id {identity[1]} of another one; give it its own.")
        names[int(identity[1])] = name[1] or name[2] or ""
    if not names or not all(names.values()):
        raise UserError(f"The label map {path} names no class, or an empty one; write item {{ id: 1 name: 'cat' }}.")
    return Vocabulary(tuple(Category(name, source_id=identity) for identity, name in sorted(names.items())))
