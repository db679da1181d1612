"""Noise, coat patterns and backgrounds.

Random numbers are drawn on grids whose shape does not depend on the image size, then resized:
a scene keeps its layout and its textures at every size.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import cv2
import numpy as np
from numpy.typing import NDArray

from weakly.data.menagerie.roles import RGB

Plane = NDArray[np.float32]


def noise(rng: np.random.Generator, rows: int, columns: int, size: int) -> Plane:
    """Smooth noise of about unit variance.

    Args:
        rng: Source of randomness; draws ``rows * columns`` numbers whatever the size.
        rows: Cells down the image; more means finer.
        columns: Cells across the image.
        size: Side of the result, pixels.

    Returns:
        float32 (size, size).
    """
    grid = rng.standard_normal((max(rows, 2), max(columns, 2)), dtype=np.float32)
    shrinking = max(rows, columns) > size
    how = cv2.INTER_AREA if shrinking else cv2.INTER_CUBIC
    return np.asarray(cv2.resize(grid, (size, size), interpolation=how), dtype=np.float32)


def fractal(rng: np.random.Generator, size: int, cells: int, octaves: int, decay: float) -> Plane:
    """Sum of octaves of noise, each twice as fine and `decay` times as strong as the last."""
    total = np.zeros((size, size), dtype=np.float32)
    for octave in range(octaves):
        count = min(cells * 2**octave, 160)
        total += noise(rng, count, count, size) * np.float32(decay**octave)
    return total


@dataclass(frozen=True, eq=False)
class Coat:
    """Texture of one object, laid over the whole image.

    Attributes:
        pattern: Share of the accent colour, float32 (size, size), 0 to 1.
        grain: Relative change of brightness, float32 (size, size), about zero.
    """

    pattern: Plane
    grain: Plane


def _soft_step(x: Plane, sharpness: float) -> Plane:
    """A smooth threshold at zero."""
    return np.asarray(np.clip(0.5 + sharpness * x, 0, 1), dtype=np.float32)


def _ramp(size: int) -> tuple[Plane, Plane]:
    """Rows (size, 1) and columns (1, size) as coordinates from 0 to 1."""
    axis = ((np.arange(size, dtype=np.float32) + 0.5) / size).astype(np.float32)
    return axis[:, None], axis[None, :]


def _plain(rng: np.random.Generator, size: int, scale: float) -> Coat:
    cells = round(10 / scale)
    shade = noise(rng, round(4 / scale), round(4 / scale), size)
    return Coat(_soft_step(shade - 1.0, 0.25), 0.05 * noise(rng, cells * 4, cells * 4, size) + 0.04 * shade)


def _fur(rng: np.random.Generator, size: int, scale: float) -> Coat:
    cells = round(9 / scale)
    hairs = noise(rng, min(cells * 8, 150), cells * 3, size)
    shade = noise(rng, cells // 2, cells // 2, size)
    return Coat(_soft_step(shade - 1.1, 0.3), 0.11 * hairs + 0.06 * shade)


def _stripes(rng: np.random.Generator, size: int, scale: float) -> Coat:
    _, x = _ramp(size)
    warp = noise(rng, round(5 / scale), round(3 / scale), size)
    wave = np.sin(x * np.float32(rng.uniform(55, 80) / scale) + np.float32(1.5) * warp)
    return Coat(
        _soft_step(np.asarray(wave - np.float32(0.15), dtype=np.float32), 2.2),
        0.07 * noise(rng, round(50 / scale), round(30 / scale), size),
    )


def _spots(rng: np.random.Generator, size: int, scale: float) -> Coat:
    cells = round(rng.uniform(14, 22) / scale)
    field = noise(rng, cells, cells, size)
    return Coat(_soft_step(field - 0.75, 2.5), 0.07 * noise(rng, cells * 3, cells * 3, size))


def _patches(rng: np.random.Generator, size: int, scale: float) -> Coat:
    cells = round(6 / scale)
    field = noise(rng, cells, cells, size)
    return Coat(
        _soft_step(field - np.float32(rng.uniform(0.1, 0.6)), 4.0),
        0.08 * noise(rng, round(60 / scale), round(30 / scale), size),
    )


def _scales(rng: np.random.Generator, size: int, scale: float) -> Coat:
    y, x = _ramp(size)
    pitch = np.float32(2 * np.pi * rng.uniform(24, 34) / scale / 2)
    lattice = np.sin((x + y) * pitch) * np.sin((x - y) * pitch)
    shade = noise(rng, round(6 / scale), round(6 / scale), size)
    return Coat(_soft_step(shade - 0.6, 0.5), 0.16 * lattice + 0.07 * shade)


def _feathers(rng: np.random.Generator, size: int, scale: float) -> Coat:
    y, x = _ramp(size)
    pitch = np.float32(2 * np.pi * rng.uniform(16, 22) / scale)
    rows = np.sin(y * pitch + 1.6 * np.cos(x * pitch * 0.9))
    fleck = noise(rng, round(24 / scale), round(14 / scale), size)
    return Coat(_soft_step(fleck - 0.6, 0.7), 0.08 * rows + 0.06 * fleck)


def _wood(rng: np.random.Generator, size: int, scale: float) -> Coat:
    y, _ = _ramp(size)
    planks = np.sin(y * np.float32(2 * np.pi * 24 / scale)) > np.float32(0.9)
    grain = noise(rng, round(60 / scale), round(5 / scale), size)
    return Coat(_soft_step(grain - 0.5, 0.3), 0.1 * grain - 0.2 * planks.astype(np.float32))


def _paint(rng: np.random.Generator, size: int, scale: float) -> Coat:
    cells = round(5 / scale)
    dirt = noise(rng, cells, cells, size)
    return Coat(_soft_step(dirt - 4.0, 1.0), 0.045 * dirt + 0.02 * noise(rng, 100, 100, size))


def _metal(rng: np.random.Generator, size: int, scale: float) -> Coat:
    brushed = noise(rng, round(90 / scale), 4, size)
    return Coat(_soft_step(brushed - 4.0, 1.0), 0.07 * brushed)


PATTERNS: Mapping[str, Callable[[np.random.Generator, int, float], Coat]] = MappingProxyType(
    {
        "plain": _plain,
        "fur": _fur,
        "stripes": _stripes,
        "spots": _spots,
        "patches": _patches,
        "scales": _scales,
        "feathers": _feathers,
        "wood": _wood,
        "paint": _paint,
        "metal": _metal,
        "glass": _paint,
    }
)


@dataclass(frozen=True)
class Setting:
    """Where a scene plays.

    Attributes:
        far: Colours at the top of the image and at the horizon.
        near: Colours at the horizon and at the bottom.
        horizon: Range of its height as a fraction of the image; above 1 for none.
        far_noise: Strength of clouds or foliage above the horizon, and its cells across.
        near_noise: Strength, rows and columns of the ground's texture.
        clutter: Shapes that stand about: names that `clutter` knows.
        grounded: Whether objects stand on the ground and cast a contact shadow.
    """

    far: tuple[RGB, RGB]
    near: tuple[RGB, RGB]
    horizon: tuple[float, float]
    far_noise: tuple[float, int]
    near_noise: tuple[float, int, int]
    clutter: tuple[str, ...]
    grounded: bool = True


SETTINGS: Mapping[str, Setting] = MappingProxyType(
    {
        "meadow": Setting(
            ((132, 178, 222), (214, 228, 232)),
            ((140, 168, 88), (84, 122, 52)),
            (0.3, 0.55),
            (0.06, 4),
            (0.13, 60, 40),
            ("bush", "rock", "grass", "tree"),
        ),
        "forest": Setting(
            ((56, 84, 52), (104, 128, 80)),
            ((104, 96, 64), (70, 62, 42)),
            (0.5, 0.7),
            (0.3, 9),
            (0.16, 50, 40),
            ("tree", "tree", "bush", "leaf", "rock"),
        ),
        "savanna": Setting(
            ((150, 190, 224), (240, 222, 186)),
            ((214, 182, 118), (168, 128, 76)),
            (0.35, 0.6),
            (0.05, 3),
            (0.1, 60, 40),
            ("rock", "grass", "bush"),
        ),
        "snow": Setting(
            ((150, 170, 196), (222, 228, 236)),
            ((236, 240, 246), (206, 216, 230)),
            (0.35, 0.6),
            (0.06, 4),
            (0.04, 30, 20),
            ("tree", "rock", "rock"),
        ),
        "sky": Setting(
            ((74, 130, 200), (176, 208, 234)),
            ((176, 208, 234), (206, 224, 238)),
            (0.75, 1.1),
            (0.1, 4),
            (0.04, 8, 3),
            ("cloud", "cloud"),
            grounded=False,
        ),
        "lake": Setting(
            ((140, 170, 176), (186, 206, 200)),
            ((112, 146, 152), (70, 104, 116)),
            (0.25, 0.5),
            (0.16, 8),
            (0.13, 50, 7),
            ("reed", "rock", "reed"),
        ),
        "ocean": Setting(
            ((96, 156, 212), (226, 232, 232)),
            ((74, 138, 168), (28, 78, 118)),
            (0.62, 0.8),
            (0.09, 3),
            (0.13, 60, 8),
            ("cloud", "hill", "wave", "wave"),
        ),
        "sea": Setting(
            ((92, 178, 200), (34, 112, 156)),
            ((34, 112, 156), (22, 62, 98)),
            (0.6, 1.1),
            (0.1, 4),
            (0.14, 14, 8),
            ("weed", "rock", "bubble", "weed"),
            grounded=False,
        ),
        "road": Setting(
            ((156, 186, 212), (220, 222, 218)),
            ((120, 120, 122), (92, 92, 96)),
            (0.4, 0.6),
            (0.07, 4),
            (0.07, 100, 50),
            ("box", "pole", "bush", "box"),
        ),
        "wall": Setting(
            ((196, 168, 140), (182, 150, 122)),
            ((150, 142, 130), (120, 112, 102)),
            (0.62, 0.8),
            (0.08, 30),
            (0.06, 60, 40),
            ("pole", "box", "ball"),
        ),
        "room": Setting(
            ((226, 214, 196), (206, 192, 172)),
            ((150, 106, 70), (116, 80, 52)),
            (0.58, 0.78),
            (0.03, 3),
            (0.12, 70, 4),
            ("box", "box", "ball"),
        ),
    }
)

# Settings any kind that stands on dry ground may find itself in.
DRY: tuple[str, ...] = ("meadow", "forest", "savanna", "snow", "road", "wall", "room")


def background(rng: np.random.Generator, setting: Setting, size: int) -> tuple[Plane, float]:
    """Paints sky or wall above a horizon and ground below it.

    Returns:
        The image, float32 (3, size, size) with RGB from 0 to 1, and the horizon's height as a
        fraction of the image.
    """
    y, _ = _ramp(size)
    horizon = float(rng.uniform(*setting.horizon))
    tint = rng.normal(0, 0.035, 3) + rng.normal(0, 0.05)
    far, near = ((np.asarray(c) / 255 * (1 + tint)).astype(np.float32) for c in (setting.far, setting.near))
    above = np.clip(y / horizon, 0, 1)
    below = np.clip((y - horizon) / max(1 - horizon, 0.05), 0, 1)
    strength, cells = setting.far_noise
    clouds = fractal(rng, size, cells, 4, 0.62) * np.float32(strength * 0.8)
    amount, rows, columns = setting.near_noise
    ground = noise(rng, rows, columns, size) * np.float32(amount) * (0.35 + 0.65 * below)
    ground += noise(rng, 8, 6, size) * np.float32(amount * 0.6)
    wobble = noise(rng, 2, 9, size)[:1] * np.float32(0.008)
    is_ground = np.clip((y - horizon - wobble) * np.float32(size / 2) + 0.5, 0, 1)
    clouds, ground = (1 + clouds) * (1 - is_ground), (1 + ground) * is_ground
    image = np.empty((3, size, size), dtype=np.float32)
    for c in range(3):
        image[c] = (far[0, c] + (far[1, c] - far[0, c]) * above) * clouds
        image[c] += (near[0, c] + (near[1, c] - near[0, c]) * below) * ground
    return image, horizon
