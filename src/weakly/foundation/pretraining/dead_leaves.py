"""Dead leaves: random occluding shapes in textures of natural statistics.

Photographs are, to first order, surfaces that occlude one another, each with a 1/f texture. A segmenter that only
saw the rendered world would learn its drawing style; these pictures have no style to learn. Every leaf is a part;
leaves that were laid as a cluster form a whole; a marking inside a leaf is a sub-part.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, eq=False)
class Picture:
    """A training picture.

    Attributes:
        image: (S, S, 3) uint8 RGB.
        levels: (3, S, S) uint8 region ids of wholes, parts and sub-parts; 0 is none.
    """

    image: NDArray[np.uint8]
    levels: NDArray[np.uint8]


def fractal_noise(rng: np.random.Generator, size: int, persistence: float) -> NDArray[np.float32]:
    """(size, size) float32 in about [-1, 1]: octaves of smooth noise, each ``persistence`` times weaker."""
    field = np.zeros((size, size), np.float32)
    cells, weight, total = 3, 1.0, 0.0
    while cells < size:
        octave = rng.standard_normal((cells, cells)).astype(np.float32)
        field += weight * cv2.resize(octave, (size, size), interpolation=cv2.INTER_CUBIC)
        total += weight * weight
        cells, weight = cells * 2, weight * persistence
    return field / np.float32(2.0 * total**0.5)


def pattern(rng: np.random.Generator, size: int) -> NDArray[np.float32]:
    """(size, size) float32 in [0, 1]: fractal noise, sometimes turned into stripes or spots."""
    field = fractal_noise(rng, size, rng.uniform(0.35, 0.9))
    kind = rng.random()
    if kind < 0.25:
        angle, period = rng.uniform(0, np.pi), rng.uniform(5, 40)
        ramp = np.arange(size, dtype=np.float32) * np.float32(2 * np.pi / period)
        field = np.sin(ramp * np.float32(np.cos(angle)) + ramp[:, None] * np.float32(np.sin(angle)) + 2 * field)
    elif kind < 0.4:
        field = np.tanh(8 * (field - np.float32(rng.uniform(-0.2, 0.3))))
    return np.clip(0.5 + 0.5 * field, 0, 1).astype(np.float32)


def two_colours(rng: np.random.Generator) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Two float32 RGB colours in [0, 255], from nearly equal to strongly different."""
    colours = rng.uniform(0, 255, (2, 3)).astype(np.float32)
    grey = colours.mean(1, keepdims=True)
    base, other = grey + (colours - grey) * np.float32(rng.beta(1.2, 1.6))
    return base, base + (other - base) * np.float32(rng.uniform(0.05, 0.7))


def paint(rng: np.random.Generator, patterns: list[NDArray[np.float32]], shape: tuple[int, int]) -> NDArray[np.float32]:
    """(*shape, 3) float32 RGB: a random window of one of the picture's patterns between two colours."""
    field = patterns[int(rng.integers(len(patterns)))]
    y, x = (int(rng.integers(field.shape[0] - extent + 1)) for extent in shape)
    mix = field[y : y + shape[0], x : x + shape[1], None]
    base, other = two_colours(rng)
    return base + (other - base) * mix


def outline(rng: np.random.Generator, centre: NDArray[np.float64], radius: float) -> NDArray[np.int32]:
    """(K, 2) int32 polygon: an ellipse, a rounded blob, a straight-edged polygon or a thin bar around ``centre``."""
    kind = rng.random()
    if kind < 0.25:
        corners = int(rng.integers(3, 7))
        angles = np.sort(rng.uniform(0, 2 * np.pi, corners))
        reach = rng.uniform(0.6, 1.2, corners)
    else:
        angles = np.linspace(0, 2 * np.pi, 40, endpoint=False)
        wobble = rng.uniform(0, 0.28) if kind < 0.7 else 0.0
        phases, orders = rng.uniform(0, 2 * np.pi, 3), np.array([2, 3, 5])
        reach = 1 + wobble * np.cos(angles[:, None] * orders + phases).sum(1)
    points = np.stack([np.cos(angles), np.sin(angles)], 1) * reach[:, None]
    points *= [1.0, rng.uniform(0.12, 0.4) if kind > 0.85 else rng.uniform(0.4, 1.0)]
    turn = rng.uniform(0, 2 * np.pi)
    rotation = np.array([[np.cos(turn), -np.sin(turn)], [np.sin(turn), np.cos(turn)]])
    return np.round(centre + radius * points @ rotation.T).astype(np.int32)


