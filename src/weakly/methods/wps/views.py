"""Random views of stored embeddings: moved and zoomed in feature space, with the prompts that belong to them (ours).

A convolutional encoder sees a moved picture as the same features, moved; a transformer nearly does. So a student may
train on views that no encoder ever computed. Cells that a view uncovers are zero, parts that it cuts off are clipped.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional
from torch.utils.data import Dataset as TorchDataset

from weakly.methods.wps.settings import Jitter
from weakly.methods.wps.targets import Teacher, WpsBatch, WpsData


@dataclass(frozen=True, eq=False)
class JitteredViews(TorchDataset[WpsBatch]):
    """Training data whose index ``v * n + i`` is random view v of image i (odd ones mirrored, if there are mirrors).

    A view is a pure function of ``seed`` and its index.

    Attributes:
        data: of the n images.
        jitter: how views are drawn.
        teacher: makes the tokens of moved prompts.
        seed: the whole source of randomness.
    """

    data: WpsData
    jitter: Jitter
    teacher: Teacher
    seed: int

    @classmethod
    def of(cls, data: WpsData, jitter: Jitter, seed: int) -> JitteredViews:
        """Views whose tokens the data's own teacher makes."""
        if data.teacher is None:
            raise ValueError("moved views need the teacher that made the targets")
        return cls(data, jitter, data.teacher, seed)

    def __len__(self) -> int:
        return len(self.data)

    def __getitem__(self, index: int) -> WpsBatch:
        return self.__getitems__([index])

    def __getitems__(self, indices: Sequence[int]) -> WpsBatch:
        """The batch of these views, in this order."""
        chosen = torch.as_tensor(indices)
        view, image = chosen // len(self), chosen % len(self)
        batch = self.data.__getitems__((image + len(self) * (view % self.data.variants)).tolist())
        return moved(batch, self.draw(indices, batch.embeddings.shape[-2:]), self.jitter.visible, self.teacher)

    def draw(self, indices: Sequence[int], grid: Sequence[int]) -> Tensor:
        """(B, 3) float32 zoom, and shift to the right and down in pixels of the frame, of the views at indices."""
        noise = torch.stack([torch.rand(3, generator=self._generator(index)) for index in indices]) * 2 - 1
        zoom = self.jitter.zoom ** noise[:, :1]
        cell = self.teacher.side / torch.tensor([grid[1], grid[0]])
        shift = (noise[:, 1:] * self.jitter.shift * self.teacher.side / cell).round() * cell
        return torch.cat([zoom, shift], dim=1)

    def _generator(self, index: int) -> torch.Generator:
        return torch.Generator().manual_seed((self.seed * 1_000_003 + index) % (1 << 63))


def moved(batch: WpsBatch, motion: Tensor, visible: float, teacher: Teacher) -> WpsBatch:
    """A batch with every image zoomed about the frame's centre, then shifted.

    Args:
        batch: B images.
        motion: (B, 3) zoom, and shift to the right and down in pixels of the frame.
        visible: least share of a box that must stay inside the frame; a point must stay inside itself.
        teacher: makes the tokens.
    """
    side = teacher.side
    zoom, shift = motion[:, 0].view(-1, 1, 1, 1), motion[:, 1:].view(-1, 1, 1, 2)
    present = torch.arange(batch.labels.shape[1]) < torch.tensor(batch.counts)[:, None]
    corners = batch.prompts.unflatten(-1, (3, 2))
    corners = (corners - side / 2) * zoom + side / 2 + shift
    clipped = corners.clamp(0, side)
    before, after = (_area(each) for each in (corners, clipped))
    inside = (corners[..., 2, :] == clipped[..., 2, :]).all(-1)
    has_box, has_point = (batch.prompts[..., :4] != 0).any(-1), (batch.prompts[..., 4:] != 0).any(-1)
    keep = present & (~has_box | (after >= visible * before) & (after > 0)) & (~has_point | inside)
    prompts = torch.where((has_box[..., None] & _BOX) | (has_point[..., None] & ~_BOX), clipped.flatten(-2), 0.0)
    counts = keep.sum(1)
    image, slot = keep.nonzero()[:, 0], (keep.cumsum(1) - 1)[keep]
    most = int(counts.max()) if len(counts) else 0

    def regroup(rows: Tensor) -> Tensor:
        grouped = rows.new_zeros(len(counts), most, *rows.shape[1:])
        grouped[image, slot] = rows
        return grouped

    tokens = regroup(teacher(prompts[keep]))
    labels = regroup(batch.labels[keep])
    embeddings = move_maps(batch.embeddings, motion.to(batch.embeddings), side)
    return WpsBatch(embeddings, labels, tokens, regroup(prompts[keep]), tuple(counts.tolist()))


def move_maps(maps: Tensor, motion: Tensor, side: int) -> Tensor:
    """(B, C, h, w) maps over the frame, zoomed about its centre and shifted: bilinear, zero where nothing is known.

    A shift by whole cells without zoom copies values.

    Args:
        maps: (B, C, h, w).
        motion: (B, 3) zoom, and shift to the right and down in pixels of the frame.
        side: of the frame in pixels.
    """
    zoom, shift = motion[:, 0], motion[:, 1:] * 2 / side  # the sampling grid runs from -1 to 1
    inverse = torch.zeros(len(maps), 2, 3, dtype=maps.dtype, device=maps.device)
    inverse[:, 0, 0] = inverse[:, 1, 1] = 1 / zoom
    inverse[:, :, 2] = -shift / zoom[:, None]
    grid = functional.affine_grid(inverse, list(maps.shape), align_corners=False)
    return functional.grid_sample(maps, grid, align_corners=False)


def _area(corners: Tensor) -> Tensor:
    """(...,) area of the boxes in (..., 3, 2) corners and point."""
    width, height = (corners[..., 1, :] - corners[..., 0, :]).unbind(-1)
    return width * height


_BOX = torch.tensor([True] * 4 + [False] * 2)
"""Which of a prompt's six numbers are the box."""
