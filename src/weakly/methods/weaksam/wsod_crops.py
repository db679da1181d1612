"""Proposals as pictures of their own, as in R-CNN: a frozen CLIP's embedding of what lies in each box.

A feature map's cells know the whole picture when a transformer made them, so any box can tell the tags and the tags do
not tell where. A crop knows its box and nothing else. Symbols: R boxes of an image, E joint width, S side of a crop.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchvision.ops import roi_align  # type: ignore[import-untyped]

from weakly.errors import UserError
from weakly.foundation.clip import Clip, normalise

AT_ONCE = 64
"""Crops that CLIP embeds together; memory is what it needs for that many pictures."""


@dataclass(frozen=True)
class CropSettings:
    """How a box becomes a picture.

    Attributes:
        margin: of the box's width and height that is added on every side.
        side: S, of the square that CLIP sees, in pixels: a multiple of its patch.
    """

    margin: float = 0.1
    side: int = 224

    def __post_init__(self) -> None:
        if self.margin < 0:
            raise UserError(f"wsod.crops.margin is {self.margin}; give 0 or more.")
        if self.side < 1:
            raise UserError(f"wsod.crops.side is {self.side}; give at least 1.")


def windows(boxes: Tensor, margin: float) -> Tensor:
    """(R, 4) boxes grown on every side by ``margin`` of their width and height; they may leave the image."""
    border = margin * (boxes[:, 2:] - boxes[:, :2])
    return torch.cat([boxes[:, :2] - border, boxes[:, 2:] + border], 1)


@torch.inference_mode()
def embed_crops(
    clip: Clip, image: NDArray[np.uint8], boxes: NDArray[np.float32], settings: CropSettings, *, mirrored: bool = False
) -> NDArray[np.float32]:
    """(R, E) embeddings of the crops, not normalised.

    A crop is the window stretched to S x S, bilinearly, averaged where it shrinks; beyond the image it has CLIP's mean
    colour. Holds :data:`AT_ONCE` crops at a time.

    Args:
        clip: frozen.
        image: (H, W, 3) uint8 RGB.
        boxes: (R, 4) in image pixels, exclusive.
        settings: of the crops.
        mirrored: every crop is turned left to right, which is the crop of the mirrored image.

    Raises:
        UserError: the side is no multiple of CLIP's patch.
    """
    if settings.side % clip.patch:
        raise UserError(
            f"wsod.crops.side is {settings.side}, no multiple of the patch of CLIP {clip.name!r}, {clip.patch}; give "
            f"{max(clip.patch, settings.side // clip.patch * clip.patch)}."
        )
    pixels = normalise(image[None]).to(clip.device)
    parts: list[Tensor] = []
    for part in windows(torch.from_numpy(boxes).to(clip.device), settings.margin).split(AT_ONCE):
        crops = roi_align(pixels, [part], settings.side, sampling_ratio=-1, aligned=True)
        parts.append(clip.image_features(crops.flip(3) if mirrored else crops))
    embeddings: NDArray[np.float32] = torch.cat(parts).cpu().numpy()
    return embeddings