def shading(rng: np.random.Generator, shape: tuple[int, int]) -> NDArray[np.float32]:
    """(*shape, 1) float32 factor around 1: darker towards one side, so that a leaf has volume."""
    ramps = (np.linspace(-0.5, 0.5, extent, dtype=np.float32) for extent in shape)
    tilt = rng.normal(0, 0.45, 2).astype(np.float32)
    y, x = ramps
    return np.clip(1 + tilt[0] * y[:, None] + tilt[1] * x, 0.3, 1.7)[..., None]


def window(points: NDArray[np.int32], size: int) -> tuple[slice, slice]:
    """The part of the picture a polygon covers, 3 pixels wider for its soft edge."""
    low = np.clip(points.min(0) - 3, 0, size - 1)
    high = np.clip(points.max(0) + 4, 1, size)
    (x0, y0), (x1, y1) = low.tolist(), np.maximum(high, low + 1).tolist()
    return slice(y0, y1), slice(x0, x1)


def stamp(points: NDArray[np.int32], roi: tuple[slice, slice]) -> NDArray[np.bool_]:
    """The polygon's mask inside ``roi``: (h, w) bool."""
    canvas = np.zeros((roi[0].stop - roi[0].start, roi[1].stop - roi[1].start), np.uint8)
    return cv2.fillPoly(canvas, [points - np.array([roi[1].start, roi[0].start], np.int32)], 1) > 0


def dead_leaves(seed: int, index: int, size: int = 256) -> Picture:
    """One picture, a pure function of its arguments: 6 to 26 leaves in clusters of one to six."""
    rng = np.random.default_rng(np.random.SeedSequence([seed, index, 1789]))
    patterns = [pattern(rng, size) for _ in range(5)]
    image = paint(rng, patterns, (size, size))
    levels = np.zeros((3, size, size), np.uint8)
    part, whole, detail = 0, 0, 0
    leaves = int(rng.integers(6, 27))
    while part < leaves:
        whole += 1
        members = int(rng.choice([1, 1, 2, 3, 4, 6]))
        centre = rng.uniform(0, size, 2)
        spread = size * float(np.exp(rng.uniform(np.log(0.07), np.log(0.4))))
        family, _ = two_colours(rng)
        likeness = np.float32(rng.uniform(0.2, 0.7) if members > 1 else 0.0)
        for _ in range(members):
            part += 1
            offset = rng.normal(0, 0.8, 2) * spread if members > 1 else np.zeros(2)
            points = outline(rng, centre + offset, spread * rng.uniform(0.35, 1.0))
            roi = window(points, size)
            inside = stamp(points, roi)
            colour = paint(rng, patterns, inside.shape) * shading(rng, inside.shape)
            colour = np.clip(colour * (1 - likeness) + family * likeness, 0, 255)
            soft = cv2.GaussianBlur(inside.astype(np.float32), (5, 5), rng.uniform(0.4, 0.9))[..., None]
            image[roi] = image[roi] * (1 - soft) + colour * soft
            levels[0][roi][inside], levels[1][roi][inside], levels[2][roi][inside] = whole, part, 0
            if rng.random() < 0.3:
                detail += 1
                middle = points.mean(0) + rng.normal(0, 0.2, 2) * spread
                spot = stamp(outline(rng, middle, spread * rng.uniform(0.15, 0.4)), roi) & inside
                image[roi][spot] = (0.3 * image[roi] + 0.7 * paint(rng, patterns, inside.shape))[spot]
                levels[2][roi][spot] = detail
    grain = rng.normal(0, rng.uniform(0, 8), (size, size, 1)).astype(np.float32)
    return Picture(np.clip(image + grain, 0, 255).astype(np.uint8), levels)
