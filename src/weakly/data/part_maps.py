"""Images with a part label map each, in twin folders: what the layouts of OV-PARTS share."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from weakly.data.dataset import Problem, Record
from weakly.data.images import confined, image_size, list_images
from weakly.data.tags import Read, image_problem, label_map_problem
from weakly.errors import UserError
from weakly.labels import Sample


@dataclass(frozen=True, slots=True)
class MapEntry:
    """An image file and where its part map should be.

    Attributes:
        image_id: path below the image folder without suffix.
        image: the file.
        label_map: its part map.
    """

    image_id: str
    image: Path
    label_map: Path

    @property
    def index(self) -> str:
        """How problems name it."""
        return f"image id {self.image_id}"


def map_entries(images: Path, maps: Path, problems: list[Problem]) -> list[MapEntry]:
    """The images of a folder with the places of their part maps, sorted by path.

    Links that lead outside, and part maps without an image, are Problems.

    Raises:
        UserError: a folder is missing, or has no image.
    """
    for folder in (images, maps):
        if not folder.is_dir():
            raise UserError(f"There is no folder {folder}; it must hold a file per image of the split.")
    entries = {entry.label_map: entry for entry in _entries(images, maps, problems)}
    named = {path.resolve(): path for path in sorted(maps.rglob("*.png"))}
    for path in [path for target, path in named.items() if target not in entries and not path.name.startswith(".")]:
        index, remedy = path.relative_to(maps).as_posix(), "Restore the image, or remove the map."
        problems.append(Problem("missing-image", "error", str(path), index, "The part map has no image.", remedy))
    return list(entries.values())


def _entries(images: Path, maps: Path, problems: list[Problem]) -> Iterator[MapEntry]:
    for path in list_images(images):
        relative = path.relative_to(images)
        try:
            image, label_map = confined(images, relative), confined(maps, relative.with_suffix(".png"))
        except UserError as error:
            remedy = "Move the file inside."
            problems.append(Problem("path-outside", "error", str(path), relative.as_posix(), str(error), remedy))
            continue
        yield MapEntry(relative.with_suffix("").as_posix(), image, label_map)


def read_part_map(entry: MapEntry) -> Read:
    """A record of an image and its part map, from their headers; without a usable map there is none."""
    try:
        size = image_size(entry.image)
    except UserError as error:
        return None, [image_problem(entry.image, entry.index, error)]
    problem = label_map_problem(entry.label_map, size, entry.index, "error")
    if problem is not None:
        return None, [problem]
    return Record(Sample(entry.image_id, entry.image, size), label_map_path=entry.label_map), []
