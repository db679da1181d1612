"""Composes a scene: background, clutter, lit objects with exact part maps, and occluders."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import cv2
import numpy as np
from numpy.typing import NDArray

from weakly.data.menagerie import birds, gliders, vessels, walkers, wheels
from weakly.data.menagerie.clutter import draw_clutter, occlude
from weakly.data.menagerie.kinds import KINDS, PART_NAMES, Kind
from weakly.data.menagerie.painting import (
    Canvas,
    Map,
    develop,
    make_palette,
    paint_stamp,
    rasterise,
)
from weakly.data.menagerie.shapes import Points, Sketch, ellipse
from weakly.data.menagerie.textures import DRY, PATTERNS, SETTINGS, Coat, Setting, background, noise

BUILDERS: Mapping[str, Callable[[np.random.Generator, Mapping[str, float]], Sketch]] = MappingProxyType(
    {
        "quadruped": walkers.quadruped,
        "biped": walkers.biped,
        "fish": gliders.fish,
        "ray": gliders.ray,
        "bird": birds.bird,
        "snake": gliders.snake,
        "reptile": walkers.reptile,
        "car": wheels.car,
        "bicycle": wheels.bicycle,
        "boat": vessels.boat,
        "aeroplane": vessels.aeroplane,
        "bottle": vessels.bottle,
    }
)
_PART_FLOOR = 24 / 256**2  # smallest part kept, as a fraction of the image
_DETAIL_FLOOR = 4 / 256**2
# Standard deviation of an object's turn, radians, for the kinds that hardly lean.
_SWAY: Mapping[str, float] = MappingProxyType(
    {"car": 0.025, "bicycle": 0.03, "bottle": 0.04, "boat": 0.05, "aeroplane": 0.18}
)


@dataclass(frozen=True)
class ScenePart:
    """One part instance: its category (index into `PART_NAMES`) and its object's index."""

    category: int
    object_index: int


@dataclass(frozen=True)
class SceneObject:
    """One object: its kind (key of `KINDS`) and super-category."""

    kind: str
    super_category: str


@dataclass(frozen=True, eq=False)
class Scene:
    """A rendered image and its exact maps.

    Attributes:
        image: RGB, uint8 (size, size, 3).
        part_map: uint8 (size, size); 0 none, k the visible pixels of ``parts[k - 1]``.
        object_map: uint8 (size, size); 0 none, o the visible pixels of ``objects[o - 1]``.
        detail_map: uint8 (size, size); 0 none, else a region within a part (an eye, a stripe).
        parts: The part instances that are visible.
        objects: The objects that are visible.
    """

    image: NDArray[np.uint8]
    part_map: Map
    object_map: Map
    detail_map: Map
    parts: tuple[ScenePart, ...]
    objects: tuple[SceneObject, ...]


@dataclass(frozen=True)
class _Placement:
    """Where an object goes.

    Attributes:
        x: Centre across the image, as a fraction.
        y: Its foot (if grounded) or its centre, as a fraction of the image's height.
        grounded: Whether `y` is the foot.
        span: Longer side of its bounding box, as a fraction of the image.
        squash: Foreshortening of its length.
        mirrored: Whether it faces left.
        sway: In-plane turn and slant, in units of what the kind allows (see `_SWAY`).
    """

    x: float
    y: float
    grounded: bool
    span: float
    squash: float
    mirrored: bool
    sway: tuple[float, float]


def _place(sketch: Sketch, at: _Placement, sway: float) -> Callable[[Points], Points]:
    """The map from sketch coordinates to image fractions; `sway` in radians."""
    c, s = np.cos(at.sway[0] * sway), np.sin(at.sway[0] * sway)
    flip = at.squash * (-1.0 if at.mirrored else 1.0)
    linear = np.array([[c, -s], [s, c]]) @ np.array([[flip, at.sway[1] * sway], [0.0, 1.0]])
    outline = np.concatenate([p for shape in sketch.shapes for p in shape.polygons]) @ linear.T
    low, high = outline.min(axis=0), outline.max(axis=0)
    scale = at.span / float((high - low).max())
    half = (high - low) * scale / 2
    margin = np.minimum(half, 0.5) - 0.02  # an object may just touch the border
    centre = np.clip((at.x, at.y - half[1] if at.grounded else at.y), margin, 1 - margin)
    offset = centre - (low + high) / 2 * scale
    return lambda points: points @ linear.T * scale + offset


