"""The geometry of automatic masks: crops, point grids, non-maximum suppression and the clean-up of small regions.

All boxes are ``x0, y0, x1, y1`` with x1 and y1 exclusive, in pixels of the image.
"""

from __future__ import annotations

from itertools import product
from math import ceil
from typing import NamedTuple

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torchvision.ops import nms as greedy_nms  # type: ignore[import-untyped]


class Crop(NamedTuple):
    """A part of the image that is encoded by itself.

    Attributes:
        box: ``x0, y0, x1, y1``.
        layer: 0 for the whole image, l for one of 2^l x 2^l.
    """

    box: tuple[int, int, int, int]
    layer: int

    @property
    def size(self) -> tuple[int, int]:
        """(height, width)."""
        x0, y0, x1, y1 = self.box
        return y1 - y0, x1 - x0


def crop_grid(size: tuple[int, int], layers: int, overlap: float = 512 / 1500) -> tuple[Crop, ...]:
    """The whole image, then 2^l x 2^l overlapping crops for each layer l = 1..layers, column by column.

    Args:
        size: (height, width) of the image.
        layers: 0 for the whole image alone.
        overlap: of neighbours in layer 1, as a fraction of the image's short side; halved from layer to layer.
    """
    height, width = size
    crops = [Crop((0, 0, width, height), 0)]
    for layer in range(1, layers + 1):
        count = 2**layer
        shared = int(overlap * min(size) * (2 / count))
        crop_width, crop_height = (ceil((shared * (count - 1) + extent) / count) for extent in (width, height))
        for column, row in product(range(count), repeat=2):
            x0, y0 = column * (crop_width - shared), row * (crop_height - shared)
            box = (x0, y0, min(x0 + crop_width, width), min(y0 + crop_height, height))
            if box[0] < box[2] and box[1] < box[3]:  # an image of a few pixels has fewer crops
                crops.append(Crop(box, layer))
    return tuple(crops)


def point_grid(side: int) -> NDArray[np.float64]:
    """(side^2, 2) x, y in (0, 1): the centres of side x side equal cells, row by row."""
    centres = (np.arange(side) + 0.5) / side
    y, x = np.meshgrid(centres, centres, indexing="ij")
    return np.stack([x.ravel(), y.ravel()], 1)


def cut_by_crop(
    boxes: NDArray[np.floating], crop: Crop, size: tuple[int, int], margin: float = 20
) -> NDArray[np.bool_]:
    """(N,) bool: a side of the box is within ``margin`` pixels of an edge of the crop, and not of the image's.

    Such a mask ends where the crop does, not where the object does.

    Args:
        boxes: (N, 4).
        crop: where the boxes were found.
        size: (height, width) of the image.
        margin: in pixels.
    """
    height, width = size
    at_crop = np.abs(boxes - np.array(crop.box)) <= margin
    at_image = np.abs(boxes - np.array([0, 0, width, height])) <= margin
    return (at_crop & ~at_image).any(1)


def nms(boxes: NDArray[np.floating], scores: NDArray[np.floating], threshold: float) -> NDArray[np.int64]:
    """Greedy non-maximum suppression; of equal scores the earlier box wins.

    Args:
        boxes: (N, 4).
        scores: (N,); float64 tells the crops of the largest images apart.
        threshold: a box that overlaps a better one with a larger IoU goes.

    Returns:
        (K,) kept indices, by descending score.
    """
    wide = (torch.from_numpy(np.asarray(values, np.float64)) for values in (boxes, scores))
    kept: NDArray[np.int64] = greedy_nms(*wide, threshold).numpy()  # its sort is stable
    return kept


def clean_regions(mask: NDArray[np.bool_], min_area: int) -> tuple[NDArray[np.bool_], bool]:
    """Fill the holes of a mask, then drop its islands, that are smaller than ``min_area`` pixels.

    Regions are 8-connected; background enclosed by the mask and the image's border is a hole too. If every island is
    small, the largest stays.

    Args:
        mask: (H, W) bool.
        min_area: in pixels; 0 changes nothing.

    Returns:
        The (H, W) mask and whether it changed.
    """
    filled = mask | _small(~mask, min_area)
    islands, areas = _regions(filled)
    keep = areas >= min_area
    if len(areas) > 1 and not keep[1:].any():
        keep[1 + int(areas[1:].argmax())] = True
    keep[0] = False
    cleaned = keep[islands]
    return cleaned, bool((cleaned != mask).any())


def _small(mask: NDArray[np.bool_], min_area: int) -> NDArray[np.bool_]:
    """(H, W) bool: the pixels of ``mask`` in regions smaller than ``min_area``."""
    regions, areas = _regions(mask)
    small = areas < min_area
    small[0] = False
    return small[regions]


def _regions(mask: NDArray[np.bool_]) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Region per pixel (H, W), 0 outside the mask, and the area (R + 1,) of every region."""
    _, regions, stats, _ = cv2.connectedComponentsWithStats(mask.view(np.uint8), connectivity=8)
    return np.asarray(regions, np.int32), np.asarray(stats[:, cv2.CC_STAT_AREA], np.int32)
