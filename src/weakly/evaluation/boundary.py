"""Boundaries of label maps: the bands of Boundary IoU, and the label differences that were published in its place.

Boundary IoU (Cheng et al., CVPR 2021) is the IoU of the inner bands of truth and prediction, per class. Detectron2's
evaluator of label maps, which the tables of PartCLIPSeg come from, erodes the whole map of numbers instead and counts
how far each number falls: what ends up in a class's row depends on how classes are numbered (spec partclipseg section
6.5). Both are here; only the first is called Boundary IoU.
"""

from __future__ import annotations

from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

BAND_SHARE = 0.02
"""Width of a band as a share of the image's diagonal."""


def band_width(size: tuple[int, int]) -> int:
    """Width d in pixels, at least 1, for a (height, width) image."""
    return max(1, round(BAND_SHARE * float(np.hypot(*size))))


def inner_bands(labels: NDArray[Any], width: int) -> NDArray[np.bool_]:
    """The pixels of every region that lie within ``width`` of its border, or of the image's.

    One pass for all classes: a pixel is inside its region where the smallest and the largest label around it agree.

    Args:
        labels: (H, W) from 0 to 65534.
        width: d; distances are chessboard distances, as d erosions by 3 x 3 pixels measure them.

    Returns:
        (H, W) bool. The band of class k is where this holds and ``labels == k``.
    """
    shifted = labels.astype(np.uint16) + np.uint16(1)  # beyond the image lies 0, which is no label
    return _smallest(shifted, width) != _largest(shifted, width)


def label_differences(labels: NDArray[Any], width: int) -> NDArray[np.uint16]:
    """What each label loses to the smallest one within ``width``, with zeros beyond the image.

    Args:
        labels: (..., H, W) from 0 to 65535; leading axes are maps of their own.
        width: d.

    Returns:
        (..., H, W): 0 inside a region, and wherever the neighbours' labels are larger.
    """
    values = labels.astype(np.uint16)
    maps = values.reshape(-1, *values.shape[-2:])
    return (values - np.array([_smallest(one, width) for one in maps], np.uint16).reshape(values.shape)).astype(
        np.uint16
    )


def _smallest(labels: NDArray[np.uint16], width: int) -> NDArray[np.uint16]:
    return np.asarray(cv2.erode(labels, _square(width), borderType=cv2.BORDER_CONSTANT, borderValue=0), np.uint16)


def _largest(labels: NDArray[np.uint16], width: int) -> NDArray[np.uint16]:
    return np.asarray(cv2.dilate(labels, _square(width), borderType=cv2.BORDER_CONSTANT, borderValue=0), np.uint16)


def _square(width: int) -> NDArray[np.uint8]:
    return np.ones((2 * width + 1, 2 * width + 1), np.uint8)
