"""The canvas: rasterised outlines, rounded by light, coloured, textured and blended."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from weakly.data.menagerie.kinds import Kind
from weakly.data.menagerie.roles import ROLES
from weakly.data.menagerie.shapes import Points
from weakly.data.menagerie.textures import Coat, Plane, noise

Map = NDArray[np.uint8]

_SUBPIXEL = 4  # fractional bits of polygon coordinates


@dataclass(frozen=True)
class Paint:
    """Colours (float RGB) and finish of one role for one instance."""

    colour: Points
    accent: Points
    pattern: float
    grain: float
    gloss: float


@dataclass(eq=False)
class Canvas:
    """The picture while it is painted, and the maps under it.

    The image is planar, float32 (3, size, size): numpy is slow on an innermost axis of three.
    """

    image: Plane
    part_map: Map
    detail_map: Map
    light: tuple[float, float]
    details: int = 0

    @property
    def size(self) -> int:
        """Side of the image, pixels."""
        return int(self.part_map.shape[0])

    def next_detail(self) -> int:
        """The next free detail number, 255 at most (later details then share it)."""
        self.details = min(self.details + 1, 255)
        return self.details


@dataclass(frozen=True, eq=False)
class Stamp:
    """A rasterised shape: antialiased mask, uint8 (h, w), and its place in the image."""

    mask: Map
    rows: slice
    columns: slice
    thickness: float


def rasterise(polygons: Sequence[Points], size: int, margin: int = 2) -> Stamp | None:
    """Draws a union of polygons.

    Args:
        polygons: In image fractions, float64 (n, 2) each.
        size: Side of the image, pixels.
        margin: Empty pixels to leave around the shape.

    Returns:
        The stamp, or None if the shape lies outside the image.
    """
    scaled = [p * size for p in polygons]
    low = np.min([p.min(axis=0) for p in scaled], axis=0)
    high = np.max([p.max(axis=0) for p in scaled], axis=0)
    x0, y0 = (max(int(v) - margin, 0) for v in low)
    x1, y1 = (min(int(v) + margin + 1, size) for v in high)
    if x1 <= x0 or y1 <= y0:
        return None
    mask = np.zeros((y1 - y0, x1 - x0), dtype=np.uint8)
    edge = 0.0
    for p in scaled:  # one by one: a single call would leave holes where they overlap
        fixed = np.round((p - (x0 + 0.5, y0 + 0.5)) * 2**_SUBPIXEL).astype(np.int32)
        cv2.fillPoly(mask, [fixed], 255, lineType=cv2.LINE_AA, shift=_SUBPIXEL)
        edge += float(np.abs(np.diff(p, axis=0)).sum()) * 0.8
    thickness = 2.0 * cv2.countNonZero(mask) / max(edge, 1.0)
    return Stamp(mask, slice(y0, y1), slice(x0, x1), thickness)


def _relief(stamp: Stamp, light: tuple[float, float]) -> tuple[Plane, Plane]:
    """Rounds a flat mask: how much each pixel faces the light, and how deep inside it lies.

    The mask is averaged over a window that looks away from the light and one that looks
    towards it. Near the lit rim the first is full and the second empty, so their difference
    acts like the slope of a cushion; their mean darkens all rims a little.
    """
    k = max(3, round(stamp.thickness * 0.8) | 1)
    solid = stamp.mask.astype(np.float32) * np.float32(1 / 255)
    half = (k - 1) / 2
    away = (round(half * (1 + light[0])), round(half * (1 + light[1])))
    towards = (k - 1 - away[0], k - 1 - away[1])
    a, b = (cv2.blur(solid, (k, k), anchor=anchor, borderType=cv2.BORDER_REPLICATE) for anchor in (away, towards))
    return np.asarray(a - b, dtype=np.float32), np.asarray((a + b) * 0.5, dtype=np.float32)


def paint_stamp(
    canvas: Canvas,
    stamp: Stamp,
    paint: Paint,
    coat: Coat,
    *,
    tone: float = 1.0,
    opacity: float = 1.0,
    own: int | None = None,
) -> NDArray[np.bool_]:
    """Blends a shape into the image.

    Args:
        canvas: Painted in place.
        stamp: The shape.
        paint: Its colours.
        coat: Its texture.
        tone: Brightness factor.
        opacity: 1 for solid.
        own: If given, paint only where the part map has this value.

    Returns:
        Which pixels of the stamp the shape owns, bool (h, w).
    """
    area = stamp.rows, stamp.columns
    crisp = stamp.mask > 127
    alpha = stamp.mask.astype(np.float32) * np.float32(opacity / 255)
    if own is not None:
        inside = canvas.part_map[area] == own
        crisp &= inside
        alpha *= inside
    lit, depth = _relief(stamp, canvas.light)
    shade = (0.74 + 0.3 * depth + 0.34 * lit) * (1 + np.float32(paint.grain) * coat.grain[area])
    shade *= np.float32(tone)
    share = np.float32(paint.pattern) * coat.pattern[area] if paint.pattern > 0 else None
    shine = np.float32(paint.gloss * 0.8) * np.clip(lit - 0.35, 0, 1) if paint.gloss > 0 else None
    for channel in range(3):
        base = np.float32(paint.colour[channel])
        value = shade * base if share is None else shade * (base + share * np.float32(paint.accent[channel] - base))
        if shine is not None:
            value += shine
        view = canvas.image[channel][area]
        value -= view
        value *= alpha
        view += value
    return np.asarray(crisp)


def make_palette(rng: np.random.Generator, kind: Kind) -> dict[str, Paint]:
    """Jittered colours of one instance for every role."""
    main, accent = (np.asarray(c, dtype=np.float64) / 255 for c in kind.coats[rng.integers(len(kind.coats))])
    jitter = rng.normal(0, 0.035, 3)
    gain = float(np.exp(rng.normal(0, 0.16)))
    main, accent = ((c + jitter) * gain for c in (main, accent))
    shiny = 0.5 if kind.builder in ("car", "bicycle", "boat", "aeroplane", "bottle") else 0.06
    paints = {}
    wobbles = 1 + rng.normal(0, 0.035, (len(ROLES), 3)) + rng.normal(0, 0.06, (len(ROLES), 1))
    for (name, role), wobble in zip(ROLES.items(), wobbles, strict=True):
        own = kind.roles.get(name, role.colour)
        tone = 1.0 if name in kind.roles else role.tone
        base = main + (accent - main) * role.mix if own is None else np.asarray(own) / 255
        colour = np.clip(base * wobble * tone, 0.02, 1.05)
        gloss = max(role.gloss, shiny) if own is None else role.gloss
        paints[name] = Paint(colour, np.clip(accent * tone, 0.02, 1.05), role.pattern, role.grain, gloss)
    return paints


def develop(image: Plane, rng: np.random.Generator) -> NDArray[np.uint8]:
    """The camera: colour temperature, exposure, vignette, blur and sensor noise."""
    size = image.shape[1]
    warmth, exposure, contrast = rng.normal(0, 0.06), rng.normal(1.0, 0.09), rng.normal(1.05, 0.08)
    gain = np.array([1 + warmth, 1.0, 1 - warmth]) * exposure * contrast
    vignette, blur, grain = rng.uniform(0, 0.35), rng.random(), rng.uniform(0.0, 0.022)
    axis = np.linspace(-1, 1, size, dtype=np.float32) ** 2
    falloff = 1 - np.float32(vignette) * (axis[:, None] + axis[None, :]) * 0.5
    speckle = noise(rng, 128, 128, size) * np.float32(grain) - np.float32((contrast - 1) * 0.5)
    planes = [
        np.clip((image[c] * (falloff * np.float32(gain[c])) + speckle) * 255, 0, 255).astype(np.uint8) for c in range(3)
    ]
    out = cv2.merge(planes)
    if blur < 0.35:
        out = cv2.GaussianBlur(out, (0, 0), (0.4 + blur) * size / 256)
    return np.asarray(out, dtype=np.uint8)
