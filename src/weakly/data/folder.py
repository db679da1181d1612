"""Plain image files and folders, as people have them: no labels, only names for the results."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from weakly.data.images import list_images
from weakly.errors import UserError


@dataclass(frozen=True, slots=True)
class ImageFile:
    """One image to predict on.

    Attributes:
        image_id: unique among the images of one call; safe as a relative file name without suffix.
        path: the file.
    """

    image_id: str
    path: Path


def folder_sources(paths: Sequence[Path]) -> list[ImageFile]:
    """Image files of files and folders (recursive, sorted), each file once.

    Ids are the path below the folder without suffix (``holiday/beach``), for a file its stem. Where two files would
    share an id, the later ones keep their suffix (``beach.png``) and after that get a number (``beach.png-2``).

    Raises:
        UserError: no path is given, one does not exist, or a folder holds no image.
    """
    if not paths:
        raise UserError("No image is given; name image files or folders.")
    sources: list[ImageFile] = []
    used: set[str] = set()
    seen: set[Path] = set()
    for start in paths:
        for path in list_images(start):
            resolved = path.resolve()
            if resolved in seen:
                continue
            seen.add(resolved)
            relative = path.relative_to(start) if start.is_dir() else Path(path.name)
            image_id = _free_id(relative, used)
            used.add(image_id.casefold())
            sources.append(ImageFile(image_id, path))
    return sources


def _free_id(relative: Path, used: set[str]) -> str:
    """Ids are compared without case: results are files, and not every file system knows upper from lower case."""
    named = relative.as_posix()
    for candidate in (relative.with_suffix("").as_posix(), named):
        if candidate.casefold() not in used:
            return candidate
    number = 2
    while f"{named}-{number}".casefold() in used:
        number += 1
    return f"{named}-{number}"
