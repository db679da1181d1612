"""Automatic masks: a grid of points on the image and on its crops, asked of a promptable segmenter.

The procedure is SAM's (Kirillov et al. 2023, appendix B) with the levels kept and the wholes favoured, as FMA-WSSS
needs them (fma-wsss, sections 5.1 to 5.3). Symbols: S masks, (H, W) image size, (C, h, w) embedding.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from weakly.errors import UserError
from weakly.foundation.mask_boxes import Crop, clean_regions, crop_grid, cut_by_crop, nms, point_grid
from weakly.foundation.mask_settings import AutomaticMaskSettings, LevelOf
from weakly.foundation.promptable import Frame, PromptableSegmenter
from weakly.segmentation import Rle, decode_masks, encode_masks, rle_areas, rle_boxes, rle_from_coco, rle_to_json

SUB_PART, PART, WHOLE = 0, 1, 2
"""Levels: the index of SAM's three outputs."""

MASK_PIXELS = 1 << 22
"""Mask pixels upscaled at once: about 4 fp32 maps of as many pixels are alive, 64 MiB; more are no faster."""


@dataclass(frozen=True, eq=False)
class AutomaticMasks:
    """S masks of one image that may overlap, without categories.

    Attributes:
        size: (height, width) of the image.
        rles: S COCO run-length encodings.
        boxes: (S, 4) float32, the tight extents ``x0, y0, x1, y1``.
        areas: (S,) int64 pixels.
        levels: (S,) int64: 0 sub-part, 1 part, 2 whole.
        predicted_iou: (S,) float32, as the segmenter says.
        stability: (S,) float32 in [0, 1].
    """

    size: tuple[int, int]
    rles: tuple[Rle, ...]
    boxes: NDArray[np.float32]
    areas: NDArray[np.int64]
    levels: NDArray[np.int64]
    predicted_iou: NDArray[np.float32]
    stability: NDArray[np.float32]

    def __post_init__(self) -> None:
        rows = (self.rles, self.boxes, self.areas, self.levels, self.predicted_iou, self.stability)
        if len({len(row) for row in rows}) != 1:
            raise ValueError(f"fields of different lengths: {[len(row) for row in rows]}")

    def __len__(self) -> int:
        return len(self.rles)

    @classmethod
    def from_rles(
        cls,
        size: tuple[int, int],
        rles: Sequence[Rle],
        levels: Sequence[int] | NDArray[Any],
        predicted_iou: Sequence[float] | NDArray[Any],
        stability: Sequence[float] | NDArray[Any],
    ) -> AutomaticMasks:
        """Boxes and areas are those of the masks."""
        return cls(
            size=size,
            rles=tuple(rles),
            boxes=rle_boxes(rles),
            areas=rle_areas(rles),
            levels=np.asarray(levels, np.int64),
            predicted_iou=np.asarray(predicted_iou, np.float32),
            stability=np.asarray(stability, np.float32),
        )

    @classmethod
    def join(cls, size: tuple[int, int], parts: Sequence[AutomaticMasks]) -> AutomaticMasks:
        """The masks of all ``parts``, which are of one ``size``; none of no parts."""
        parts = [cls.from_rles(size, [], [], [], []), *parts]
        names = ("boxes", "areas", "levels", "predicted_iou", "stability")
        columns = {name: np.concatenate([getattr(part, name) for part in parts]) for name in names}
        return cls(size=size, rles=tuple(rle for part in parts for rle in part.rles), **columns)

    def take(self, rows: NDArray[np.int64]) -> AutomaticMasks:
        """The masks at (K,) indices, in their order."""
        return AutomaticMasks(
            self.size,
            tuple(self.rles[row] for row in rows),
            self.boxes[rows],
            self.areas[rows],
            self.levels[rows],
            self.predicted_iou[rows],
            self.stability[rows],
        )

    def masks(self) -> NDArray[np.bool_]:
        """Decode all masks: (S, H, W) bool, S * H * W bytes."""
        return decode_masks(self.rles, self.size)

    def to_dict(self) -> dict[str, Any]:
        """JSON-able columns; boxes and areas are left out, since the masks say them."""
        return {
            "size": [int(extent) for extent in self.size],
            "counts": [rle_to_json(rle)["counts"] for rle in self.rles],
            "levels": self.levels.tolist(),
            "predicted_iou": self.predicted_iou.tolist(),
            "stability": self.stability.tolist(),
        }

    @classmethod
    def from_dict(cls, columns: Mapping[str, Any]) -> AutomaticMasks:
        """The inverse of :meth:`to_dict`.

        Raises:
            ValueError: a mask is damaged, a level is none of 0, 1, 2, or the columns differ in length.
            KeyError: a column is missing.
        """
        height, width = (int(extent) for extent in columns["size"])
        rles = [
            rle_from_coco({"size": [height, width], "counts": counts}, (height, width)) for counts in columns["counts"]
        ]
        if not set(columns["levels"]) <= {SUB_PART, PART, WHOLE}:
            raise ValueError(f"levels {sorted(set(columns['levels']))} are not all 0, 1 or 2")
        return cls.from_rles((height, width), rles, columns["levels"], columns["predicted_iou"], columns["stability"])


