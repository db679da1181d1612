"""YOLO's folders: a YAML file, images, and a text file per image with boxes or polygons.

    <root>/data.yaml                    names, and the image folder of each split; any one *.yaml will do
    <root>/images/train/<stem>.jpg
    <root>/labels/train/<stem>.txt      class x y width height          box centre and sides, as shares of the image
                                        class x1 y1 x2 y2 x3 y3 ...     polygon

The label folder is the image folder with the last ``images`` in its path replaced by ``labels``; without one, labels
lie beside the images. Folders are looked for below the YAML alone: people move their data, so ``path`` counts only if
it is there, and leading ``../`` are dropped. Class ids may have gaps (``Category.source_id``).

Tags are the classes of the lines, whatever is wrong with their boxes; the images of ``test`` have none. Boxes and
polygons are truth; a polygon gives its extent as box. An image without a label file shows nothing, unless the YAML says
``skip_if_label_file_missing: true``: then nobody knows, and it is left out. The format has no holes and no objects in
several pieces; some exporters write one line per piece.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from itertools import dropwhile
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from weakly.data.dataset import Dataset, Instance, Problem, Record
from weakly.data.geometry import Box, box_difference, clip_box, rings_extent, usable_rings
from weakly.data.images import confined, image_size, list_images
from weakly.data.tags import HIDDEN_SPLIT, Read, image_problem, no_tag_problem, read_records
from weakly.errors import UserError
from weakly.labels import Sample, Tags
from weakly.vocabulary import Category, Vocabulary

_DECIMALS = 2
"""Shares of six digits leave this many digits of a pixel."""


def read_yolo(config: Path, split: str, *, images: Path | None = None, name: str = "yolo") -> Dataset:
    """Read one split; image headers are read for their sizes.

    Args:
        config: the YAML file.
        split: ``train``, ``val``, ``test`` ...: a key of it.
        images: the split's image folder, if it is not where the YAML says.
        name: what tables call the dataset.

    Returns:
        Records in order of path; ids are paths without suffix, relative to the image folder. Samples have tags alone;
        ``Record.instances`` are the objects with a usable box. ``extra``: ``annotations`` (the YAML), ``images`` and
        ``elsewhere`` (the image folders of the other splits by name).

    Raises:
        UserError: the YAML or a folder is missing, or it does not name the split or the classes.
    """
    settings = _settings(config)
    vocabulary = _vocabulary(settings.get("names"), config)
    folder = images or _confined(config, _folder(settings, split, config))
    labels = _confined(config, _label_folder(_folder(settings, split, config)))
    if not folder.is_dir():
        raise UserError(
            f"There is no image folder {folder}, which {config} names for {split!r}; name it with --images."
        )
    if not labels.is_dir():
        raise UserError(f"There is no label folder {labels} for the images of split {split!r} of {config}; restore it.")
    problems: list[Problem] = []
    entries = list(_entries(folder, labels, problems))
    skips = settings.get("skip_if_label_file_missing") is True
    read = partial(_read, vocabulary=vocabulary, hidden=split == HIDDEN_SPLIT, skips=skips)
    records, found = read_records(read, entries)
    others = [key for key in ("train", "val", "test") if key != split and isinstance(settings.get(key), str)]
    elsewhere = {} if images else {key: _confined(config, _folder(settings, key, config)) for key in others}
    extra = {"annotations": config, "images": folder, "elsewhere": elsewhere}
    return Dataset(name, split, vocabulary, records, (*problems, *found), extra=extra)


def find_config(root: Path) -> Path:
    """The YAML file of a folder: ``data.yaml``, ``config.yaml``, or the only one.

    Raises:
        UserError: there is none, or there are several.
    """
    known = [root / "data.yaml", root / "config.yaml"]
    files = [path for path in known if path.is_file()] or sorted([*root.glob("*.yaml"), *root.glob("*.yml")])
    if not files:
        raise UserError(f"There is no YAML file in {root}; name YOLO's data.yaml with --annotations.")
    if len(files) > 1 and files[0] not in known:
        raise UserError(f"There are {len(files)} YAML files in {root}; name one of them with --annotations.")
    return files[0]


def _settings(config: Path) -> Mapping[str, Any]:
    try:
        settings = yaml.safe_load(config.read_text(encoding="utf-8-sig"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError, RecursionError) as error:
        raise UserError(f"The file {config} cannot be read as YAML ({_line(error)}); restore it.") from error
    if not isinstance(settings, dict):
        raise UserError(f"The file {config} is no YAML mapping; it needs names, and a folder for each split.")
    return settings


def _line(error: BaseException) -> str:
    return " ".join(str(error).split())


def _vocabulary(names: Any, config: Path) -> Vocabulary:
    """Categories in order of id, which is their ``source_id``; ``names`` is a list, or a mapping of ids to names."""
    stated = dict(enumerate(names)) if isinstance(names, list) else names
    if not isinstance(stated, dict) or not stated or not all(isinstance(key, int) for key in stated):
        raise UserError(f"The file {config} has no 'names': a list of class names, or one name per class id.")
    return Vocabulary(tuple(Category(str(name), source_id=identity) for identity, name in sorted(stated.items())))


def _folder(settings: Mapping[str, Any], split: str, config: Path) -> Path:
    """The image folder of a split, relative to the folder of the YAML."""
    stated, base = settings.get(split), _without_leading_dots(str(settings.get("path") or ""))
    if not isinstance(stated, str) or split in {"path", "names"}:
        known = ", ".join(key for key in ("train", "val", "test") if isinstance(settings.get(key), str))
        raise UserError(f"The file {config} has no image folder {split!r}; it has {known or 'none'}.")
    is_there = not base.is_absolute() and (config.parent / base).is_dir()
    return (base if is_there else Path()) / _without_leading_dots(stated)


def _without_leading_dots(name: str) -> Path:
    return Path(*dropwhile(lambda part: part == "..", Path(name).parts))


def _confined(config: Path, folder: Path) -> Path:
    """A folder below that of the YAML.

    Raises:
        UserError: it leads elsewhere.
    """
    try:
        return confined(config.parent, folder)
    except UserError as error:
        message = f"The folder {str(folder)!r} that {config} names leads outside {config.parent}"
        raise UserError(f"{message}; move it inside, or name the image folder with --images.") from error


def _label_folder(images: Path) -> Path:
    """The path with the last ``images`` replaced by ``labels``."""
    parts = list(images.parts)
    places = [place for place, part in enumerate(parts) if part == "images"]
    if places:
        parts[places[-1]] = "labels"
    return Path(*parts)


@dataclass(frozen=True, slots=True)
class _Entry:
    """An image and its labels.

    Attributes:
        image_id: relative path without suffix.
        image: the file.
        labels: where its label file is, if it has one.
    """

    image_id: str
    image: Path
    labels: Path


def _entries(folder: Path, labels: Path, problems: list[Problem]) -> Iterator[_Entry]:
    """The images of a folder. A label file without an image is a Problem."""
    known: set[str] = set()
    for path in list_images(folder):
        relative = path.relative_to(folder)
        image_id = relative.with_suffix("").as_posix()
        if image_id in known:
            message, remedy = (
                "Another image has this name but for the suffix; the first is used.",
                "Rename one of them.",
            )
            problems.append(Problem("duplicate-image", "warning", str(path), image_id, message, remedy))
            continue
        known.add(image_id)
        try:
            yield _Entry(image_id, confined(folder, relative), confined(labels, relative.with_suffix(".txt")))
        except UserError as error:
            problems.append(Problem("path-outside", "error", str(path), image_id, str(error), "Move the file inside."))
    for path in sorted(labels.rglob("*.txt")):
        image_id = path.relative_to(labels).with_suffix("").as_posix()
        if image_id not in known and path.name != "classes.txt":
            message, remedy = "The label file has no image.", "Restore the image, or remove the label file."
            problems.append(Problem("missing-image", "error", str(path), image_id, message, remedy))


def _read(entry: _Entry, vocabulary: Vocabulary, *, hidden: bool, skips: bool) -> Read:
    try:
        size = image_size(entry.image)
    except UserError as error:
        return None, [image_problem(entry.image, entry.image_id, error)]
    if skips and not entry.labels.is_file():
        message, remedy = "The image has no label file; it is left out, as the YAML says.", "Label it, or leave it."
        return None, [Problem("annotation-missing", "warning", str(entry.labels), entry.image_id, message, remedy)]
    problems: list[Problem] = []
    try:
        text = entry.labels.read_text(encoding="utf-8-sig") if entry.labels.is_file() else ""
    except (OSError, UnicodeDecodeError) as error:
        remedy = "Restore the label file; until then the image is left out."
        message = f"The label file is not text in UTF-8 ({error})."
        return None, [Problem("annotation-unreadable", "error", str(entry.labels), entry.image_id, message, remedy)]
    reader = _Lines(entry, size, vocabulary.by_source_id(), problems)
    lines = [reader.read(number, line.split()) for number, line in enumerate(text.splitlines(), 1) if line.strip()]
    tags = None if hidden else Tags(np.array([label for label, _ in lines if label is not None], np.int64))
    sample = Sample(entry.image_id, entry.image, size, tags=tags)
    instances = tuple(instance for _, instance in lines if instance is not None)
    return Record(sample, instances=instances), [*problems, *no_tag_problem(sample, entry.labels)]


@dataclass(frozen=True, slots=True)
class _Lines:
    """Reads the lines of one label file; a line that cannot be used is a Problem.

    Attributes:
        entry: the image.
        size: its (height, width).
        index: {class id: category index}.
        problems: what is wrong is appended.
    """

    entry: _Entry
    size: tuple[int, int]
    index: Mapping[int, int]
    problems: list[Problem]

    def read(self, number: int, fields: list[str]) -> tuple[int | None, Instance | None]:
        """The category and the object of a line; None for what cannot be read."""
        try:
            identity, values = int(fields[0]), np.array([float(field) for field in fields[1:]])
        except ValueError:
            self._report("malformed-line", "error", number, "The line is not a class id followed by numbers.")
            return None, None
        if identity not in self.index:
            self._report("unknown-class", "error", number, f"There is no class {identity} among the names of the YAML.")
            return None, None
        label, scale = self.index[identity], np.array(self.size[::-1], np.float64)
        if len(values) == 4 and np.isfinite(values).all():
            centre, half = values[:2] * scale, values[2:] * scale / 2
            x0, y0, x1, y1 = (float(v) for v in (*(centre - half), *(centre + half)))
            box = self._box(number, (x0, y0, x1, y1))
            return label, None if box is None else Instance(label, box, number=number)
        rings = usable_rings([(values.reshape(-1, 2) * scale).ravel().tolist()])[0] if len(values) % 2 == 0 else []
        if not rings:
            message = f"The {len(values)} numbers after the class are no box (x y width height) and no polygon."
            self._report("malformed-line", "error", number, message)
            return label, None
        box = self._box(number, rings_extent(rings))
        return label, None if box is None else Instance(label, box, rings, number)

    def _box(self, number: int, whole: Box) -> Box | None:
        x0, y0, x1, y1 = (round(side, _DECIMALS) for side in whole)
        box = clip_box((x0, y0, x1, y1), self.size)
        height, width = self.size
        shown = "({:.1f}, {:.1f}, {:.1f}, {:.1f})".format(*whole)
        if box is None:
            message = f"The box {shown} has less than 1 pixel inside the {width} x {height} image."
            self._report("box-outside", "error", number, message)
        elif box_difference(whole, box) > 1:
            self._report("box-clipped", "warning", number, f"The box {shown} leaves the image and is clipped.")
        return box

    def _report(self, check: str, severity: str, number: int, message: str) -> None:
        index = f"line {number} ({self.entry.image_id})"
        remedy = "Correct the line." if severity == "error" else "Nothing to do if that is intended."
        self.problems.append(Problem(check, severity, str(self.entry.labels), index, message, remedy))
