"""Masks from boxes: every box prompts the frozen segmenter by itself (weaksam, section 6)."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from weakly.foundation.promptable import Frame, PromptableSegmenter
from weakly.segmentation import Rle, encode_masks, rle_boxes

MAX_VALUES = 1 << 26
"""Float32 mask logits at the size of the frame or the image that are held at once: 256 MiB."""


class BoxMasks(NamedTuple):
    """One mask per box.

    Attributes:
        rles: N masks at the size of the image; a mask may be empty.
        boxes: (N, 4) float32 tight extents of the masks; zeros for an empty mask.
        ious: (N,) float32: how well the segmenter thinks the masks fit.
    """

    rles: tuple[Rle, ...]
    boxes: NDArray[np.float32]
    ious: NDArray[np.float32]


def masks_from_boxes(segmenter: PromptableSegmenter, image: NDArray[np.uint8], boxes: NDArray[np.floating]) -> BoxMasks:
    """The segmenter's single mask of each box, where its logits are above 0; the image is encoded once.

    Args:
        segmenter: frozen.
        image: (H, W, 3) uint8 RGB.
        boxes: (N, 4) ``x0, y0, x1, y1`` in image pixels.
    """
    frame = segmenter.frame((image.shape[0], image.shape[1]))
    if not len(boxes):
        return BoxMasks((), np.zeros((0, 4), np.float32), np.zeros(0, np.float32))
    embedding = segmenter.encode(segmenter.preprocess([image]).to(segmenter.device))
    return decode_boxes(segmenter, embedding, frame, boxes)


@torch.no_grad()
def decode_boxes(
    segmenter: PromptableSegmenter, embedding: Tensor, frame: Frame, boxes: NDArray[np.floating]
) -> BoxMasks:
    """:func:`masks_from_boxes` of an image that is encoded already.

    Args:
        segmenter: frozen.
        embedding: (1, C, h, w) of the image.
        frame: of the image.
        boxes: (N, 4) in image pixels.
    """
    prompts = torch.from_numpy(frame.boxes_to_frame(boxes)).float().to(segmenter.device)
    index = torch.zeros(len(prompts), dtype=torch.int64, device=segmenter.device)
    logits, ious = segmenter.decode(embedding.to(segmenter.device), segmenter.box_tokens(prompts), index)
    largest = max(frame.side**2, frame.size[0] * frame.size[1])
    rles: list[Rle] = []
    for some in logits[:, 0].split(max(1, MAX_VALUES // largest)):
        if len(some):
            rles += encode_masks((frame.logits_to_image(some) > 0).cpu().numpy())
    return BoxMasks(tuple(rles), rle_boxes(rles), ious[:, 0].float().cpu().numpy())