@torch.no_grad()
def generate_masks(
    segmenter: PromptableSegmenter, image: NDArray[np.uint8], settings: AutomaticMaskSettings | None = None
) -> AutomaticMasks:
    """All masks the segmenter finds from a grid of points (fma-wsss, section 5.2, steps 1 to 4).

    Every crop is encoded once. Per crop: three masks per point, tests of predicted IoU and stability, masks cut by the
    crop dropped, box NMS by predicted IoU. Then box NMS over the crops, where the smaller crop wins; then small holes
    and islands are cleaned away and box NMS favours masks that needed no cleaning. Ties go to the earlier mask.
    Boxes have exclusive upper bounds; SAM's are a pixel smaller, which matters to a threshold on small boxes only.

    Memory: the encoder's for ``crops_per_batch`` inputs, the decoder's for ``prompts_per_batch`` prompts,
    ``16 h w * 4`` bytes of logits for each of their masks that may pass the test of predicted IoU, 64 MiB of upscaled
    masks (one mask, if it is larger), and run-length encodings; never a full-size mask per prompt.

    Args:
        segmenter: frozen.
        image: (H, W, 3) uint8 RGB.
        settings: FMA-WSSS's if absent.

    Returns:
        The masks that are left, possibly none, in the order of the last NMS.

    Raises:
        UserError: the image is of another shape or type.
    """
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or image.size == 0:
        raise UserError(f"An image is of shape {image.shape} and {image.dtype}; give (H, W, 3) uint8 RGB.")
    settings = settings or AutomaticMaskSettings()
    size = (image.shape[0], image.shape[1])
    crops = crop_grid(size, settings.crop_layers, settings.crop_overlap)
    embeddings = _encode(segmenter, image, crops, settings.crops_per_batch)
    parts = [
        _crop_masks(segmenter, embedding, crop, size, settings)
        for embedding, crop in zip(embeddings, crops, strict=True)
    ]
    masks = AutomaticMasks.join(size, parts)
    if len(crops) > 1:
        crop_area = np.repeat([float(np.prod(crop.size)) for crop in crops], [len(part) for part in parts])
        priority = 1 / crop_area + _later_offset(masks, settings)
        masks = masks.take(nms(masks.boxes, priority, settings.crop_nms_threshold))
    return masks if settings.min_region == 0 else _cleaned(masks, settings)


def stability(logits: Tensor, offset: float = 1.0) -> Tensor:
    """(N,) float32: IoU of the masks over ``+offset`` and over ``-offset`` of (N, h, w) logits; 0 if both are empty."""
    inner, outer = (_areas(logits > bound) for bound in (offset, -offset))
    return inner / outer.clamp(min=1)


def _encode(
    segmenter: PromptableSegmenter, image: NDArray[np.uint8], crops: Sequence[Crop], batch: int
) -> Iterator[Tensor]:
    """The embedding (1, C, h, w) of every crop, ``batch`` at a time."""
    for start in range(0, len(crops), batch):
        windows = [image[y0:y1, x0:x1] for (x0, y0, x1, y1), _ in crops[start : start + batch]]
        yield from segmenter.encode(segmenter.preprocess(windows)).split(1)


def _crop_masks(
    segmenter: PromptableSegmenter,
    embedding: Tensor,
    crop: Crop,
    size: tuple[int, int],
    settings: AutomaticMaskSettings,
) -> AutomaticMasks:
    """The masks of one crop after its own NMS, in the frame of the image."""
    frame = segmenter.frame(crop.size)
    height, width = crop.size
    points = frame.points_to_frame(point_grid(settings.points_on(crop.layer)) * (width, height))
    tokens = segmenter.point_tokens(torch.from_numpy(points).float())
    found = AutomaticMasks.join(
        crop.size,
        [
            masks
            for part in tokens.split(settings.prompts_per_batch)
            for masks in _point_masks(segmenter, embedding, part, frame, settings)
        ],
    )
    corner = np.array(crop.box[:2] * 2, np.float32)
    cut = cut_by_crop(found.boxes + corner, crop, size, settings.edge_margin)
    found = found.take(np.flatnonzero(~cut & (found.areas > 0)))
    priority = found.predicted_iou + settings.whole_nms_offset * (found.levels == WHOLE)
    return _paste(found.take(nms(found.boxes, priority, settings.nms_threshold)), crop, size)


