"""A weakly supervised detector with random weights, and a world it can learn: a red square, a blue one, or both."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from weakly.methods.weaksam.wsod import WsodDetector, build_detector
from weakly.methods.weaksam.wsod_data import PixelViews, WsodData
from weakly.methods.weaksam.wsod_settings import WsodSettings, WsodTraining

SETTINGS = WsodSettings(backbone="resnet10t", stages=2, pool="align", width=32, dropout=0.1)
TRAINING = WsodTraining(
    iterations=8, batch=2, lr=1e-3, gate_lr=1e-3, steps=(6,), warmup=2, sizes=(32, 48), max_size=96, save_every=3
)

TAGS = np.array([[True, False], [False, True], [True, True]])
"""Of images 0, 1, 2, and so on: with both in one image, the lack of the one does not tell the other."""


def tiny_detector(classes: int = 2, settings: WsodSettings = SETTINGS) -> WsodDetector:
    return build_detector(settings, classes, seed=0)


def tiny_image(index: int) -> NDArray[np.uint8]:
    """(48, 64, 3): grey noise and, as :data:`TAGS` has it, squares of 20 pixels at :func:`tiny_boxes`."""
    image = np.random.default_rng(index).integers(90, 130, (48, 64, 3)).astype(np.uint8)
    for kind in np.flatnonzero(TAGS[index % 3]):
        x0, y0, x1, y1 = tiny_boxes(index)[kind].astype(int)
        image[y0:y1, x0:x1] = ((230, 20, 20), (20, 20, 230))[kind]
    return image


def tiny_boxes(index: int) -> NDArray[np.float32]:
    """(2, 4): where a red square is, if there is one, and a blue one; on either side of the image."""
    left, top = 4 + 36 * (index // 3 % 2), 4 + 20 * (index // 6 % 2)
    return np.array([[x, top, x + 20, top + 20] for x in (left, 44 - left)], np.float32)


def tiny_proposals(index: int, count: int = 20) -> NDArray[np.float32]:
    """(count, 4): the two places first, then random boxes."""
    rng = np.random.default_rng(100 + index)
    corner = rng.uniform(0, (40, 26), (count - 2, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(10, 22, (count - 2, 2))], 1).astype(np.float32)
    return np.concatenate([tiny_boxes(index), boxes])


def tiny_views(index: int) -> PixelViews:
    """The image with its proposals."""
    return PixelViews(tiny_image(index), tiny_proposals(index))


def tiny_data(images: int = 8, **changes: Any) -> WsodData:
    given: dict[str, Any] = {
        "keys": [f"{index:04x}" for index in range(images)],
        "readers": [partial(tiny_views, index) for index in range(images)],
        "tags": TAGS[np.arange(images) % 3],
        "proposals": [tiny_proposals(index) for index in range(images)],
    }
    return WsodData(**{**given, **changes})
