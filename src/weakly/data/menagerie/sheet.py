"""A picture of a world: rendered scenes side by side."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from weakly.data.menagerie.scene import render_scene

GAP = 4
"""White pixels between the scenes."""


def contact_sheet(seed: int, rows: int, columns: int, size: int = 160) -> NDArray[np.uint8]:
    """The first scenes of a world in a grid, row by row, on white.

    Args:
        seed: of the world.
        rows: of scenes, at least 1.
        columns: of scenes, at least 1.
        size: side of each scene, pixels.

    Returns:
        RGB, uint8 (rows * (size + GAP) - GAP, columns * (size + GAP) - GAP, 3).
    """
    scenes = np.stack([render_scene(seed, index, size).image for index in range(rows * columns)])
    tiles = np.pad(scenes, ((0, 0), (0, GAP), (0, GAP), (0, 0)), constant_values=255)
    grid = tiles.reshape(rows, columns, size + GAP, size + GAP, 3).swapaxes(1, 2)
    return np.ascontiguousarray(grid.reshape(rows * (size + GAP), columns * (size + GAP), 3)[:-GAP, :-GAP])
