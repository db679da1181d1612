"""Pseudo boxes and pseudo masks as training targets: views of images and the batches a loader makes of them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional
from torch.utils.data import Dataset as TorchDataset

from weakly.data.images import read_image
from weakly.errors import UserError
from weakly.methods.base import Skipped
from weakly.methods.weaksam.augment import Augmentation, Instances, Target, View, plain_view, training_view
from weakly.segmentation import Rle, decode_masks


@dataclass(frozen=True, eq=False, slots=True)
class PseudoInstances:
    """What the stages before believe an image shows.

    Attributes:
        boxes: (n, 4) float32 in image pixels.
        labels: (n,) int64 category indices.
        rles: n masks at the size of the image; None where boxes are all there is.
    """

    boxes: NDArray[np.float32]
    labels: NDArray[np.int64]
    rles: tuple[Rle, ...] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "boxes", np.asarray(self.boxes, np.float32).reshape(-1, 4))
        object.__setattr__(self, "labels", np.asarray(self.labels, np.int64).reshape(-1))
        counts = {len(self.boxes), len(self.labels), len(self.labels if self.rles is None else self.rles)}
        if len(counts) != 1:
            raise ValueError(f"boxes, labels and masks of different numbers: {sorted(counts)}")

    def __len__(self) -> int:
        return len(self.labels)


class WeakSamBatch(NamedTuple):
    """B views, padded at the bottom and the right to one size.

    Attributes:
        inputs: (B, 3, H, W) float32 pixels, normalised by ImageNet's mean and deviation, 0 in the padding; or
            (B, K, h, w) embeddings.
        sizes: (height, width) of the B views without padding, in pixels.
        targets: of the B views; their masks are (n, H, W).
    """

    inputs: Tensor
    sizes: list[tuple[int, int]]
    targets: list[Target]


@dataclass(frozen=True, eq=False)
class WeakSamData(TorchDataset[WeakSamBatch]):
    """Images with their pseudo instances, read and collated a batch at a time.

    Without a seed, index i is the whole image i, its long side resized to ``augmentation.side``. With a seed, index
    ``v * n + i`` is view v of image i, a random crop that depends on (seed, v, i) alone: the sampler draws v from the
    epoch, so a resumed run sees the views of an uninterrupted one. Random views are padded to ``augmentation.side``.

    Attributes:
        images: n image files.
        instances: of the n images; an image may have none. Masks are used if all of them have some.
        augmentation: of random views.
        seed: of random views; None: whole images.
        skipped: images that could not be used and are not among the n.
    """

    images: tuple[Path, ...]
    instances: tuple[PseudoInstances, ...]
    augmentation: Augmentation = field(default_factory=Augmentation)
    seed: int | None = None
    skipped: tuple[Skipped, ...] = ()

    def __post_init__(self) -> None:
        if len(self.images) != len(self.instances):
            raise ValueError(f"{len(self.images)} images but pseudo instances of {len(self.instances)}")
        if len({item.rles is None for item in self.instances}) > 1:
            raise ValueError("some images have pseudo masks and others none")

    def __len__(self) -> int:
        return len(self.images)

    def random_views(self, seed: int) -> WeakSamData:
        """The same images in random views."""
        return replace(self, seed=seed)

    def __getitem__(self, index: int) -> WeakSamBatch:
        return self.__getitems__([index])

    def __getitems__(self, indices: Sequence[int]) -> WeakSamBatch:
        """The batch of these indices, in this order.

        Files are decoded by several threads; every view has a random generator of its own, so that their order does
        not matter.

        Raises:
            UserError: an image cannot be read, or has another size than its pseudo masks.
        """
        with ThreadPoolExecutor(min(len(indices), os.cpu_count() or 1)) as pool:
            views = list(pool.map(self.view, indices))
        side = None if self.seed is None else self.augmentation.side
        return collate(views, side)

    def view(self, index: int) -> View:
        """The view of one index."""
        number, row = divmod(index, len(self))
        if self.seed is None and number:
            raise IndexError(f"index {index} of {len(self)} images")
        image, instances = read_instances(self.images[row], self.instances[row])
        if self.seed is None:
            return plain_view(image, instances, self.augmentation.side)
        return training_view(image, instances, self.augmentation, np.random.default_rng((self.seed, number, row)))


def read_instances(path: Path, found: PseudoInstances) -> tuple[NDArray[np.uint8], Instances]:
    """(H, W, 3) uint8 RGB of an image, and its instances with decoded masks.

    Raises:
        UserError: the image cannot be read, or has another size than its pseudo masks.
    """
    image = read_image(path)
    return image, decode_instances(path, (image.shape[0], image.shape[1]), found)


def decode_instances(path: Path, size: tuple[int, int], found: PseudoInstances) -> Instances:
    """The instances of an image of ``size`` with decoded masks.

    Raises:
        UserError: the image has another size than its pseudo masks.
    """
    if found.rles is None:
        return Instances(found.boxes, found.labels)
    other = next((rle["size"] for rle in found.rles if tuple(rle["size"]) != size), None)
    if other is not None:
        raise UserError(
            f"The pseudo masks of {path} have {other[1]} x {other[0]} pixels, the image {size[1]} x {size[0]}; make "
            "the pseudo masks of this image again."
        )
    return Instances(found.boxes, found.labels, decode_masks(found.rles, size))


def collate(views: Sequence[View], side: int | None = None) -> WeakSamBatch:
    """Views padded to ``side``, or to the largest of them."""
    sizes = [(view.pixels.shape[1], view.pixels.shape[2]) for view in views]
    height, width = (side, side) if side is not None else (max(size[axis] for size in sizes) for axis in (0, 1))
    margins = [(0, width - size[1], 0, height - size[0]) for size in sizes]
    pixels = torch.stack([functional.pad(v.pixels, m) for v, m in zip(views, margins, strict=True)])
    return WeakSamBatch(pixels, sizes, [padded(view.target, (height, width)) for view in views])


def padded(target: Target, size: tuple[int, int]) -> Target:
    """A target whose masks are padded at the bottom and the right to ``size``."""
    if target.masks is None:
        return target
    margins = (0, size[1] - target.masks.shape[2], 0, size[0] - target.masks.shape[1])
    return target._replace(masks=functional.pad(target.masks, margins))