def _layout(rng: np.random.Generator, count: int, horizon: float, setting: Setting) -> list[_Placement]:
    """Draws one placement per object, the farthest (highest in the image) first."""
    sizes = {1: (0.65, 1.05), 2: (0.5, 0.74), 3: (0.4, 0.58)}[count]
    slots = (rng.permutation(count) + 0.5) / count
    placements = []
    for slot in slots:
        span = float(rng.uniform(*sizes))
        x = float(slot + rng.normal(0, 0.06))
        if setting.grounded:
            y = float(rng.uniform(max(min(horizon, 0.85) + 0.06, 0.6), 0.99))
        else:
            y = float(0.5 + rng.uniform(-0.3, 0.3) * (count > 1) + rng.normal(0, 0.06))
        turn, slant = (float(v) for v in np.clip(rng.standard_normal(2), -2, 2))
        placements.append(
            _Placement(
                x,
                y,
                setting.grounded,
                span,
                float(rng.uniform(0.78, 1.0)),
                bool(rng.random() < 0.5),
                (turn, slant),
            )
        )
    return sorted(placements, key=lambda p: p.y)


def _shadow(canvas: Canvas, low: Points, high: Points) -> None:
    """Darkens the ground under an object whose box is given in image fractions."""
    wide, base = (high[0] - low[0]) * 0.52, high[1]
    centre = ((low[0] + high[0]) / 2 - canvas.light[0] * wide * 0.25, base - 0.008)
    outline = ellipse(centre, wide, 0.035 + 0.03 * wide)
    k = max(3, round(canvas.size * 0.035) | 1)
    stamp = rasterise([outline], canvas.size, margin=k + 1)  # room for the blur to fade out
    if stamp is None:
        return
    soft = cv2.blur(cv2.blur(stamp.mask, (k, k)), (k, k)).astype(np.float32)
    canvas.image[:, stamp.rows, stamp.columns] *= 1 - soft * np.float32(0.5 / 255)


def _draw_object(
    canvas: Canvas,
    kind: Kind,
    at: _Placement,
    rng: np.random.Generator,
    index: int,
    parts: list[ScenePart],
) -> None:
    """Poses, colours and paints one object, and appends its part instances to `parts`."""
    sketch = BUILDERS[kind.builder](rng, kind.proportions)
    paints = make_palette(rng, kind)
    coat = PATTERNS[kind.patterns[rng.integers(len(kind.patterns))]](rng, canvas.size, at.span)
    place = _place(sketch, at, _SWAY.get(kind.builder, 0.07 if at.grounded else 0.16))
    if at.grounded:
        corners = [place(p) for shape in sketch.shapes for p in shape.polygons]
        stacked = np.concatenate(corners)
        _shadow(canvas, stacked.min(axis=0), stacked.max(axis=0))
    numbers: dict[tuple[str, int], int] = {}
    for shape in sketch.shapes:
        key = shape.part, shape.instance
        if key not in numbers:
            category = PART_NAMES.index(f"{kind.super_category} {shape.part}")
            parts.append(ScenePart(category, index))
            numbers[key] = len(parts)
        stamp = rasterise([place(p) for p in shape.polygons], canvas.size)
        if stamp is None:
            continue
        own = numbers[key] if shape.clip else None
        owned = paint_stamp(
            canvas,
            stamp,
            paints[shape.paint],
            coat,
            tone=shape.tone,
            opacity=shape.opacity,
            own=own,
        )
        area = stamp.rows, stamp.columns
        canvas.part_map[area][owned] = numbers[key]
        if shape.detail:
            canvas.detail_map[area][owned] = canvas.next_detail()
        elif not shape.clip:
            canvas.detail_map[area][owned] = 0


def _absorb_slivers(part_map: Map, owners: NDArray[np.intp], floor: float) -> None:
    """Gives parts of too few pixels to the neighbour of the same object they touch most."""
    counts = np.bincount(part_map.ravel(), minlength=len(owners))
    for number in np.flatnonzero((counts > 0) & (counts < floor)):
        if number == 0:
            continue
        here = part_map == number
        around = cv2.dilate(here.astype(np.uint8), np.ones((3, 3), np.uint8)) > 0
        touching = part_map[around & ~here]
        touching = touching[(owners[touching] == owners[number]) & (counts[touching] >= floor)]
        part_map[here] = np.bincount(touching).argmax() if len(touching) else 0


