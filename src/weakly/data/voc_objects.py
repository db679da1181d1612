"""The objects of one VOC annotation (XML): categories, boxes and flags, whoever wrote it.

    <annotation>
      <size><width>500</width><height>375</height></size>
      <object>
        <name>dog</name>
        <difficult>0</difficult>                     optional
        <bndbox> xmin, ymin, xmax, ymax </bndbox>    pixels counted from 1, the last one included
      </object>
      ...

VOC's (1, 1, 10, 10) are the first ten pixels: x0 = xmin - 1 and x1 = xmax here. Some tools write VOC's XML with pixels
counted from 0; their boxes come out up to a pixel larger to the left and the top, and are clipped there.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from xml.etree import ElementTree as ET

import numpy as np

from weakly.data.class_names import hint
from weakly.data.dataset import Instance, Problem
from weakly.data.geometry import Box, box_difference, clip_box
from weakly.data.voc import read_xml
from weakly.labels import Tags
from weakly.vocabulary import Vocabulary

_SIDES = ("xmin", "ymin", "xmax", "ymax")
_REDRAW = "Draw the box again; until then the object is no truth."


@dataclass(frozen=True, slots=True)
class AnnotatedObjects:
    """What an annotation says an image shows.

    Attributes:
        instances: the objects with a usable box; ``number`` counts all objects of the annotation.
        named: (category index, difficult) of all objects of a known class, whatever their box.
    """

    instances: tuple[Instance, ...]
    named: tuple[tuple[int, bool], ...]

    def tags(self, *, difficult: bool) -> Tags:
        """The categories of the objects; those of difficult objects alone only if asked for."""
        return Tags(np.array([label for label, is_hard in self.named if difficult or not is_hard], np.int64))


def read_objects(
    path: Path, size: tuple[int, int], vocabulary: Vocabulary, index: str, problems: list[Problem]
) -> AnnotatedObjects:
    """Read one annotation. An object that cannot be used is a Problem, and costs no other one.

    Args:
        path: the XML.
        size: (height, width) of the image file.
        vocabulary: the known classes.
        index: how problems name the record.
        problems: what is wrong is appended.

    Raises:
        UserError: the file is missing or not XML.
    """
    top = read_xml(path)
    reading = _Reading(path, size, index, problems)
    _check_size(top, reading)
    named: list[tuple[int, bool]] = []
    instances: list[Instance] = []
    for number, element in enumerate(top.iterfind("object"), 1):
        name = (element.findtext("name") or "").strip()
        if name not in vocabulary.names:
            message = f"There is no class {name!r}{hint(name, vocabulary.names) or '.'} The object is left out."
            reading.report("unknown-class", "error", number, message, "Correct the name, or add it to the class list.")
            continue
        difficult = (element.findtext("difficult") or "").strip() == "1"
        named.append((vocabulary.index(name), difficult))
        box = _box(element, number, reading)
        if box is not None:
            instances.append(Instance(vocabulary.index(name), box, number=number, difficult=difficult))
    return AnnotatedObjects(tuple(instances), tuple(named))


def object_names(path: Path) -> Iterator[str]:
    """Class names of the objects of an annotation, as often as they occur.

    Raises:
        UserError: the file is missing or not XML.
    """
    names = ((element.findtext("name") or "").strip() for element in read_xml(path).iterfind("object"))
    return (name for name in names if name)


@dataclass(frozen=True, slots=True)
class _Reading:
    """The annotation that is being read."""

    path: Path
    size: tuple[int, int]
    index: str
    problems: list[Problem]

    def report(self, check: str, severity: str, number: int, message: str, remedy: str) -> None:
        """Problem of an object, counted from 1, or of the whole file (0)."""
        index = f"object[{number - 1}] of {self.index}" if number else self.index
        self.problems.append(Problem(check, severity, str(self.path), index, message, remedy))


def _check_size(top: ET.Element, reading: _Reading) -> None:
    """Compare the stated size with the file's; some tools state none, or zeros."""
    stated = _number(top.findtext("size/height")), _number(top.findtext("size/width"))
    height, width = reading.size
    if all(stated) and stated != (height, width):
        message = f"The annotation states {stated[0]:g} x {stated[1]:g} but the image is {height} x {width} pixels."
        remedy = "Check whether the image was resized after its boxes were drawn; they would be misplaced."
        reading.report("image-size", "warning", 0, message, remedy)


def _box(element: ET.Element, number: int, reading: _Reading) -> Box | None:
    stated = element.find("bndbox")
    if stated is None:
        message = "The object has no box; its class is a tag all the same."
        reading.report("missing-box", "error", number, message, "Draw its box; until then the object is no truth.")
        return None
    corners = [_number(stated.findtext(side)) for side in _SIDES]
    if None in corners:
        shown = ", ".join(f"{side} {stated.findtext(side)!r}" for side in _SIDES)
        reading.report("malformed-box", "error", number, f"The box is not four numbers: {shown}.", _REDRAW)
        return None
    xmin, ymin, xmax, ymax = (corner or 0.0 for corner in corners)
    shown = f"({xmin:g}, {ymin:g}, {xmax:g}, {ymax:g})"
    if xmax < xmin or ymax < ymin:
        message = f"The box {shown} ends before it begins (xmin, ymin, xmax, ymax)."
        reading.report("degenerate-box", "error", number, message, _REDRAW)
        return None
    whole = xmin - 1, ymin - 1, xmax, ymax
    box = clip_box(whole, reading.size)
    height, width = reading.size
    if box is None:
        message = f"The box {shown} has less than 1 pixel inside the {width} x {height} image."
        reading.report("box-outside", "error", number, message, _REDRAW)
    elif box_difference(whole, box) > 0.01:
        message = f"The box {shown} leaves the {width} x {height} image, whose pixels count from 1; it is clipped."
        reading.report("box-clipped", "warning", number, message, "Nothing to do if that is intended.")
    return box


def _number(text: str | None) -> float | None:
    """A finite number, or None."""
    try:
        value = float(text or "")
    except ValueError:
        return None
    return value if math.isfinite(value) else None