def _point_masks(
    segmenter: PromptableSegmenter, embedding: Tensor, tokens: Tensor, frame: Frame, settings: AutomaticMaskSettings
) -> Iterator[AutomaticMasks]:
    """Masks of one batch of points that pass both tests, in the frame of the crop, prompt after prompt."""
    made, logits, iou = segmenter.decode_wanted(embedding, tokens, partial(_may_pass, settings=settings))
    levels, iou = _levels(made, logits, frame, settings.level_of), iou.flatten()[made]
    rows = _passes(iou, levels, settings).nonzero()[:, 0]
    if settings.stability_at == "decoder":
        stable = stability(_content(logits[rows], frame), settings.stability_offset)
        keep = stable >= settings.stability_threshold
        rows, stable = rows[keep], stable[keep]
    per_chunk = max(1, MASK_PIXELS // (frame.size[0] * frame.size[1]))
    for start in range(0, len(rows), per_chunk):
        chunk = rows[start : start + per_chunk]
        upscaled = frame.logits_to_image(logits[chunk])
        if settings.stability_at == "crop":
            values = stability(upscaled, settings.stability_offset)
            keep = values >= settings.stability_threshold
            chunk, upscaled, values = chunk[keep], upscaled[keep], values[keep]
        else:
            values = stable[start : start + per_chunk]
        yield AutomaticMasks.from_rles(
            frame.size,
            encode_masks((upscaled > 0).cpu().numpy()),
            levels[chunk].cpu().numpy(),
            iou[chunk].cpu().numpy(),
            values.cpu().numpy(),
        )


def _passes(iou: Tensor, levels: Tensor, settings: AutomaticMaskSettings) -> Tensor:
    """Bool, of the shape of both: the test of predicted IoU, which wholes may pass with less."""
    return iou + settings.whole_iou_offset * (levels == WHOLE) > settings.iou_threshold


def _may_pass(iou: Tensor, settings: AutomaticMaskSettings) -> Tensor:
    """(n, 3) predicted IoU to the (n, 3) bool masks that the test of predicted IoU needs, or lets pass.

    Where areas decide, any of the three may turn out to be the whole, and all are needed to tell.
    """
    if settings.level_of == "output":
        return _passes(iou, torch.arange(3, device=iou.device), settings)
    return _passes(iou, torch.full_like(iou, WHOLE), settings).any(1, keepdim=True).expand_as(iou)


def _levels(made: Tensor, logits: Tensor, frame: Frame, level_of: LevelOf) -> Tensor:
    """(R,) int64 level of each mask, given (R,) indices along 3 N and (R, h, w) logits."""
    if level_of == "output":
        return made % 3
    areas = _areas(_content(logits, frame) > 0).view(-1, 3)
    return areas.argsort(dim=1, stable=True).argsort(1).flatten()


def _areas(masks: Tensor) -> Tensor:
    """(N,) pixels of (N, h, w) bool masks; int32 is several times faster than torch's int64."""
    return masks.flatten(1).sum(1, dtype=torch.int32)


def _content(logits: Tensor, frame: Frame) -> Tensor:
    """The part of (..., h, w) decoder logits that shows the image, not the padding, to the nearest decoder pixel."""
    rows, columns = (
        slice(round(first * scale), max(round((first + extent) * scale), round(first * scale) + 1))
        for first, extent, scale in (
            (frame.top, frame.content[0], logits.shape[-2] / frame.side),
            (frame.left, frame.content[1], logits.shape[-1] / frame.side),
        )
    )
    return logits[..., rows, columns]


def _paste(masks: AutomaticMasks, crop: Crop, size: tuple[int, int]) -> AutomaticMasks:
    """The masks of a crop on the whole image."""
    if crop.size == size:
        return masks
    x0, y0, x1, y1 = crop.box
    around = ((0, 0), (y0, size[0] - y1), (x0, size[1] - x1))
    rles = [encode_masks(np.pad(decode_masks([rle], crop.size), around))[0] for rle in masks.rles]
    shifted = masks.boxes + np.array(crop.box[:2] * 2, np.float32)
    return replace(masks, size=size, rles=tuple(rles), boxes=shifted)


def _cleaned(masks: AutomaticMasks, settings: AutomaticMaskSettings) -> AutomaticMasks:
    """Masks without small holes and islands; NMS again, since cleaned boxes are smaller or masks alike."""
    rles, untouched = [], []
    for rle in masks.rles:
        cleaned, changed = clean_regions(decode_masks([rle], masks.size)[0], settings.min_region)
        rles.append(encode_masks(cleaned[None])[0] if changed else rle)
        untouched.append(not changed)
    cleaned_masks = AutomaticMasks.from_rles(masks.size, rles, masks.levels, masks.predicted_iou, masks.stability)
    # Half a point: an untouched part never outranks a cleaned whole that has the offset.
    priority = 0.5 * np.asarray(untouched, np.float64) + _later_offset(masks, settings)
    threshold = max(settings.nms_threshold, settings.crop_nms_threshold)
    return cleaned_masks.take(nms(cleaned_masks.boxes, priority, threshold))


def _later_offset(masks: AutomaticMasks, settings: AutomaticMaskSettings) -> NDArray[np.float64]:
    """(S,) what a whole is favoured by in the passes after the first."""
    offset = settings.whole_nms_offset if settings.whole_first == "every_pass" else 0.0
    return offset * (masks.levels == WHOLE)
