"""Proposals: the boxes of masks that a promptable segmenter gives for points and for a grid (weaksam, section 2.3).

Boxes are ``x0, y0, x1, y1`` in pixels of the image with x1 and y1 exclusive. The released code writes the *inclusive*
indices of the last pixel, one less, and adds the pixel back inside its "IoU + 1"; with exclusive bounds the ordinary
IoU is that value. The mask of one pixel (x, y) has the box ``x, y, x + 1, y + 1`` here and ``x, y, x, y`` there.
Symbols: n points or proposals, N prompts, K kept masks of a prompt, S side of the model input, (h, w) embedding grid.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchvision.ops import box_iou  # type: ignore[import-untyped]

from weakly.errors import UserError
from weakly.foundation.automatic_masks import stability
from weakly.foundation.mask_boxes import nms, point_grid
from weakly.foundation.promptable import Frame, PromptableSegmenter
from weakly.methods.weaksam.peaks import Points
from weakly.methods.weaksam.proposal_settings import GridSettings, Joint, LoadSettings, ProposalSettings

GRID, COARSE, FINE, CROSS = 0, 1, 2, 3
"""Sources of a proposal."""

SOURCES = ("grid", "coarse", "fine", "cross")
"""Names of the sources."""

VOTERS = 1024
"""Boxes whose overlaps with all others are held at once."""

MASK_PIXELS = 1 << 22
"""Mask pixels upscaled at once: about 4 fp32 maps of as many pixels are alive, 64 MiB. More is slower on a CPU."""


@dataclass(frozen=True, eq=False, slots=True)
class PointPrompts:
    """The points of one image, (n, 5) float32 each: see :mod:`weakly.methods.weaksam.peaks`.

    Attributes:
        coarse: of coarse class activation maps.
        fine: of fine ones.
        cross: of class-to-patch attention maps.
    """

    coarse: Points = field(default_factory=lambda: np.zeros((0, 5), np.float32))
    fine: Points = field(default_factory=lambda: np.zeros((0, 5), np.float32))
    cross: Points = field(default_factory=lambda: np.zeros((0, 5), np.float32))

    def __post_init__(self) -> None:
        for name, points in self.items():
            object.__setattr__(self, name, np.ascontiguousarray(points, np.float32).reshape(-1, 5))

    def items(self) -> list[tuple[str, Points]]:
        """(name, points) of the three sources, in their order."""
        return [(name, getattr(self, name)) for name in SOURCES[1:]]

    @property
    def digest(self) -> str:
        """Hex SHA-256 of all that decides the proposals: places and classes, in their order."""
        digest = hashlib.sha256()
        for name, points in self.items():
            digest.update(f"{name}|{len(points)}|".encode())
            digest.update(np.ascontiguousarray(points[:, :3]).astype("<f4"))
        return digest.hexdigest()


@dataclass(frozen=True, eq=False, slots=True)
class Proposals:
    """n boxes of one image without class or score, in the order of the sources.

    Attributes:
        boxes: (n, 4) float32, exclusive upper bounds.
        source: (n,) uint8: 0 grid, 1 coarse, 2 fine, 3 cross.
    """

    boxes: NDArray[np.float32]
    source: NDArray[np.uint8]

    def __post_init__(self) -> None:
        object.__setattr__(self, "boxes", np.asarray(self.boxes, np.float32).reshape(-1, 4))
        object.__setattr__(self, "source", np.asarray(self.source, np.uint8).reshape(-1))
        if len(self.boxes) != len(self.source):
            raise ValueError(f"{len(self.boxes)} boxes but {len(self.source)} sources")

    def __len__(self) -> int:
        return len(self.source)

    def take(self, rows: NDArray[np.integer]) -> Proposals:
        """The proposals at (k,) indices, in their order."""
        return Proposals(self.boxes[rows], self.source[rows])

    def counts(self) -> dict[str, int]:
        """{source: proposals}."""
        return dict(zip(SOURCES, np.bincount(self.source, minlength=len(SOURCES)).tolist(), strict=True))


class Extents(NamedTuple):
    """What N masks at full resolution measure.

    Attributes:
        boxes: (N, 4) float32, exclusive upper bounds; zeros for an empty mask.
        areas: (N,) int64 pixels.
        stability: (N,) float32.
    """

    boxes: Tensor
    areas: Tensor
    stability: Tensor


class Prompt(NamedTuple):
    """One prompt: a source and the rows of its points among all points of the image."""

    source: int
    rows: tuple[int, ...]


@torch.no_grad()
def generate_proposals(
    segmenter: PromptableSegmenter,
    image: NDArray[np.uint8],
    points: PointPrompts,
    settings: ProposalSettings | None = None,
) -> Proposals:
    """Every proposal of an image (weaksam, section 2.3): of the grid, of coarse, fine and cross points.

    The image is encoded once. There is no suppression across sources. An empty mask proposes nothing.

    Memory: the encoder's for one image; the decoder's for B = ``prompts_per_batch`` prompts, its B * 3 * 16 h w * 4
    bytes of logits and a copy of those that are kept; 64 MiB of upscaled masks (or four fp32 masks of
    max(S * S, H * W) pixels, if that is more). Never a full-size mask per prompt.

    Args:
        segmenter: frozen.
        image: (H, W, 3) uint8 RGB.
        points: of the image.
        settings: WeakSAM's if absent.

    Raises:
        UserError: the image is of another shape or type.
    """
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or image.size == 0:
        raise UserError(f"An image is of shape {image.shape} and {image.dtype}; give (H, W, 3) uint8 RGB.")
    embedding = segmenter.encode(segmenter.preprocess([image]).to(segmenter.device))
    return decode_proposals(segmenter, embedding, (image.shape[0], image.shape[1]), points, settings)


@torch.no_grad()
def decode_proposals(
    segmenter: PromptableSegmenter,
    embedding: Tensor,
    size: tuple[int, int],
    points: PointPrompts,
    settings: ProposalSettings | None = None,
) -> Proposals:
    """:func:`generate_proposals` of an image that is encoded already.

    Args:
        segmenter: frozen.
        embedding: (1, C, h, w) of the image.
        size: (height, width) of the image.
        points: of the image.
        settings: WeakSAM's if absent.
    """
    settings = settings or ProposalSettings()
    frame = segmenter.frame(size)
    grid = grid_boxes(segmenter, embedding, frame, settings.grid, settings.prompts_per_batch)
    boxes, source = point_boxes(segmenter, embedding, frame, points, settings)
    earlier, cross = boxes[source != CROSS], boxes[source == CROSS]
    cross = cross[score_free_nms(cross, settings.cross_nms)]
    counts = (len(grid), int((source == COARSE).sum()), int((source == FINE).sum()), len(cross))
    return Proposals(np.concatenate([grid, earlier, cross]), np.repeat(np.arange(4, dtype=np.uint8), counts))


def grid_boxes(
    segmenter: PromptableSegmenter, embedding: Tensor, frame: Frame, settings: GridSettings, prompts_per_batch: int = 64
) -> NDArray[np.float32]:
    """(n, 4) boxes of all three masks of every point of a grid, after both tests and NMS, the first in rank first.

    NMS sees exclusive bounds; SAM's are a pixel smaller, which matters to a threshold on small boxes only.
    """
    height, width = frame.size
    tokens = _tokens(segmenter, frame, point_grid(settings.side) * (width, height))
    boxes, scores = [], []
    for part in tokens.split(prompts_per_batch):
        passed, logits, iou = segmenter.decode_wanted(embedding, part, lambda iou: iou > settings.pred_iou)
        extents = mask_extents(frame, logits, settings.stability_offset)
        keep = (extents.stability >= settings.stability) & (extents.areas > 0)
        boxes.append(extents.boxes[keep].cpu().numpy())
        scores.append(iou.flatten()[passed][keep].cpu().numpy())
    found = np.concatenate(boxes)
    if settings.rank == "iou":
        rank = np.concatenate(scores)
    else:
        rank = box_votes(found, settings.vote_iou) / (1 + settings.border * borders_touched(found, frame.size))
    return found[nms(found, rank, settings.nms)[: settings.most]]


def box_votes(boxes: NDArray[np.float32], threshold: float) -> NDArray[np.float64]:
    """(n,) for each of (n, 4) boxes the sum of its IoU with all that have ``threshold`` or more with it, itself too.

    A thing is found again from many points, what a mask runs out over by chance is not. Memory: some ``8 * n`` bytes
    for each of :data:`VOTERS` boxes at a time.
    """
    every = torch.from_numpy(boxes)
    overlaps = (box_iou(some, every) for some in every.split(VOTERS))
    sums = [torch.where(overlap >= threshold, overlap, 0.0).double().sum(1) for overlap in overlaps]
    return torch.cat([torch.zeros(0, dtype=torch.float64), *sums]).numpy()


def borders_touched(boxes: NDArray[np.float32], size: tuple[int, int]) -> NDArray[np.int64]:
    """(n,) how many of the four borders of an image of ``size`` (height, width) each of (n, 4) boxes touches.

    A box that begins or ends within one pixel of a border touches it.
    """
    height, width = size
    near = [boxes[:, :2] <= 1, boxes[:, 2:] >= np.array([width - 1, height - 1])]
    return np.concatenate(near, 1).sum(1)


def point_boxes(
    segmenter: PromptableSegmenter, embedding: Tensor, frame: Frame, points: PointPrompts, settings: ProposalSettings
) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    """Boxes (n, 4) of the kept masks of every prompt that are not empty, and their sources (n,)."""
    prompts = point_prompts(points, settings.class_joint)
    kept = len(settings.keep_masks)
    boxes = torch.zeros(len(prompts), kept, 4)
    tokens = _tokens(segmenter, frame, np.concatenate([each[:, :2] for _, each in points.items()]))
    lengths = np.array([len(prompt.rows) for prompt in prompts], np.int64)
    for length in np.unique(lengths).tolist():  # prompts of one length make a batch
        members = np.flatnonzero(lengths == length)
        rows = torch.tensor([prompts[member].rows for member in members], device=tokens.device)
        # A prompt of several points: the token of each, then one padding token, which is the same for all.
        joined = torch.cat([tokens[rows, 0], tokens[rows[:, 0], 1:]], 1)
        found = [
            _kept_boxes(frame, segmenter.decode_wanted(embedding, part, _all)[1], settings)
            for part in joined.split(settings.prompts_per_batch)
        ]
        boxes[torch.from_numpy(members)] = torch.cat(found).cpu()
    source = np.repeat(np.array([prompt.source for prompt in prompts], np.uint8), kept)
    flat = boxes.flatten(0, 1).numpy()
    full = (flat[:, 2:] > flat[:, :2]).all(1)
    return flat[full], source[full]


def point_prompts(points: PointPrompts, class_joint: Sequence[Joint] = ("coarse", "fine")) -> list[Prompt]:
    """Each point alone, then, for some sources, the points of each class together; source after source.

    Rows count the points of all sources, coarse before fine before cross. Classes ascend.
    """
    prompts: list[Prompt] = []
    first = 0
    for source, (name, each) in enumerate(points.items(), COARSE):
        prompts += [Prompt(source, (first + row,)) for row in range(len(each))]
        if name in class_joint:
            classes = each[:, 2]
            members = [np.flatnonzero(classes == value) + first for value in np.unique(classes)]
            prompts += [Prompt(source, tuple(rows.tolist())) for rows in members]
        first += len(each)
    return prompts


def mask_extents(frame: Frame, logits: Tensor, offset: float = 1.0) -> Extents:
    """Upscale (N, 4h, 4w) logits to the image, :data:`MASK_PIXELS` at once, and measure the masks on the device."""
    per_chunk = max(1, MASK_PIXELS // max(frame.side**2, frame.size[0] * frame.size[1]))
    measured = [_measure(frame.logits_to_image(part), offset) for part in logits.split(per_chunk)]
    return Extents(*(torch.cat(columns) for columns in zip(*measured, strict=True)))


def mask_boxes(masks: Tensor) -> Tensor:
    """(N, 4) float32 boxes of (N, H, W) bool masks, exclusive upper bounds; zeros for an empty mask."""
    bounds = []
    for along in (masks.any(1), masks.any(2)):
        inside = along.byte()  # argmax finds the first of equal values
        bounds += [inside.argmax(1), along.shape[1] - inside.flip(1).argmax(1)]
    x0, x1, y0, y1 = bounds
    return torch.stack([x0, y0, x1, y1], 1).float() * masks.flatten(1).any(1, keepdim=True)


def score_free_nms(boxes: NDArray[np.floating], threshold: float) -> NDArray[np.int64]:
    """Indices of boxes whose IoU with no earlier kept one exceeds ``threshold``, in their order.

    For exclusive bounds; the inclusive boxes of published files need 1 added to x1 and y1 first.
    """
    return nms(boxes, -np.arange(len(boxes), dtype=np.float64), threshold)


def load_proposals(proposals: Proposals, size: tuple[int, int], settings: LoadSettings | None = None) -> Proposals:
    """The proposals that a detector uses: without duplicates, inside the image, not too small, in their order.

    Sides are those of exclusive boxes: a mask 20 pixels wide has a side of 20.

    Args:
        proposals: of one image.
        size: its (height, width).
        settings: those for VOC if absent.
    """
    settings = settings or LoadSettings()
    if settings.dedup:
        _, first = np.unique(proposals.boxes, axis=0, return_index=True)
        proposals = proposals.take(np.sort(first))
    if settings.clip:
        height, width = size
        inside = proposals.boxes.clip(0, np.array([width, height, width, height], np.float32))
        proposals = Proposals(inside, proposals.source)
    sides = proposals.boxes[:, 2:] - proposals.boxes[:, :2]
    return proposals.take(np.flatnonzero((sides >= settings.min_side).all(1)))


def _tokens(segmenter: PromptableSegmenter, frame: Frame, xy: NDArray[np.floating]) -> Tensor:
    """(n, 2, D): a token per image point (n, 2) and its padding token."""
    return segmenter.point_tokens(torch.from_numpy(frame.points_to_frame(xy)).float())


def _all(iou: Tensor) -> Tensor:
    return torch.ones_like(iou, dtype=torch.bool)


def _kept_boxes(frame: Frame, logits: Tensor, settings: ProposalSettings) -> Tensor:
    """(N, K, 4) boxes of the kept masks of (3 N, 4h, 4w) logits, three to a prompt."""
    keep = list(settings.keep_masks)
    if settings.level_of == "output":
        kept = logits.unflatten(0, (-1, 3))[:, keep].flatten(0, 1)
        return mask_extents(frame, kept).boxes.unflatten(0, (-1, len(keep)))
    extents = mask_extents(frame, logits)
    smallest_first = extents.areas.view(-1, 3).argsort(dim=1, stable=True)[:, keep]
    return extents.boxes.view(-1, 3, 4).take_along_dim(smallest_first[..., None], 1)


def _measure(upscaled: Tensor, offset: float) -> Extents:
    masks = upscaled > 0
    return Extents(mask_boxes(masks), masks.flatten(1).sum(1), stability(upscaled, offset))
