"""Tagged images as the clue networks see them: kept in memory, cut into random views, batch by batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms import v2  # type: ignore[import-untyped]

from weakly.data.images import read_image
from weakly.errors import UserError
from weakly.methods.sampling import epoch_order

READ_TOGETHER = 32
"""Images read by several threads before the budget is looked at again."""


@dataclass(frozen=True)
class ClueAugmentation:
    """Random training views (spec weaksam, section 1.2).

    Attributes:
        crop: side of the square view in pixels.
        scale: range of the part of an image's area that a view shows.
        flip: probability of mirroring left to right.
        jitter: largest change of brightness, contrast and saturation; 0: none.
        rand_augment: magnitude of RandAugment, 0 to 30; 0: none. The released training has 9.
        erasing: probability that a rectangle is replaced by noise.
    """

    crop: int = 224
    scale: tuple[float, float] = (0.08, 1.0)
    flip: float = 0.5
    jitter: float = 0.4
    rand_augment: int = 0
    erasing: float = 0.25

    def __post_init__(self) -> None:
        if self.crop < 1:
            raise UserError(f"augmentation.crop is {self.crop}; give a side of at least 1 pixel.")
        if not 0 < self.scale[0] <= self.scale[1] <= 1:
            raise UserError(f"augmentation.scale is {list(self.scale)}; give two parts in (0, 1], the smaller first.")
        for name in ("flip", "jitter", "erasing"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"augmentation.{name} is {getattr(self, name)}; give a number in [0, 1].")
        if not 0 <= self.rand_augment <= 30:
            raise UserError(f"augmentation.rand_augment is {self.rand_augment}; give a magnitude from 0 to 30.")

    def transform(self) -> v2.Transform:
        """(3, H, W) uint8 RGB to (3, crop, crop) float32, normalised; draws from torch's default generator."""
        steps: list[torch.nn.Module] = [
            v2.RandomResizedCrop(self.crop, self.scale, interpolation=v2.InterpolationMode.BICUBIC, antialias=True),
            v2.RandomHorizontalFlip(self.flip),
        ]
        if self.rand_augment:
            steps.append(v2.RandAugment(magnitude=self.rand_augment))
        if self.jitter:
            steps.append(v2.ColorJitter(self.jitter, self.jitter, self.jitter))
        steps += [
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(list(IMAGENET_DEFAULT_MEAN), list(IMAGENET_DEFAULT_STD)),
            v2.RandomErasing(self.erasing, value="random"),
        ]
        return v2.Compose(steps)


class ImageBank:
    """Images as (3, H, W) uint8 RGB tensors.

    Images are read once, in order, until the budget is spent; the others are read whenever they are asked for. Both
    give the same pixels.

    Args:
        paths: n image files that can be read.
        side: images whose long side is larger are shrunk to it, bicubic; None: never.
        budget: bytes of pixels that may be kept in memory.
        progress: called with (images read, images in all).

    Raises:
        UserError: an image cannot be read.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        *,
        side: int | None = 640,
        budget: int = 4 << 30,
        progress: Callable[[int, int], None] | None = None,
    ) -> None:
        self.paths, self.side = tuple(paths), side
        self._kept: list[Tensor] = []
        free = budget
        with ThreadPoolExecutor() as pool:
            for start in range(0, len(self.paths), READ_TOGETHER):
                for image in pool.map(self._read, self.paths[start : start + READ_TOGETHER]):
                    free -= image.nbytes
                    if free >= 0:
                        self._kept.append(image)
                if progress is not None:
                    progress(min(start + READ_TOGETHER, len(self.paths)), len(self.paths))
                if free < 0:
                    break

    def __len__(self) -> int:
        return len(self.paths)

    @property
    def kept(self) -> int:
        """How many images are in memory: the first ones."""
        return len(self._kept)

    def image(self, index: int) -> Tensor:
        """(3, H, W) uint8 RGB.

        Raises:
            UserError: it is not in memory and cannot be read any more.
        """
        return self._kept[index] if index < self.kept else self._read(self.paths[index])

    def _read(self, path: Path) -> Tensor:
        image = read_image(path)
        factor = 1.0 if self.side is None else min(1.0, self.side / max(image.shape[:2]))
        return as_tensor(resized(image, factor) if factor < 1 else image)


@dataclass(frozen=True, eq=False)
class TaggedImages:
    """What clue networks learn from.

    Attributes:
        images: n images.
        tags: (n, C) bool; a row without any is an image that shows no class.
    """

    images: ImageBank
    tags: Tensor

    def __post_init__(self) -> None:
        if len(self.images) != len(self.tags):
            raise ValueError(f"{len(self.images)} images but {len(self.tags)} rows of tags")
        if len(self.images) == 0:
            raise UserError("There is no tagged image to learn from; check the split.")

    def __len__(self) -> int:
        return len(self.images)


class ClueBatches(Dataset[tuple[Tensor, Tensor]]):
    """Batch ``step`` of a training: ((B, 3, S, S) float32 normalised pixels, (B, C) float32 tags).

    A batch is a pure function of the seed and its number: epochs are shuffled, incomplete batches left out, and B is
    the batch size, or n where there are fewer images.

    Args:
        data: n images.
        augmentation: of the views.
        batch: images per batch.
        seed: of all of it.
    """

    def __init__(self, data: TaggedImages, augmentation: ClueAugmentation, *, batch: int, seed: int) -> None:
        self.batch, self.seed = min(batch, len(data)), seed
        self.per_epoch = len(data) // self.batch
        self._data, self._transform = data, augmentation.transform()

    def __getitem__(self, step: int) -> tuple[Tensor, Tensor]:
        chosen = self.indices(step)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(step_seed(self.seed, step))
            views = [self._transform(self._data.images.image(index)) for index in chosen.tolist()]
        return torch.stack(views), self._data.tags[chosen].float()

    def indices(self, step: int) -> Tensor:
        """(B,) int64 images of a batch."""
        epoch, place = divmod(step, self.per_epoch)
        order = _order(len(self._data), self.seed, epoch)
        return order[place * self.batch : (place + 1) * self.batch]


def step_seed(seed: int, step: int) -> int:
    """The seed of everything random in an update."""
    return int(np.random.SeedSequence((seed, step)).generate_state(1, np.uint64)[0] >> 1)


def resized(image: NDArray[np.uint8], factor: float, least: int = 1) -> NDArray[np.uint8]:
    """A (H, W, 3) uint8 image with its sides times ``factor``, rounded, at least ``least``; bicubic."""
    height, width = (max(least, round(side * factor)) for side in image.shape[:2])
    if (height, width) == image.shape[:2]:
        return image
    return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BICUBIC))


def as_tensor(image: NDArray[np.uint8]) -> Tensor:
    """(H, W, 3) to a contiguous (3, H, W) uint8 tensor that shares no memory with it."""
    return torch.from_numpy(image.transpose(2, 0, 1).copy())


def normalised(images: Tensor) -> Tensor:
    """(..., 3, H, W) uint8 RGB to float32 with ImageNet's mean and deviation taken out."""
    pixels = images.float() / 255
    mean, std = (pixels.new_tensor(values)[:, None, None] for values in (IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD))
    return (pixels - mean) / std


@lru_cache(maxsize=2)
def _order(length: int, seed: int, epoch: int) -> Tensor:
    return epoch_order(length, seed=seed, epoch=epoch)
