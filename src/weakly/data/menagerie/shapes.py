"""Outlines: splines, strokes and ellipses as polygons, and the sketch that collects them.

Everything here lives in *sketch coordinates*: x to the right (the way every object faces before
it is mirrored), y down, one unit being about the length of the object.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cache

import numpy as np
from numpy.typing import ArrayLike, NDArray

Points = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Shape:
    """One painted outline of an object.

    Attributes:
        part: Name of the part within its super-category, such as ``"Head"``.
        instance: Which of the object's parts of that name (0 for the only one).
        polygons: The shape is the union of these polygons, float64 (n, 2) each.
        paint: Role in the object's palette, such as ``"main"`` or ``"eye"``.
        detail: Whether the shape is a sub-part region of its own.
        clip: Whether to paint only over pixels the part already owns (markings, windows).
        tone: Brightness factor; below one for limbs on the far side.
        opacity: 1 for solid; less lets the background through (wheels with spokes, glass).
    """

    part: str
    instance: int
    polygons: tuple[Points, ...]
    paint: str = "main"
    detail: bool = False
    clip: bool = False
    tone: float = 1.0
    opacity: float = 1.0


@dataclass
class Sketch:
    """The shapes of one object, back to front."""

    shapes: list[Shape] = field(default_factory=list)

    def add(
        self,
        part: str,
        *polygons: Points,
        n: int = 0,
        paint: str = "main",
        detail: bool = False,
        clip: bool = False,
        tone: float = 1.0,
        opacity: float = 1.0,
    ) -> None:
        """Puts a shape in front of those already there; see `Shape` for the arguments."""
        self.shapes.append(Shape(part, n, polygons, paint, detail, clip, tone, opacity))


def polar(angle: float, length: float = 1.0) -> Points:
    """Vector of a length at an angle in radians: 0 forward (right), pi/2 down, pi back."""
    return np.array([np.cos(angle), np.sin(angle)]) * length


def point(x: float, y: float) -> Points:
    """A point, float64 (2,)."""
    return np.array([x, y], dtype=np.float64)


def polygon(*xy: ArrayLike) -> Points:
    """A polygon with straight sides through the given corners, float64 (n, 2)."""
    return np.asarray(xy, dtype=np.float64)


def rectangle(x0: float, y0: float, x1: float, y1: float) -> Points:
    """An axis-aligned rectangle."""
    return polygon((x0, y0), (x1, y0), (x1, y1), (x0, y1))


@cache
def _circle(n: int) -> Points:
    """Unit circle, (n, 2)."""
    t = np.linspace(0.0, 2 * np.pi, n, endpoint=False)
    return np.stack([np.cos(t), np.sin(t)], axis=1)


@cache
def _span_weights(per_span: int) -> Points:
    """Catmull-Rom weights of four control points at the samples of a span, (per_span, 4)."""
    t = np.linspace(0.0, 1.0, per_span, endpoint=False)
    return 0.5 * np.stack(
        [-t + 2 * t**2 - t**3, 2 - 5 * t**2 + 3 * t**3, t + 4 * t**2 - 3 * t**3, t**3 - t**2],
        axis=1,
    )


def ellipse(centre: ArrayLike, rx: float, ry: float, angle: float = 0.0, n: int = 28) -> Points:
    """An ellipse with semi-axes `rx`, `ry`, turned by `angle` radians."""
    c, s = np.cos(angle), np.sin(angle)
    axes = np.array([[rx * c, rx * s], [-ry * s, ry * c]])
    return np.asarray(_circle(n) @ axes + np.asarray(centre, dtype=np.float64))


def spline(points: ArrayLike, per_span: int = 6, *, closed: bool = False) -> Points:
    """Catmull-Rom curve through control points.

    Args:
        points: Control points, (k, d); extra columns (such as a radius) are interpolated too.
        per_span: Samples between neighbouring control points.
        closed: Whether the curve returns to its start.

    Returns:
        Samples, float64 (m, d).
    """
    p = np.asarray(points, dtype=np.float64)
    p = np.concatenate([p[-1:], p, p[:2]]) if closed else np.concatenate([2 * p[:1] - p[1:2], p, 2 * p[-1:] - p[-2:-1]])
    spans = np.stack([p[:-3], p[1:-2], p[2:-1], p[3:]], axis=1)  # (spans, 4, d)
    flat = (_span_weights(per_span) @ spans).reshape(-1, p.shape[1])
    return flat if closed else np.concatenate([flat, p[-2:-1]])


def blob(*xy: ArrayLike, per_span: int = 6) -> Points:
    """A smooth closed outline through the given points."""
    return spline(polygon(*xy), per_span, closed=True)


# From a quarter turn one way to a quarter turn the other, relative to the direction of a stroke.
_HALF_TURN: Points = np.stack(
    [np.cos(np.linspace(np.pi / 2, -np.pi / 2, 7)), np.sin(np.linspace(np.pi / 2, -np.pi / 2, 7))],
    axis=1,
)


def _cap(centre: Points, direction: Points, radius: float) -> Points:
    """Half circle around an end of a stroke, from its right side to its left."""
    dx, dy = direction * radius
    return np.asarray(centre + _HALF_TURN @ np.array([[dx, dy], [-dy, dx]]))


def stroke(path: ArrayLike, radii: ArrayLike, per_span: int = 6) -> Points:
    """A brush stroke of varying width with round ends: limbs, necks, tails, bodies.

    Args:
        path: Control points of the centre line, (k, 2).
        radii: Half width at each control point, (k,).
        per_span: Samples between control points.

    Returns:
        Outline, float64 (n, 2).
    """
    p, r = np.asarray(path, dtype=np.float64), np.asarray(radii, dtype=np.float64)
    curve = spline(np.column_stack([p, r]), per_span)
    centre, radius = curve[:, :2], np.maximum(curve[:, 2], 1e-3)
    steps = centre[1:] - centre[:-1]
    tangent = np.concatenate([steps[:1], steps[1:] + steps[:-1], steps[-1:]])
    tangent /= np.sqrt((tangent**2).sum(axis=1, keepdims=True)) + 1e-9
    normal = np.stack([-tangent[:, 1], tangent[:, 0]], axis=1) * radius[:, None]
    return np.concatenate(
        [
            centre + normal,
            _cap(centre[-1], tangent[-1], float(radius[-1])),
            (centre - normal)[::-1],
            _cap(centre[0], -tangent[0], float(radius[0])),
        ]
    )


def tube(a: ArrayLike, b: ArrayLike, radius: float) -> Points:
    """A straight stroke of constant width."""
    ends = np.array([a, b], dtype=np.float64)
    return stroke(ends, [radius, radius], per_span=1)


def ribbon(path: Points, radii: Points, chunk: int = 5) -> tuple[Points, ...]:
    """A long stroke in overlapping pieces, so that it may cross itself (a coiled snake).

    A single outline that crosses itself would leave holes where it overlaps.

    Args:
        path: Finely sampled centre line, (m, 2).
        radii: Half width at each sample, (m,).
        chunk: Samples per piece.

    Returns:
        The pieces, from start to end.
    """
    starts = range(0, len(path) - 1, chunk)
    return tuple(stroke(path[i : i + chunk + 1], radii[i : i + chunk + 1], per_span=2) for i in starts)
