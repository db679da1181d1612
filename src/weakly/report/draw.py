"""Pictures of the gallery: weak labels and label maps drawn over an image, and images as data URIs."""

from __future__ import annotations

import base64
import io
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from weakly.labels import Boxes, Points
from weakly.methods.base import NO_CATEGORY, Panel
from weakly.segmentation import overlay_label_map
from weakly.vocabulary import Vocabulary

PANEL_SIDE = 320
"""Longer side of a gallery picture in pixels."""

OUTLINE = (255, 214, 10)
"""Colour of boxes of no category."""

Picture = NDArray[np.uint8]
_Rect = tuple[float, float, float, float]


def fit_panel(image: Picture, side: int = PANEL_SIDE) -> Picture:
    """(H, W, 3) uint8 image scaled so that its longer side is ``side`` pixels."""
    height, width = image.shape[:2]
    scale = side / max(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    interpolation = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    return np.asarray(cv2.resize(image, size, interpolation=interpolation), np.uint8)


def draw_boxes(image: Picture, boxes: Boxes, vocabulary: Vocabulary, side: int = PANEL_SIDE) -> Picture:
    """The scaled image with every box outlined in its category's colour and named.

    Args:
        image: (H, W, 3) uint8 RGB.
        boxes: xyxy in pixels of ``image``.
        vocabulary: names and colours.
        side: longer side of the result in pixels.
    """
    canvas, draw, scale = _canvas(image, side)
    palette = vocabulary.palette()
    rects = boxes.xyxy * np.array([scale[0], scale[1]] * 2, np.float32)
    order = np.argsort(-(rects[:, 2] - rects[:, 0]) * (rects[:, 3] - rects[:, 1]), kind="stable")
    for i in order:
        x0, y0, x1, y1 = (float(v) for v in rects[i])
        corners = [min(x0, x1), min(y0, y1), max(x0, x1), max(y0, y1)]
        draw.rectangle(corners, outline=(255, 255, 255), width=3)
        draw.rectangle(corners, outline=_rgb(palette, boxes.labels[i]), width=2)
    taken: list[_Rect] = []
    for i in order[::-1]:
        x0, y0, x1, y1 = (float(v) for v in rects[i])
        spots = [(x0, y0, -1), (x0, y1, 0), (x0 + 2, y0 + 2, 0), (x1, y0, 0), (x1, y1, -1)]
        _tag(draw, spots, taken, vocabulary, int(boxes.labels[i]))
    return np.asarray(canvas)


def draw_points(image: Picture, points: Points, vocabulary: Vocabulary, side: int = PANEL_SIDE) -> Picture:
    """The scaled image with every point as a named dot in its category's colour; arguments as :func:`draw_boxes`."""
    canvas, draw, scale = _canvas(image, side)
    palette = vocabulary.palette()
    centres = points.xy * np.array(scale, np.float32)
    taken: list[_Rect] = [(x - 5, y - 5, x + 5, y + 5) for x, y in centres.tolist()]
    for (x, y), label in zip(centres.tolist(), points.labels, strict=True):
        draw.ellipse([x - 6, y - 6, x + 6, y + 6], fill=(255, 255, 255))
        draw.ellipse([x - 4, y - 4, x + 4, y + 4], fill=_rgb(palette, label))
    for (x, y), label in zip(centres.tolist(), points.labels, strict=True):
        spots = [(x + 7, y - 6, 0), (x + 7, y + 7, 0), (x - 6, y - 7, -1), (x - 6, y + 7, 0), (x - 40, y - 6, 0)]
        _tag(draw, spots, taken, vocabulary, int(label))
    return np.asarray(canvas)


def draw_label_map(image: Picture, label_map: NDArray[Any], vocabulary: Vocabulary, side: int = PANEL_SIDE) -> Picture:
    """The scaled image under its (H, W) label map (background and void stay clear)."""
    panel = fit_panel(image, side)
    height, width = panel.shape[:2]
    scaled = cv2.resize(np.asarray(label_map, np.uint16), (width, height), interpolation=cv2.INTER_NEAREST)
    return overlay_label_map(panel, scaled, vocabulary)


def draw_heat(image: Picture, heat: NDArray[np.uint8], side: int = PANEL_SIDE) -> Picture:
    """The scaled image under an (h, w) map of strengths 0..255, from blue (weak) to red (strong)."""
    panel = fit_panel(image, side)
    height, width = panel.shape[:2]
    strengths = np.asarray(cv2.resize(heat, (width, height), interpolation=cv2.INTER_LINEAR), np.uint8)
    colours = cv2.cvtColor(cv2.applyColorMap(strengths, cv2.COLORMAP_TURBO), cv2.COLOR_BGR2RGB)
    return np.asarray((0.45 * panel + 0.55 * colours).round(), np.uint8)


def draw_regions(image: Picture, regions: NDArray[Any], side: int = PANEL_SIDE) -> Picture:
    """The scaled image under (h, w) numbers of regions, each in a colour of its own; where 0, it stays clear."""
    count = int(regions.max(initial=0))
    numbers = Vocabulary.from_names([str(number) for number in range(count)])
    return draw_label_map(image, np.where(regions > 0, regions.astype(np.int64) - 1, count), numbers, side)


def draw_outlines(image: Picture, boxes: NDArray[Any], side: int = PANEL_SIDE) -> Picture:
    """The scaled image with (n, 4) boxes of no category outlined."""
    canvas, draw, scale = _canvas(image, side)
    for corners in (np.asarray(boxes, np.float32) * np.array([*scale, *scale], np.float32)).tolist():
        draw.rectangle(corners, outline=OUTLINE)
    return np.asarray(canvas)


def draw_stage(image: Picture, stage: Panel, vocabulary: Vocabulary, side: int = PANEL_SIDE) -> Picture:
    """The scaled image under one stage of a method."""
    if stage.kind in ("boxes", "points"):
        labels, places = stage.values[:, -1].astype(np.int64), stage.values[:, :-1].astype(np.float32)
        named = labels != NO_CATEGORY
        if stage.kind == "points":
            return draw_points(image, Points(places[named], labels[named]), vocabulary, side)
        plain = draw_outlines(image, places[~named], side)
        return draw_boxes(plain, Boxes(places[named] * _factor(image, plain), labels[named]), vocabulary, side)
    if stage.kind == "heat":
        return draw_heat(image, np.asarray(stage.values, np.uint8), side)
    if stage.kind == "regions":
        return draw_regions(image, stage.values, side)
    return draw_label_map(image, stage.values, vocabulary, side)


def picture_uri(picture: Picture, side: int = PANEL_SIDE) -> str:
    """A (H, W, 3) uint8 picture as a JPEG data URI, no side longer than ``side`` pixels."""
    small = picture if max(picture.shape[:2]) <= side else fit_panel(picture, side)
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(small)).save(buffer, "JPEG", quality=85, subsampling=0, optimize=True)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def part_name(vocabulary: Vocabulary, index: int) -> str:
    """The category's name without its object in front: ``"Quadruped Head" -> "Head"``."""
    category = vocabulary.categories[index]
    return short_name(category.name, category.object)


