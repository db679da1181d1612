"""Training data of a part detector: what it looks at, stored embeddings or images, and the given boxes in its frame."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset as TorchDataset

from weakly.data.dataset import Dataset
from weakly.data.images import read_image
from weakly.errors import UserError
from weakly.foundation.promptable import PIXEL_MEAN, PIXEL_STD, Frame
from weakly.methods.base import Skipped, Workspace
from weakly.methods.stored_views import Inputs, gather_views

MIN_SIDE = 1.0
"""Boxes with a shorter side in pixels of the frame teach nothing."""


class DetSamBatch(NamedTuple):
    """B images with their boxes, padded to the M instances of the fullest.

    Attributes:
        inputs: what the detector looks at: images (B, 3, S, S), normalised by ImageNet's mean and deviation, or
            embeddings (B, C, h, w); float32.
        boxes: (B, M, 4) float32 in pixels of the frame; padding is 0.
        labels: (B, M) int64; padding is 0.
        counts: number of instances of every image; stays on the host.
    """

    inputs: Tensor
    boxes: Tensor
    labels: Tensor
    counts: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class FrameImages:
    """Images in a square frame, read when they are asked for by as many threads as there are cores.

    Attributes:
        paths: n files.
        side: S.
        mirrored: left to right.
    """

    paths: tuple[Path, ...]
    side: int
    mirrored: bool = False

    def __getitem__(self, rows: Tensor) -> Tensor:
        """(B, 3, S, S) normalised images.

        Raises:
            UserError: an image cannot be read.
        """
        with ThreadPoolExecutor(min(len(rows), os.cpu_count() or 1)) as pool:
            return torch.stack(list(pool.map(self._read, rows.tolist())))

    def _read(self, row: int) -> Tensor:
        image = read_image(self.paths[row])
        return frame_pixels(image[:, ::-1] if self.mirrored else image, self.side)


def frame_pixels(image: NDArray[np.uint8], side: int) -> Tensor:
    """(3, S, S) float32 of an (H, W, 3) uint8 RGB image: resized, normalised, 0 at the bottom and the right."""
    frame = Frame.fit((image.shape[0], image.shape[1]), side)
    height, width = frame.content
    resized = frame.resize(np.ascontiguousarray(image)).astype(np.float32) / 255
    pixels = torch.zeros(3, side, side)
    pixels[:, :height, :width] = torch.from_numpy((resized - PIXEL_MEAN) / PIXEL_STD).permute(2, 0, 1)
    return pixels


@dataclass(frozen=True, eq=False, slots=True)
class BoxTargets:
    """The given boxes of n images, flat.

    Attributes:
        boxes: (K, 4) float32 in pixels of the frame, image after image.
        labels: (K,) int64.
        counts: (n,) int64 instances per image.
    """

    boxes: Tensor
    labels: Tensor
    counts: Tensor

    def __len__(self) -> int:
        return len(self.counts)

    def gather(self, images: Tensor) -> tuple[Tensor, Tensor, tuple[int, ...]]:
        """Boxes (B, M, 4), labels (B, M) and counts of (B,) image indices, zero-padded."""
        counts = self.counts[images]
        starts = (self.counts.cumsum(0) - self.counts)[images]
        slot = torch.arange(int(counts.max()) if len(counts) else 0)
        present = slot < counts[:, None]
        # The row behind the last is padding.
        rows = torch.where(present, starts[:, None] + slot, len(self.labels))
        boxes = torch.cat([self.boxes, self.boxes.new_zeros(1, 4)])
        return boxes[rows], torch.cat([self.labels, self.labels.new_zeros(1)])[rows], tuple(counts.tolist())


@dataclass(frozen=True, eq=False)
class DetSamData(TorchDataset[DetSamBatch]):
    """Training data, collated a batch at a time. Index ``v * n + i`` is image i in view v: as it is, or mirrored.

    Attributes:
        inputs: of the n images, in every view.
        targets: of the images of all views, view after view.
        skipped: images that could not be read and are not among the n.
    """

    inputs: tuple[Inputs, ...]
    targets: BoxTargets
    skipped: tuple[Skipped, ...] = ()

    def __len__(self) -> int:
        return len(self.targets) // self.variants

    @property
    def variants(self) -> int:
        """Versions of every image: 2 with mirrored ones."""
        return len(self.inputs)

    def __getitem__(self, index: int) -> DetSamBatch:
        return self.__getitems__([index])

    def __getitems__(self, indices: Sequence[int]) -> DetSamBatch:
        """The batch of these indices, in this order."""
        chosen = torch.as_tensor(indices, dtype=torch.int64)
        view, image = chosen // len(self), chosen % len(self)
        return DetSamBatch(gather_views(self.inputs, view, image), *self.targets.gather(chosen))


def box_targets(
    dataset: Dataset, frame: Callable[[tuple[int, int]], Frame], *, mirrored: Sequence[bool] = (False,)
) -> BoxTargets:
    """The boxes of a dataset in the detector's frame, those of several views one after the other.

    Boxes are clipped to the image; what is then below a pixel of the frame is left out.

    Args:
        dataset: every sample has boxes, perhaps none of them in an image.
        frame: of an image of a size (height, width).
        mirrored: whether each view shows the images mirrored; names then swap left and right.

    Raises:
        UserError: a sample has no boxes at all.
    """
    boxes: list[NDArray[np.float64]] = [np.zeros((0, 4))]
    labels: list[NDArray[np.int64]] = [np.zeros(0, np.int64)]
    for flip in mirrored:
        swapped = dataset.vocabulary.mirrored() if flip else np.arange(len(dataset.vocabulary))
        for sample in dataset:
            if sample.boxes is None:
                raise UserError(f"{sample.path} has no boxes to train a detector on; give boxes.")
            height, width = sample.size
            xyxy = np.clip(sample.boxes.xyxy, 0, [width, height] * 2)
            if flip:
                xyxy[:, [0, 2]] = width - xyxy[:, [2, 0]]
            framed = frame(sample.size).boxes_to_frame(xyxy)
            kept = (framed[:, 2:] - framed[:, :2] >= MIN_SIDE).all(1)
            boxes.append(framed[kept])
            labels.append(swapped[sample.boxes.labels[kept]])
    counts = torch.tensor([len(each) for each in labels[1:]], dtype=torch.int64)
    flat = torch.from_numpy(np.concatenate(boxes)).float()
    return BoxTargets(flat, torch.from_numpy(np.concatenate(labels)), counts)


def readable_images(dataset: Dataset, workspace: Workspace) -> tuple[list[int], tuple[Skipped, ...]]:
    """Indices of the images that can be read, and the others with the reason; every file is read once.

    Raises:
        UserError: no image can be read.
    """
    samples = list(dataset)
    progress = partial(workspace.progress, f"reading {dataset.split}")
    kept: list[int] = []
    skipped: list[Skipped] = []
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        for index, reason in enumerate(pool.map(_reason, [sample.path for sample in samples])):
            if reason is None:
                kept.append(index)
            else:
                skipped.append(Skipped(samples[index].image_id, samples[index].path, reason))
            progress(index + 1, len(samples))
    if not kept:
        raise UserError(f"No image of {dataset.name} ({dataset.split}) can be read; run `weakly data check` on it.")
    return kept, tuple(skipped)


def _reason(path: Path) -> str | None:
    """Why an image cannot be read; None: it can."""
    try:
        read_image(path)
    except UserError as error:
        return str(error)
    return None
