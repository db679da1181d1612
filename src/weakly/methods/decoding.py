"""Prompts to segmentations: one decoder call for a ragged batch of prompts, then masks at the original size.

Shared by the methods that end in a promptable segmenter and by the baselines that prompt it with true labels.
Symbols: B images, N prompts over all images, n prompts of one image, (H, W) original size, S input side.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from weakly.foundation.promptable import Frame, PromptableSegmenter
from weakly.segmentation import Rle, Segmentation, encode_masks, rle_boxes

Fusion = Literal["argmax", "soft_sum"]
MASK_PIXELS = 1 << 25
"""Mask pixels worked on at once: about 4 fp32 maps of as many pixels are alive, 512 MiB."""


def decode_prompts(
    segmenter: PromptableSegmenter, embeddings: Tensor, tokens: Tensor, image_index: Tensor, *, max_prompts: int = 64
) -> tuple[Tensor, Tensor]:
    """Single-mask logits (N, 4h, 4w) and predicted IoU (N,) of a ragged batch of prompts.

    The decoder holds the embedding of an image once per prompt: about ``max_prompts * 8 * C * h * w * 4`` bytes at
    a time (64 prompts of SAM's 256 x 64 x 64: 2 GiB); what is returned takes ``N * 16 * h * w * 4`` bytes.

    Args:
        segmenter: frozen.
        embeddings: (B, C, h, w).
        tokens: (N, T, D).
        image_index: (N,) int64, the embedding of every prompt.
        max_prompts: prompts decoded at once.
    """
    logits, iou = _decode(segmenter, embeddings, tokens, image_index, max_prompts, multimask=False)
    return logits[:, 0], iou[:, 0]


def decode_multimask(
    segmenter: PromptableSegmenter, embeddings: Tensor, tokens: Tensor, image_index: Tensor, *, max_prompts: int = 64
) -> tuple[Tensor, Tensor]:
    """Logits (N, 3, 4h, 4w) and predicted IoU (N, 3) of the three masks of every prompt; as :func:`decode_prompts`."""
    return _decode(segmenter, embeddings, tokens, image_index, max_prompts, multimask=True)


@torch.no_grad()
def _decode(
    segmenter: PromptableSegmenter,
    embeddings: Tensor,
    tokens: Tensor,
    image_index: Tensor,
    max_prompts: int,
    *,
    multimask: bool,
) -> tuple[Tensor, Tensor]:
    masks = 3 if multimask else 1
    if len(tokens) == 0:
        _, height, width = segmenter.embedding_shape
        return tokens.new_zeros(0, masks, 4 * height, 4 * width), tokens.new_zeros(0, masks)
    parts = [
        segmenter.decode(embeddings, part, index, multimask=multimask)
        for part, index in zip(torch.split(tokens, max_prompts), torch.split(image_index, max_prompts), strict=True)
    ]
    return torch.cat([logits for logits, _ in parts]), torch.cat([iou for _, iou in parts])


@torch.no_grad()
def refined_prompts(
    segmenter: PromptableSegmenter,
    embeddings: Tensor,
    tokens: Tensor,
    logits: Tensor,
    image_index: Tensor,
    *,
    max_prompts: int = 64,
) -> tuple[Tensor, Tensor]:
    """Tokens (N, 2, D) of the boxes around N masks, and the logits (N, 4h, 4w) that these boxes get in turn.

    An empty mask keeps its prompt.

    Args:
        segmenter: frozen.
        embeddings: (B, C, h, w).
        tokens: (N, 2, D) that the masks were decoded from.
        logits: (N, 4h, 4w) over the whole frame.
        image_index: (N,) int64, the embedding of every prompt.
        max_prompts: prompts decoded at once.
    """
    boxes, found = mask_extents(logits > 0)
    pixel = segmenter.side / logits.shape[-1]
    tokens = torch.where(found[:, None, None], segmenter.box_tokens(boxes * pixel), tokens)
    return tokens, decode_prompts(segmenter, embeddings, tokens, image_index, max_prompts=max_prompts)[0]


def mask_extents(masks: Tensor) -> tuple[Tensor, Tensor]:
    """(N, h, w) bool to float32 boxes (N, 4) around set pixels, x1 and y1 exclusive, and (N,) whether any is set."""
    sides = []
    for axis in (1, 2):  # rows are projected to columns, then columns to rows
        line = masks.any(axis)
        length = line.shape[1]
        place = torch.arange(length, device=masks.device)
        sides.append((torch.where(line, place, length).amin(1), torch.where(line, place, -1).amax(1) + 1))
    (x0, x1), (y0, y1) = sides
    return torch.stack([x0, y0, x1, y1], 1).float(), masks.flatten(1).any(1)


def fuse(
    frame: Frame,
    logits: Tensor,
    labels: NDArray[np.int64],
    scores: NDArray[np.float32],
    provenance: Sequence[Mapping[str, Any]],
    *,
    background: int,
    fusion: Fusion = "argmax",
) -> Segmentation:
    """The masks of one image at its original size, and their label map.

    ``argmax``: one mask per prompt; a pixel belongs to the prompt with the largest ``score * sigmoid(logit)`` among
    those with ``sigmoid(logit) >= 0.5``, else to the background. ``soft_sum``: one mask per category, where the
    ``sigmoid(logit)`` of its prompts sum to 0.5 or more; its score is the best of them, and a contested pixel goes
    to the category with the largest sum.

    Args:
        frame: of the image.
        logits: (n, h, w) mask logits over the whole frame.
        labels: (n,) categories.
        scores: (n,) in [0, 1].
        provenance: n mappings.
        background: C, the label of pixels that belong to nothing.
        fusion: see above.
    """
    canvas = _Canvas(frame.size, background, logits.device)
    groups = _groups(labels, fusion)
    per_chunk = max(1, MASK_PIXELS // max(frame.side**2, frame.size[0] * frame.size[1]))
    rles: list[Rle] = []
    if fusion == "argmax":
        for chunk in _chunks(len(labels), per_chunk):
            inside = frame.logits_to_image(logits[chunk])
            # sigmoid rounds small negative logits to 0.5: the sign is the exact threshold.
            masks, probability = inside >= 0, inside.sigmoid()
            weight = torch.from_numpy(scores[chunk]).to(probability)
            canvas.paint(probability * weight[:, None, None], masks, labels[chunk])
            rles += encode_masks(masks.cpu().numpy())
    else:
        for group in groups:
            total = torch.zeros(frame.size, device=logits.device)
            for chunk in _chunks(len(group), per_chunk):
                total += frame.logits_to_image(logits[torch.from_numpy(group[chunk])]).sigmoid().sum(0)
            mask = (total >= 0.5)[None]
            canvas.paint(total[None], mask, labels[group[:1]])
            rles += encode_masks(mask.cpu().numpy())
    best = [int(group[scores[group].argmax()]) for group in groups]
    return Segmentation(
        size=frame.size,
        rles=tuple(rles),
        boxes=rle_boxes(rles),
        labels=labels[best].astype(np.int64),
        scores=scores[best].astype(np.float32),
        provenance=tuple(provenance[index] for index in best),
        label_map=canvas.label_map(),
    )


def _groups(labels: NDArray[np.int64], fusion: Fusion) -> list[NDArray[np.int64]]:
    """Prompts that end in one mask: each its own, or those of a category."""
    if fusion == "argmax":
        return [np.array([index]) for index in range(len(labels))]
    return [np.flatnonzero(labels == label) for label in np.unique(labels)]


def _chunks(length: int, size: int) -> list[slice]:
    return [slice(start, min(start + size, length)) for start in range(0, length, size)]


class _Canvas:
    """A label map under construction: for every pixel the best claim so far and who made it."""

    def __init__(self, size: tuple[int, int], background: int, device: torch.device) -> None:
        self._claim = torch.zeros(size, device=device)
        self._label = torch.full(size, background, dtype=torch.int64, device=device)
        self._dtype = np.uint8 if background < 256 else np.uint16

    def paint(self, claims: Tensor, masks: Tensor, labels: NDArray[np.int64]) -> None:
        """Claims (n, H, W) inside masks (n, H, W) for labels (n,); the earlier one wins a tie."""
        best, winner = claims.masked_fill(~masks, 0.0).max(0)
        better = best > self._claim
        self._claim = torch.where(better, best, self._claim)
        self._label = torch.where(better, torch.from_numpy(labels).to(winner)[winner], self._label)

    def label_map(self) -> NDArray[Any]:
        return self._label.cpu().numpy().astype(self._dtype)
