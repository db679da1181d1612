"""Boxes, polygon rings and run lengths as annotation files state them: validated one at a time, never trusted."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

Box = tuple[float, float, float, float]
"""``x0, y0, x1, y1`` in image pixels, x1 and y1 exclusive."""

MIN_BOX_SIDE = 1.0
"""A box is unusable if its width or height inside the image is below this many pixels."""


def numbers(value: Any, length: int) -> list[float] | None:
    """``value`` as ``length`` floats, or None if it is not a list of exactly so many numbers (NaN is a number)."""
    if not isinstance(value, list | tuple) or len(value) != length:
        return None
    if not all(isinstance(v, int | float) and not isinstance(v, bool) for v in value):
        return None
    try:
        return [float(v) for v in value]
    except OverflowError:  # an integer beyond 1e308
        return None


def box_from_xywh(xywh: Sequence[float]) -> Box:
    """COCO's ``x, y, width, height`` as corners."""
    x, y, width, height = xywh
    return x, y, x + width, y + height


def clip_box(box: Box, size: tuple[int, int]) -> Box | None:
    """The part of a box that lies inside an image of ``size`` (height, width).

    Returns:
        The clipped box; None if a coordinate is NaN or infinite, or less than :data:`MIN_BOX_SIDE` is left.
    """
    if not all(math.isfinite(v) for v in box):
        return None
    height, width = size
    x0, y0 = max(box[0], 0.0), max(box[1], 0.0)
    x1, y1 = min(box[2], float(width)), min(box[3], float(height))
    if x1 - x0 < MIN_BOX_SIDE or y1 - y0 < MIN_BOX_SIDE:
        return None
    return x0, y0, x1, y1


def box_difference(a: Box, b: Box) -> float:
    """Largest distance between corresponding sides, in pixels."""
    return max(abs(p - q) for p, q in zip(a, b, strict=True))


def usable_rings(segmentation: Sequence[Any]) -> tuple[list[NDArray[np.float64]], int]:
    """Polygon rings that enclose an area.

    Args:
        segmentation: COCO polygons, each ``[x0, y0, x1, y1, ...]``.

    Returns:
        The usable rings as flat (2K,) float64 arrays (K >= 3), and how many rings were dropped: fewer than 3 points,
        an odd count, something other than finite numbers, or all points on one line.
    """
    rings = [ring for ring in map(_ring, segmentation) if ring is not None]
    return rings, len(segmentation) - len(rings)


def _ring(values: Any) -> NDArray[np.float64] | None:
    if not isinstance(values, list | tuple) or len(values) < 6 or len(values) % 2:
        return None
    try:
        raw = np.asarray(values)
    except ValueError:
        return None
    if raw.ndim != 1 or raw.dtype.kind not in "iuf":
        return None
    ring = raw.astype(np.float64)
    x, y = ring[0::2] - ring[0], ring[1::2] - ring[1]
    # Twice the signed area (shoelace formula); NaN and infinity fail the comparison too.
    area = float(x[:-1] @ y[1:] - x[1:] @ y[:-1])
    return ring if 1e-6 < abs(area) < math.inf else None


def rings_extent(rings: Sequence[NDArray[np.float64]]) -> Box:
    """Tight box around polygon rings."""
    flat = np.concatenate(rings) if len(rings) > 1 else rings[0]
    x, y = flat[0::2], flat[1::2]
    return float(x.min()), float(y.min()), float(x.max()), float(y.max())


def rle_extent(rle: Mapping[str, Any], size: tuple[int, int]) -> Box | None:
    """Tight box around a run-length encoded mask.

    The run lengths are checked first: they must fill the image exactly, so that decoding cannot run over.

    Args:
        rle: COCO's ``{"size": [h, w], "counts": string, bytes or list of int}``.
        size: (height, width) of the image.

    Returns:
        The box; None if the mask is malformed, of another size, or empty.
    """
    height, width = size
    if numbers(rle.get("size"), 2) != [height, width]:
        return None
    runs = _runs(rle.get("counts"))
    if runs is None or not len(runs) or (runs < 0).any() or int(runs.sum()) != height * width:
        return None
    if not runs[1::2].any():
        return None
    counts = rle["counts"]
    encoded = (
        coco_mask.frPyObjects({"size": [height, width], "counts": counts}, height, width)
        if isinstance(counts, list)
        else {"size": [height, width], "counts": counts.encode("ascii") if isinstance(counts, str) else counts}
    )
    x, y, box_width, box_height = (float(v) for v in coco_mask.toBbox([encoded])[0])
    return x, y, x + box_width, y + box_height


def _runs(counts: Any) -> NDArray[np.int64] | None:
    """Run lengths of COCO ``counts`` in any of its forms; None if they are no such thing."""
    if isinstance(counts, list):
        plain = all(isinstance(v, int) and not isinstance(v, bool) and abs(v) < 2**32 for v in counts)
        return np.asarray(counts, np.int64) if plain else None
    if isinstance(counts, str):
        if not counts.isascii():
            return None
        counts = counts.encode("ascii")
    return _decompressed_runs(counts) if isinstance(counts, bytes) and counts else None


def _decompressed_runs(counts: bytes) -> NDArray[np.int64] | None:
    """COCO's compressed run lengths: 5 bits a character, low bits first, bit 6 says that more follow.

    From the fourth run on, a number is the difference to the run before the last.
    """
    characters = np.frombuffer(counts, np.uint8).astype(np.int64) - 48
    if (characters < 0).any() or (characters > 63).any() or characters[-1] & 0x20:
        return None
    ends = np.flatnonzero((characters & 0x20) == 0)
    starts = np.concatenate([[0], ends[:-1] + 1])
    if (ends - starts).max() > 7:  # 40 bits: no image is that large
        return None
    position = np.arange(len(characters)) - np.repeat(starts, ends - starts + 1)
    values = np.add.reduceat((characters & 0x1F) << (5 * position), starts)
    negative = (characters[ends] & 0x10) != 0
    values -= np.where(negative, 1 << (5 * (ends - starts + 1)), 0)
    # runs[m] = values[m] + runs[m - 2] from m = 3 on: two interleaved running sums.
    values[1::2] = np.cumsum(values[1::2])
    values[2::2] = np.cumsum(values[2::2])
    return values
