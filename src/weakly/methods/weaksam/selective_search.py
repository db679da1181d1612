"""Selective Search (Uijlings et al. 2013): the proposals that WeakSAM's replace, as a yardstick.

The algorithm is OpenCV's, which is in its contrib build. That build has the same ``cv2`` and replaces the plain one.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import cv2
import numpy as np
from numpy.typing import NDArray

from weakly.errors import UserError

Strategy = Literal["fast", "quality"]

REMEDY = "pip uninstall opencv-python-headless, then pip install opencv-contrib-python-headless"


@dataclass(frozen=True)
class SelectiveSearchSettings:
    """How regions are found and ordered.

    Attributes:
        strategy: ``fast``: 2 colour spaces, as is usual for weakly supervised detection; ``quality``: 5.
        base_k: scale of the smallest initial regions.
        inc_k: step to the next scale.
        sigma: of the smoothing, in pixels.
        most: boxes that are kept; null: all.
        seed: of the order.
    """

    strategy: Strategy = "fast"
    base_k: int = 150
    inc_k: int = 150
    sigma: float = 0.8
    most: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.strategy not in {"fast", "quality"}:
            raise UserError(f"The selective-search strategy is {self.strategy!r}; give fast or quality.")
        if self.base_k < 1 or self.inc_k < 1 or self.sigma < 0:
            raise UserError("Selective search needs a base_k and an inc_k of at least 1 and a sigma of at least 0.")
        if self.most is not None and self.most < 1:
            raise UserError(f"Selective search is to keep {self.most} boxes; give at least 1, or null for all.")


def available() -> bool:
    """Whether the installed OpenCV has selective search."""
    return _module() is not None


def selective_search(image: NDArray[np.uint8], settings: SelectiveSearchSettings | None = None) -> NDArray[np.float32]:
    """Proposals of an image.

    The order is the published one in spirit: large regions, merged last, tend to come first, by the rank of the area
    times a random number. OpenCV draws these numbers from a generator that nobody can seed; here the same image always
    gives the same boxes.

    Args:
        image: (H, W, 3) uint8 RGB.
        settings: the defaults if absent.

    Returns:
        (n, 4) float32 distinct boxes ``x0, y0, x1, y1``, exclusive upper bounds.

    Raises:
        UserError: the installed OpenCV has no selective search, or the image is of another shape or type.
    """
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or image.size == 0:
        raise UserError(f"An image is of shape {image.shape} and {image.dtype}; give (H, W, 3) uint8 RGB.")
    module = _module()
    if module is None:
        raise UserError(f"The installed OpenCV {cv2.__version__} has no selective search; {REMEDY}.")
    settings = settings or SelectiveSearchSettings()
    search = module.createSelectiveSearchSegmentation()
    search.setBaseImage(np.ascontiguousarray(image[..., ::-1]))  # OpenCV's channels are blue, green, red
    switch = {"fast": search.switchToSelectiveSearchFast, "quality": search.switchToSelectiveSearchQuality}
    switch[settings.strategy](settings.base_k, settings.inc_k, settings.sigma)
    x, y, width, height = np.asarray(search.process(), np.float32).reshape(-1, 4).T
    boxes = np.unique(np.stack([x, y, x + width, y + height], 1), axis=0)
    return boxes[random_rank(boxes, settings.seed)][: settings.most]


def random_rank(boxes: NDArray[np.float32], seed: int) -> NDArray[np.int64]:
    """(n,) order of boxes by the rank of their area, 1 for the largest, times a uniform random number."""
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    by_area = np.argsort(-areas, kind="stable")
    rank = np.arange(1, len(boxes) + 1) * np.random.default_rng(seed).random(len(boxes))
    return by_area[np.argsort(rank, kind="stable")]


def _module() -> Any:
    """OpenCV's segmentation module of the contrib build, or None."""
    return getattr(getattr(cv2, "ximgproc", None), "segmentation", None)
