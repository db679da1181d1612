"""Things that stand about: behind the objects, and now and then in front of them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from weakly.data.menagerie.painting import Canvas, Paint, paint_stamp, rasterise
from weakly.data.menagerie.shapes import Points, blob, ellipse, point, polar, rectangle, stroke
from weakly.data.menagerie.textures import Coat, Setting

_GRAIN = {"cloud": 0.5, "bubble": 0.3, "box": 0.4, "ball": 0.3, "pole": 0.4, "wave": 0.5}
_MAX_HIDDEN = 0.25  # largest share of an object that occluders may cover


def _outline(rng: np.random.Generator, name: str, base: Points, tall: float) -> tuple[list[Points], Points]:
    """Outlines (image fractions) and a colour for one piece of clutter standing at `base`."""
    lean = rng.normal(0, 0.15)
    up = polar(-np.pi / 2 + lean)
    wide = tall * rng.uniform(0.3, 0.6)
    if name in ("bush", "cloud", "rock", "hill", "wave"):
        flat = {"bush": 0.7, "cloud": 0.35, "rock": 0.6, "hill": 0.25, "wave": 0.1}[name]
        colours = {
            "bush": (0.3, 0.42, 0.2),
            "cloud": (0.95, 0.96, 0.98),
            "rock": (0.5, 0.48, 0.45),
            "hill": (0.42, 0.5, 0.5),
            "wave": (0.3, 0.52, 0.6),
        }
        turns = np.arange(9) * 2 * np.pi / 9
        reach = rng.uniform(0.7, 1.15, 9) * tall * 0.6
        ring = np.stack([np.cos(turns) * reach, np.sin(turns) * reach * flat], axis=1)
        outline = base + ring
        return [outline if name == "rock" else blob(*outline)], np.array(colours[name])
    if name == "tree":
        trunk = stroke([base, base + up * tall * 2.2], [wide * 0.22, wide * 0.14])
        return [trunk], np.array((0.32, 0.25, 0.19))
    if name == "pole":
        return [stroke([base, base - point(0, tall * 2.5)], [0.012, 0.01])], np.array((0.5, 0.5, 0.52))
    if name in ("grass", "reed", "weed"):
        roots = [base + point(rng.normal(0, wide * 0.5), 0) for _ in range(7)]
        blades = [
            stroke(
                [
                    r,
                    r + up * tall * 0.5 + point(rng.normal(0, 0.02), 0),
                    r + up * tall + point(rng.normal(0, 0.07), 0),
                ],
                [0.007, 0.006, 0.002],
                4,
            )
            for r in roots
        ]
        greens = {"grass": (0.5, 0.55, 0.25), "reed": (0.45, 0.5, 0.28), "weed": (0.15, 0.42, 0.32)}
        return blades, np.array(greens[name])
    if name == "leaf":
        tip = base + up * tall * 0.5
        side = polar(lean, wide * 0.35)
        return [blob(base, (base + tip) / 2 + side, tip, (base + tip) / 2 - side)], np.array((0.36, 0.46, 0.2))
    if name == "box":
        box = rectangle(base[0] - wide, base[1] - tall, base[0] + wide, base[1])
        return [box], rng.uniform(0.3, 0.7) + rng.normal(0, 0.09, 3)
    radius = tall * (0.12 if name == "bubble" else 0.3)
    colour = np.array((0.75, 0.88, 0.92)) if name == "bubble" else rng.uniform(0.3, 0.85, 3)
    return [ellipse(base - point(0, radius), radius, radius)], colour


def draw_clutter(
    canvas: Canvas,
    setting: Setting,
    rng: np.random.Generator,
    horizon: float,
    coat: Coat,
    count: int,
) -> None:
    """Scatters things behind the objects; the farther up, the smaller and paler."""
    for _ in range(count):
        name = setting.clutter[rng.integers(len(setting.clutter))]
        aloft = name in ("cloud", "bubble")
        depth = float(rng.uniform(0, 1))
        y = rng.uniform(0.05, 0.8) if aloft else min(horizon, 0.95) + 0.3 * depth * (1.05 - min(horizon, 0.95))
        if name == "hill":
            y = horizon
        tall = float(rng.uniform(0.12, 0.4)) * (0.6 + 0.6 * depth)
        outlines, colour = _outline(rng, name, point(rng.uniform(0, 1), y), tall)
        colour = np.clip(colour * (1 + rng.normal(0, 0.05, 3) + rng.normal(0, 0.1)), 0, 1)
        stamp = rasterise(outlines, canvas.size)
        if stamp is not None:
            haze = 0.55 if aloft or name == "hill" else 0.95
            paint_stamp(
                canvas,
                stamp,
                Paint(colour, colour, 0.0, _GRAIN.get(name, 1.0), 0.0),
                coat,
                opacity=haze,
            )


def occlude(canvas: Canvas, setting: Setting, rng: np.random.Generator, coat: Coat, owners: NDArray[np.intp]) -> None:
    """Puts a few things in front, unless one would hide too much of an object.

    Args:
        canvas: Painted in place; its maps become 0 under an occluder.
        setting: Decides what stands about.
        rng: Source of randomness.
        coat: Texture of the occluders.
        owners: Object number by part number (0 for none), (parts + 1,).
    """
    whole = np.bincount(owners[canvas.part_map].ravel(), minlength=int(owners.max()) + 1)
    for _ in range(int(rng.choice([0, 1, 2, 3], p=[0.45, 0.3, 0.15, 0.1]))):
        options = [c for c in setting.clutter if c not in ("hill", "tree", "box")]
        name = options[rng.integers(len(options))]
        base = point(rng.uniform(0.05, 0.95), rng.uniform(0.8, 1.05))
        if name in ("leaf", "bubble", "cloud"):
            base = point(rng.uniform(0, 1), rng.uniform(0.2, 1.0))
        outlines, colour = _outline(rng, name, base, float(rng.uniform(0.15, 0.4)))
        colour = np.clip(colour * (0.9 + rng.normal(0, 0.05, 3) + rng.normal(0, 0.1)), 0, 1)
        stamp = rasterise(outlines, canvas.size)
        if stamp is None:
            continue
        area = stamp.rows, stamp.columns
        after = canvas.part_map.copy()
        after[area][stamp.mask > 127] = 0
        left = np.bincount(owners[after].ravel(), minlength=len(whole))
        if np.any(left[1:] < (1 - _MAX_HIDDEN) * whole[1:]):
            continue
        hidden = paint_stamp(canvas, stamp, Paint(colour, colour, 0.0, _GRAIN.get(name, 1.0), 0.0), coat)
        canvas.part_map[area][hidden] = 0
        canvas.detail_map[area][hidden] = 0