def short_name(name: str, whole: str | None) -> str:
    """``name`` without a leading ``whole``, where something is left."""
    if whole and name.lower().startswith(whole.lower()):
        rest = name[len(whole) :].strip(" -_:/")
        return rest or name
    return name


def _factor(image: Picture, scaled: Picture) -> NDArray[np.float32]:
    """(4,) what boxes of the image are multiplied by to be those of the scaled one."""
    height, width = (new / old for new, old in zip(scaled.shape[:2], image.shape[:2], strict=True))
    return np.array([width, height, width, height], np.float32)


def _canvas(image: Picture, side: int) -> tuple[Image.Image, ImageDraw.ImageDraw, tuple[float, float]]:
    panel = fit_panel(image, side)
    canvas = Image.fromarray(panel)
    return canvas, ImageDraw.Draw(canvas), (panel.shape[1] / image.shape[1], panel.shape[0] / image.shape[0])


def _tag(
    draw: ImageDraw.ImageDraw,
    spots: list[tuple[float, float, int]],
    taken: list[_Rect],
    vocabulary: Vocabulary,
    label: int,
) -> None:
    """Write the category's name at the first of ``spots`` that covers no earlier tag; leave it out where none is free.

    A spot is (x, y, rows above): -1 puts the tag on top of y, 0 below it. The legend names what has no tag.
    """
    font = ImageFont.load_default(size=13)
    canvas_width, canvas_height = draw.im.size
    text = part_name(vocabulary, label)
    left, top, right, bottom = font.getbbox(text)
    width, height = right - left + 6, bottom - top + 5
    for x, y, above in spots:
        x0 = min(max(0.0, x), canvas_width - width)
        y0 = min(max(0.0, y + above * height), canvas_height - height)
        rect = (x0, y0, x0 + width, y0 + height)
        if any(_overlap(rect, other) for other in taken):
            continue
        colour = _rgb(vocabulary.palette(), label)
        ink = (0, 0, 0) if np.dot(colour, (0.299, 0.587, 0.114)) > 140 else (255, 255, 255)
        draw.rectangle(rect, fill=colour)
        draw.text((x0 + 3 - left, y0 + 2 - top), text, fill=ink, font=font)
        taken.append(rect)
        return


def _overlap(a: _Rect, b: _Rect) -> bool:
    return a[0] < b[2] and b[0] < a[2] and a[1] < b[3] and b[1] < a[3]


def _rgb(palette: Picture, label: Any) -> tuple[int, int, int]:
    red, green, blue = (int(v) for v in palette[int(label)])
    return red, green, blue
