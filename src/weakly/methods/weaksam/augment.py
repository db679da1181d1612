"""What a detector sees of an image with its boxes and masks: a random crop at a random scale, or the whole image.

Every random number comes from the generator that is handed in, so a view is a pure function of image, instances and
generator. Boxes are ``x0, y0, x1, y1`` with x1 and y1 exclusive.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from weakly.errors import UserError
from weakly.methods.image_views import fit_size, resize_image, to_pixels

MIN_SIDE = 1.0
"""Boxes with a shorter side in pixels of the view are left out of it."""


@dataclass(frozen=True)
class Augmentation:
    """Large-scale jitter: how a training view is drawn.

    Attributes:
        side: of the square view in pixels.
        scale: range of the uniformly drawn ratio of the resized image's long side to ``side``.
        flip: probability of mirroring left to right.
    """

    side: int = 1024
    scale: tuple[float, float] = (0.1, 2.0)
    flip: float = 0.5

    def __post_init__(self) -> None:
        if self.side < 1:
            raise UserError(f"augmentation.side is {self.side}; give a side of at least 1 pixel.")
        if not 0 < self.scale[0] <= self.scale[1]:
            raise UserError(f"augmentation.scale is {self.scale}; give two numbers above 0, the smaller first.")
        if not 0 <= self.flip <= 1:
            raise UserError(f"augmentation.flip is {self.flip}; give a number in [0, 1].")


class Instances(NamedTuple):
    """Boxes, categories and masks of one image of (H, W) pixels.

    Attributes:
        boxes: (n, 4) float32.
        labels: (n,) int64 category indices.
        masks: (n, H, W) bool; None where boxes are all there is.
    """

    boxes: NDArray[np.float32]
    labels: NDArray[np.int64]
    masks: NDArray[np.bool_] | None = None


class Target(NamedTuple):
    """What a detector is to find in a view.

    Attributes:
        boxes: (n, 4) float32 in pixels of the view, with masks their tight extents.
        labels: (n,) int64 category indices.
        masks: (n, H, W) uint8, or None.
    """

    boxes: Tensor
    labels: Tensor
    masks: Tensor | None


class View(NamedTuple):
    """A view without padding.

    Attributes:
        pixels: (3, h, w) float32, normalised by ImageNet's mean and deviation.
        target: in pixels of the view.
    """

    pixels: Tensor
    target: Target


class Window(NamedTuple):
    """Where a view lies.

    Attributes:
        resized: (height, width) of the resized image.
        y: first row of the crop.
        x: first column of the crop.
        size: (height, width) of the crop.
        mirrored: left to right, after the crop.
    """

    resized: tuple[int, int]
    y: int
    x: int
    size: tuple[int, int]
    mirrored: bool


def training_view(
    image: NDArray[np.uint8], instances: Instances, augmentation: Augmentation, rng: np.random.Generator
) -> View:
    """A random view: resized, cropped to ``augmentation.side`` where it is larger, mirrored.

    Args:
        image: (H, W, 3) uint8 RGB.
        instances: of this image.
        augmentation: how views are drawn.
        rng: the only source of randomness.
    """
    side = augmentation.side
    long = side * rng.uniform(*augmentation.scale)
    resized = fit_size(_size(image), long, long)
    y, x = (int(rng.integers(max(0, extent - side) + 1)) for extent in resized)
    size = (min(side, resized[0]), min(side, resized[1]))
    return look(image, instances, Window(resized, y, x, size, bool(rng.random() < augmentation.flip)))


def plain_view(image: NDArray[np.uint8], instances: Instances, side: int) -> View:
    """The whole image with its long side resized to ``side``."""
    resized = fit_size(_size(image), side, side)
    return look(image, instances, Window(resized, 0, 0, resized, mirrored=False))


def look(image: NDArray[np.uint8], instances: Instances, window: Window) -> View:
    """The part of an image and of its instances inside a window; instances without a pixel there are left out."""
    height, width = window.size
    pixels = resize_image(image, window.resized)[window.y : window.y + height, window.x : window.x + width]
    if window.mirrored:
        pixels = pixels[:, ::-1]
    return View(to_pixels(pixels), target_in(instances, _size(image), window))


def target_in(instances: Instances, size: tuple[int, int], window: Window) -> Target:
    """The instances of an image of ``size`` that have a pixel inside a window."""
    if instances.masks is None:
        boxes = move_boxes(instances.boxes, size, window)
        kept, masks = (boxes[:, 2:] - boxes[:, :2] >= MIN_SIDE).all(1), None
    else:
        moved = move_masks(instances.masks, window)
        boxes, kept = mask_extents(moved), moved.any((1, 2))
        masks = torch.from_numpy(moved[kept].astype(np.uint8))
    return Target(torch.from_numpy(boxes[kept]), torch.from_numpy(instances.labels[kept]), masks)


def move_boxes(boxes: NDArray[np.float32], size: tuple[int, int], window: Window) -> NDArray[np.float32]:
    """(n, 4) boxes of an image of ``size`` in pixels of the window, clipped to it; those outside have no area."""
    scale = np.array([window.resized[1] / size[1], window.resized[0] / size[0]] * 2)
    limits = np.array(window.size[::-1] * 2)
    moved = np.clip(boxes * scale - np.array([window.x, window.y] * 2), 0, limits)
    if window.mirrored:
        moved[:, [0, 2]] = window.size[1] - moved[:, [2, 0]]
    return moved.astype(np.float32)


def move_masks(masks: NDArray[np.bool_], window: Window) -> NDArray[np.bool_]:
    """(n, H, W) masks in the window: each pixel is that of the nearest centre, as the bilinear image has them."""
    rows = _nearest(window.y, window.size[0], masks.shape[1] / window.resized[0], masks.shape[1])
    columns = _nearest(window.x, window.size[1], masks.shape[2] / window.resized[1], masks.shape[2])
    return masks[:, rows[:, None], columns[::-1] if window.mirrored else columns]


def mask_extents(masks: NDArray[np.bool_]) -> NDArray[np.float32]:
    """(n, 4) float32 tight boxes of (n, H, W) masks; zeros for an empty mask."""
    rows, columns = np.any(masks, axis=2), np.any(masks, axis=1)
    edges = [columns.argmax(1), rows.argmax(1), _last(columns), _last(rows)]
    return (np.stack(edges, 1) * np.any(rows, axis=1)[:, None]).astype(np.float32)


def _last(present: NDArray[np.bool_]) -> NDArray[np.int64]:
    """(n,) one past the last True of each row of (n, m)."""
    last: NDArray[Any] = present.shape[1] - present[:, ::-1].argmax(1)
    return last.astype(np.int64)


def _nearest(first: int, count: int, step: float, limit: int) -> NDArray[np.int64]:
    """(count,) source indices of the pixels ``first, first + 1 ...`` of a resized axis."""
    return np.minimum(((np.arange(first, first + count) + 0.5) * step).astype(np.int64), limit - 1)


def _size(image: NDArray[np.uint8]) -> tuple[int, int]:
    return image.shape[0], image.shape[1]