def _renumber(labels: Map, floor: float) -> tuple[Map, list[int]]:
    """Numbers the labels with at least `floor` pixels 1, 2, ... and drops the others.

    Returns:
        The new map, and the old label of each new one.
    """
    counts = np.bincount(labels.ravel(), minlength=256)
    kept = [int(k) for k in np.flatnonzero(counts >= max(floor, 1)) if k > 0]
    table = np.zeros(256, dtype=np.uint8)
    table[kept] = np.arange(1, len(kept) + 1)
    return table[labels], kept


def render_scene(seed: int, index: int, size: int = 256, *, kinds: Sequence[str] | None = None) -> Scene:
    """Renders scene `index` of the world `seed`.

    Args:
        seed: Seed of the world, non-negative.
        index: Number of the scene, non-negative.
        size: Side of the image, pixels. The layout is the same at every size.
        kinds: Names to draw objects from; all of `KINDS` by default.

    Returns:
        The image and its maps: a pure function of the arguments.

    Raises:
        ValueError: If a kind is unknown or none is given.
    """
    names = list(KINDS) if kinds is None else list(kinds)
    unknown = [name for name in names if name not in KINDS]
    if unknown or not names:
        raise ValueError(f"unknown or missing kinds: {unknown}; choose from {sorted(KINDS)}")
    rng = np.random.default_rng(np.random.SeedSequence([seed, index]))
    count = int(rng.choice([1, 2, 3], p=[0.6, 0.28, 0.12]))
    first = KINDS[names[rng.integers(len(names))]]
    place = first.settings[rng.integers(len(first.settings))]
    if place in DRY and rng.random() < 0.15:  # now and then out of its element
        place = DRY[rng.integers(len(DRY))]
    setting = SETTINGS[place]
    chosen = [first]
    for _ in range(count - 1):
        other = KINDS[names[rng.integers(len(names))]]
        chosen.append(other if place in other.settings else first)

    image, horizon = background(rng, setting, size)
    glow = rng.uniform(0.25 * np.pi, 0.75 * np.pi)  # light comes from above, left or right
    canvas = Canvas(
        image,
        np.zeros((size, size), np.uint8),
        np.zeros((size, size), np.uint8),
        (float(np.cos(glow)), float(-np.sin(glow))),
    )
    stuff = Coat(
        np.zeros((1, 1), np.float32),
        0.09 * noise(rng, 70, 50, size) + 0.07 * noise(rng, 14, 14, size),
    )
    draw_clutter(canvas, setting, rng, horizon, stuff, int(rng.integers(2, 9)))

    parts: list[ScenePart] = []
    for number, at in enumerate(_layout(rng, count, horizon, setting)):
        _draw_object(canvas, chosen[number], at, rng, number, parts)
    owners = np.array([0, *(part.object_index + 1 for part in parts)], dtype=np.intp)
    occlude(canvas, setting, rng, stuff, owners)
    _absorb_slivers(canvas.part_map, owners, _PART_FLOOR * size**2)
    return _assemble(canvas, parts, chosen, develop(canvas.image, rng))


def _assemble(canvas: Canvas, parts: list[ScenePart], chosen: list[Kind], image: NDArray[np.uint8]) -> Scene:
    """Drops what is no longer visible and numbers the rest without gaps."""
    area = canvas.size**2
    part_map, kept = _renumber(canvas.part_map, _PART_FLOOR * area)
    visible = sorted({parts[k - 1].object_index for k in kept})
    final = tuple(ScenePart(parts[k - 1].category, visible.index(parts[k - 1].object_index)) for k in kept)
    table = np.array([0, *(part.object_index + 1 for part in final)], dtype=np.uint8)
    detail_map, _ = _renumber(np.where(part_map > 0, canvas.detail_map, 0).astype(np.uint8), _DETAIL_FLOOR * area)
    objects = tuple(SceneObject(chosen[o].name, chosen[o].super_category) for o in visible)
    return Scene(image, part_map, table[part_map], detail_map, final, objects)
