"""One raw annotation of Pascal-Part (Chen et al., CVPR 2014): its objects and parts, and what of them can be seen.

    Annotations_Part/<stem>.mat     MATLAB 5: anno.objects(i): class, mask, parts(j): part_name, mask

Masks overlap: an eye lies on its head, and the objects are ordered so that later ones hide earlier ones. They are
painted in the order of the annotation, parts after the whole, later objects over earlier ones and over their parts.
"""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.io import loadmat
from scipy.io.matlab import MatReadError

from weakly.data.class_names import VOC_NAMES
from weakly.data.dataset import Problem
from weakly.data.part_lists import MergeTable
from weakly.errors import UserError

_RENAMED = {"table": "diningtable"}  # classes that the annotations call otherwise than VOC

# What scipy raises on files that are damaged, of another version of MATLAB, or about something else.
_READ_ERRORS = (
    MatReadError,
    ValueError,
    TypeError,
    OSError,
    NotImplementedError,
    KeyError,
    AttributeError,
    zlib.error,
)


@dataclass(frozen=True, eq=False)
class PaintedParts:
    """What can be seen of the objects and merged parts of one annotation. Parts of one name of one object are one part.

    Attributes:
        objects: (H, W) uint16: number of the object on top, from 1; 0 for none.
        parts: (H, W) uint16: number of the part on top, from 1; 0 for none. A part may be hidden altogether.
        classes: VOC class of object 1, 2 ...
        names: (VOC class, part) of part 1, 2 ...
        unknown: {(VOC class, raw part name): number of masks} that the merge table does not have; not painted.
    """

    objects: NDArray[np.uint16]
    parts: NDArray[np.uint16]
    classes: tuple[str, ...]
    names: tuple[tuple[str, str], ...]
    unknown: Counter[tuple[str, str]]

    def problems(self, file: Path, index: str) -> list[Problem]:
        """A warning where the merge table lacks a name of the annotation ``file``."""
        if not self.unknown:
            return []
        names = ", ".join(f"{raw!r} of a {whole} ({count})" for (whole, raw), count in sorted(self.unknown.items()))
        message = f"The merge table has no part for {names}; these masks are left out."
        remedy = "Check that the annotation is as published."
        return [Problem("unknown-part", "warning", str(file), index, message, remedy)]


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
    except _READ_ERRORS as error:
        reason = f"{type(error).__name__}: {error}"
        raise UserError(f"The annotation {path} is not one of Pascal-Part ({reason}); restore it.") from error


def paint_annotation(objects: Sequence[Any], size: tuple[int, int], table: MergeTable) -> PaintedParts:
    """Paint the objects of one annotation.

    Args:
        objects: of :func:`read_annotation`.
        size: (height, width) of the image.
        table: names the parts.

    Raises:
        UserError: an object or part has no mask of the image's size, or an object's class is not one of VOC's.
    """
    tops, parts = np.zeros(size, np.uint16), np.zeros(size, np.uint16)
    classes: list[str] = []
    numbers: dict[tuple[int, str], int] = {}
    unknown: Counter[tuple[str, str]] = Counter()
    for number, one in enumerate(objects, 1):
        whole = _class_name(one)
        classes.append(whole)
        mask = _mask(one, size)
        tops[mask], parts[mask] = number, 0
        for part in np.atleast_1d(one.parts):
            raw = str(part.part_name)
            name = table.part(whole, raw)
            if name is None:
                unknown[whole, raw] += 1
            else:
                parts[_mask(part, size)] = numbers.setdefault((number, name), len(numbers) + 1)
    names = tuple((classes[number - 1], name) for number, name in numbers)
    return PaintedParts(tops, parts, tuple(classes), names, unknown)


def _class_name(one: Any) -> str:
    stated = str(getattr(one, "class", ""))
    whole = _RENAMED.get(stated, stated)
    if whole not in VOC_NAMES or not hasattr(one, "parts"):
        raise UserError(f"An object of the annotation is malformed: its class is {stated!r}; restore the annotation.")
    return whole


def _mask(one: Any, size: tuple[int, int]) -> NDArray[np.bool_]:
    """(H, W) bool mask of an object or a part."""
    try:
        mask = np.asarray(one.mask) > 0
    except (AttributeError, TypeError, ValueError) as error:
        raise UserError(f"An object of the annotation is malformed ({type(error).__name__}: {error}).") from error
    if mask.shape != size:
        stated, (height, width) = " x ".join(map(str, mask.shape)) or "no", size
        raise UserError(f"A mask of the annotation is {stated} but its image is {height} x {width} (height x width).")
    return mask
