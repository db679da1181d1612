"""Raw Pascal-Part annotations (Chen et al., CVPR 2014) -> the layout of Pascal-Part-116.

    Annotations_Part/<stem>.mat     MATLAB 5: anno.objects(i): class, mask, parts(j): part_name, mask
    JPEGImages/<stem>.jpg           of VOC 2010

The published label maps of Pascal-Part-116 came without their conversion, so this one follows the versioned merge
table (``part_names/pascal_part_merges.yaml``). Masks overlap (an eye lies on its head): they are painted in the order
of the annotation, parts after the whole, later objects over earlier ones and over their parts.
"""

from __future__ import annotations

import re
import zlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.io import loadmat
from scipy.io.matlab import MatReadError

from weakly.data.class_names import VOC_NAMES
from weakly.data.dataset import VOID, Problem
from weakly.data.images import confined, image_size
from weakly.data.menagerie.world import png, write_if_changed
from weakly.data.part_lists import part_list, pascal_part_merges
from weakly.data.pascal_part import OBJECT_MAPS, PART_MAPS
from weakly.errors import UserError

_NUMBER = re.compile(r"_\d+$")
_RENAMED = {"table": "diningtable"}  # classes that the annotations call otherwise than VOC


@dataclass(frozen=True)
class Conversion:
    """What a conversion did.

    Attributes:
        images: converted, earlier calls included.
        merges_version: of the merge table.
        unknown: {(VOC class, raw part name): number of masks} that the table does not have; they were not painted.
        problems: annotations and images that could not be used.
    """

    images: int
    merges_version: int
    unknown: Mapping[tuple[str, str], int]
    problems: tuple[Problem, ...]


@dataclass(frozen=True, eq=False)
class LabelMaps:
    """What one annotation paints.

    Attributes:
        parts: (H, W) class of Pascal-Part-116, 255 for none.
        objects: (H, W) VOC's class from 0, 255 for none.
        unknown: {(VOC class, raw part name): number of masks} that the merge table does not have.
    """

    parts: NDArray[np.uint8]
    objects: NDArray[np.uint8]
    unknown: Counter[tuple[str, str]]


def convert_pascal_part(
    annotations: Path,
    images: Path,
    out: Path,
    split: str,
    *,
    stems: Sequence[str] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Conversion:
    """Write one split of the layout that :func:`~weakly.data.pascal_part.read_pascal_part` reads.

    Inputs are only read; images are copied. A stopped conversion goes on: what it wrote is not written again.

    Args:
        annotations: the folder of ``.mat`` files.
        images: the folder of JPEG files.
        out: root of the new layout.
        split: ``"train"`` or ``"val"``.
        stems: the images of the split, e.g. the lines of ``ImageSets/Main/train.txt``; None: all annotated ones.
        progress: called with (images done, images in all).

    Raises:
        UserError: a folder is missing, there is nothing to convert, or ``split`` is no name.
        WeaklyError: the files cannot be written.
    """
    for folder in (annotations, images):
        if not folder.is_dir():
            raise UserError(f"There is no folder {folder}; name the folders of .mat files and of JPEG images.")
    if Path(split).name != split:
        raise UserError(f"The split {split!r} is a path; name it 'train' or 'val'.")
    wanted = sorted(path.stem for path in annotations.glob("*.mat")) if stems is None else list(dict.fromkeys(stems))
    if not wanted:
        raise UserError(f"There is no annotation (.mat) to convert in {annotations}; name the folder Annotations_Part.")
    unknown: Counter[tuple[str, str]] = Counter()
    problems: list[Problem] = []
    for done, stem in enumerate(wanted, 1):
        try:
            unknown += _convert(annotations, images, out, split, stem)
        except UserError as error:
            remedy = "Restore the file; until then the image is left out."
            problems.append(Problem("not-converted", "error", str(annotations), stem, str(error), remedy))
        if progress is not None:
            progress(done, len(wanted))
    return Conversion(len(wanted) - len(problems), pascal_part_merges()[0], dict(unknown), tuple(problems))


def _convert(annotations: Path, images: Path, out: Path, split: str, stem: str) -> Counter[tuple[str, str]]:
    """Write the files of one image; its unknown parts."""
    image = confined(images, f"{stem}.jpg")
    size = image_size(image)
    maps = paint_annotation(read_annotation(confined(annotations, f"{stem}.mat")))
    if maps is not None and maps.parts.shape != size:
        (h, w), (height, width) = maps.parts.shape, size
        raise UserError(f"The masks of {stem} are {h} x {w} but its image is {height} x {width} (height x width).")
    if maps is None:
        maps = LabelMaps(np.full(size, VOID, np.uint8), np.full(size, VOID, np.uint8), Counter())
    write_if_changed(out / "images" / split / f"{stem}.jpg", image.read_bytes())
    write_if_changed(out / OBJECT_MAPS / split / f"{stem}.png", png(maps.objects))
    write_if_changed(out / PART_MAPS / split / f"{stem}.png", png(maps.parts))
    return maps.unknown


def read_annotation(path: Path) -> list[Any]:
    """The objects of a ``.mat`` file, in order: with ``class``, ``mask`` and ``parts`` (``part_name``, ``mask``).

    Raises:
        UserError: missing, or not an annotation of Pascal-Part.
    """
    if not path.is_file():
        raise UserError(f"There is no annotation {path}; check the path.")
    try:
        content = loadmat(path, struct_as_record=False, squeeze_me=True, variable_names=["anno"])
        return list(np.atleast_1d(content["anno"].objects))
    except (
        MatReadError,
        ValueError,
        TypeError,
        OSError,
        NotImplementedError,
        KeyError,
        AttributeError,
        zlib.error,
    ) as e:
        raise UserError(f"The annotation {path} is not one of Pascal-Part ({type(e).__name__}: {e}).") from e


def paint_annotation(objects: Sequence[Any]) -> LabelMaps | None:
    """Label maps of the objects of one annotation; None where it has no object.

    Raises:
        UserError: an object has an unknown class or no mask, or masks differ in size.
    """
    vocabulary, merges = part_list("pascal_part_116").vocabulary(), pascal_part_merges()[1]
    canvas: LabelMaps | None = None
    try:
        for one in objects:
            stated, mask = str(getattr(one, "class")), np.asarray(one.mask) > 0
            whole = _RENAMED.get(stated, stated)
            if canvas is None:
                canvas = LabelMaps(np.full(mask.shape, VOID, np.uint8), np.full(mask.shape, VOID, np.uint8), Counter())
            canvas.objects[mask] = VOC_NAMES.index(whole)
            canvas.parts[mask] = VOID
            for part in np.atleast_1d(one.parts):
                raw = str(part.part_name)
                name = merges.get((whole, raw)) or merges.get((whole, _NUMBER.sub("_*", raw)))
                if name is None:
                    canvas.unknown[whole, raw] += 1
                else:
                    canvas.parts[np.asarray(part.mask) > 0] = vocabulary.index(f"{whole}'s {name}")
    except (AttributeError, IndexError, TypeError, ValueError) as error:
        raise UserError(f"An object of the annotation is malformed ({type(error).__name__}: {error}).") from error
    return canvas
