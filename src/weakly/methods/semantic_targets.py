"""Label maps as training targets: PNGs in VOC's layout on disk, labels of the package in memory.

On disk value 0 is background, k is category k - 1 and 255 is void; in memory category k is k, background is C and 255
is void. Here, and nowhere else, one becomes the other.
"""

from __future__ import annotations

import io
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset as TorchDataset

from weakly.data.images import read_image
from weakly.errors import UserError
from weakly.files import write_atomic
from weakly.methods.base import Skipped
from weakly.methods.image_views import VOID, Augmentation, pad_view, plain_view, training_view
from weakly.vocabulary import Vocabulary

VOID_COLOUR = (224, 224, 192)
"""What VOC paints void pixels in."""

MAX_CATEGORIES = VOID - 1
"""Values 1..254 of a byte are left for categories."""


class SemanticBatch(NamedTuple):
    """B views of one size.

    Attributes:
        pixels: (B, 3, H, W) float32, normalised by ImageNet's mean and deviation.
        labels: (B, H, W) int64: category, C for background, 255 for pixels to ignore.
    """

    pixels: Tensor
    labels: Tensor


@dataclass(frozen=True, eq=False)
class SemanticData(TorchDataset[SemanticBatch]):
    """Images with their label maps, read and collated a batch at a time.

    Without a seed, index i is the whole image i, resized as for prediction. With a seed, index ``v * n + i`` is view v
    of image i, a random crop that depends on (seed, v, i) alone: the sampler draws v from the epoch, so a resumed run
    sees the views of an uninterrupted one.

    Attributes:
        images: n image files.
        label_maps: n label PNGs, of the sizes of their images.
        classes: C.
        augmentation: of random views; its ``short`` and ``long`` are also those of whole images.
        seed: of random views; None: whole images.
        skipped: images that could not be used and are not among the n.
    """

    images: tuple[Path, ...]
    label_maps: tuple[Path, ...]
    classes: int
    augmentation: Augmentation = field(default_factory=Augmentation)
    seed: int | None = None
    skipped: tuple[Skipped, ...] = ()

    def __post_init__(self) -> None:
        check_categories(self.classes)
        if len(self.images) != len(self.label_maps):
            raise ValueError(f"{len(self.images)} images but {len(self.label_maps)} label maps")

    def __len__(self) -> int:
        return len(self.images)

    def random_views(self, seed: int) -> SemanticData:
        """The same images in random views."""
        return replace(self, seed=seed)

    def __getitem__(self, index: int) -> SemanticBatch:
        return self.__getitems__([index])

    def __getitems__(self, indices: Sequence[int]) -> SemanticBatch:
        """The batch of these indices, in this order; smaller views are padded to the largest.

        Files are decoded by several threads; every view has a random generator of its own, so that their order does
        not matter.

        Raises:
            UserError: an image or its label map cannot be read, or they do not belong together.
        """
        with ThreadPoolExecutor(min(len(indices), os.cpu_count() or 1)) as pool:
            views = list(pool.map(self.view, indices))
        height, width = (max(labels.shape[axis] for _, labels in views) for axis in (0, 1))
        padded = [pad_view(pixels, labels, (height, width)) for pixels, labels in views]
        return SemanticBatch(
            torch.stack([pixels for pixels, _ in padded]), torch.stack([labels for _, labels in padded])
        )

    def view(self, index: int) -> tuple[Tensor, Tensor]:
        """Pixels (3, h, w) and labels (h, w) of one index."""
        number, row = divmod(index, len(self))
        if self.seed is None and number:
            raise IndexError(f"index {index} of {len(self)} images")
        image, labels = read_pair(self.images[row], self.label_maps[row], self.classes)
        if self.seed is None:
            return plain_view(image, labels, self.augmentation.short, self.augmentation.long)
        rng = np.random.default_rng((self.seed, number, row))
        return training_view(image, labels, self.augmentation, rng)


def read_pair(image: Path, label_map: Path, classes: int) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """(H, W, 3) uint8 RGB of an image and the (H, W) uint8 labels of its label map.

    Raises:
        UserError: one cannot be read, or the sizes differ.
    """
    pixels = read_image(image)
    return pixels, read_labels_of(image, (pixels.shape[0], pixels.shape[1]), label_map, classes)


def read_labels_of(image: Path, size: tuple[int, int], label_map: Path, classes: int) -> NDArray[np.uint8]:
    """(H, W) uint8 labels of an image of ``size`` (height, width).

    Raises:
        UserError: they cannot be read, or have another size.
    """
    labels = read_label_map(label_map, classes)
    if labels.shape != size:
        raise UserError(
            f"The label map {label_map} has {labels.shape[1]} x {labels.shape[0]} pixels, its image {image} "
            f"{size[1]} x {size[0]}; make the label maps of this image again."
        )
    return labels


def read_label_map(path: Path, classes: int) -> NDArray[np.uint8]:
    """(H, W) uint8 labels of a label PNG: background = C, 255 = void.

    Raises:
        UserError: it cannot be read, or holds a value that is no category.
    """
    stored = read_image(path, mode="index")
    known = (stored >= 0) & (stored <= classes) | (stored == VOID)
    if not known.all():
        raise UserError(
            f"The label map {path} holds the value {int(stored[~known][0])}, but there are {classes} categories; use "
            "the label maps and the category names of one dataset."
        )
    return stored_to_labels(stored.astype(np.uint8), classes)


def write_label_map(path: Path, labels: NDArray[np.uint8], vocabulary: Vocabulary) -> None:
    """Write (H, W) labels, background = C and 255 = void, as a palette PNG in VOC's layout, atomically.

    Raises:
        WeaklyError: the file cannot be written.
    """
    check_categories(len(vocabulary))
    palette = np.zeros((256, 3), np.uint8)
    palette[1 : len(vocabulary) + 1] = vocabulary.palette()[:-1]
    palette[VOID] = VOID_COLOUR
    picture = Image.fromarray(labels_to_stored(labels, len(vocabulary)))
    picture.putpalette(palette.tobytes())
    buffer = io.BytesIO()
    picture.save(buffer, "PNG")
    write_atomic(path, buffer.getvalue())


def stored_to_labels(stored: NDArray[np.uint8], classes: int) -> NDArray[np.uint8]:
    """(H, W) values of a label PNG to labels: 0 becomes C, k becomes k - 1, 255 stays."""
    lookup = np.full(256, VOID, np.uint8)
    lookup[0] = classes
    lookup[1 : classes + 1] = np.arange(classes)
    return lookup[stored]


def labels_to_stored(labels: NDArray[np.uint8], classes: int) -> NDArray[np.uint8]:
    """The inverse of :func:`stored_to_labels`."""
    lookup = np.full(256, VOID, np.uint8)
    lookup[:classes] = np.arange(1, classes + 1)
    lookup[classes] = 0
    return lookup[labels]


def check_categories(classes: int) -> None:
    """Refuse more categories than a byte can tell apart beside background and void.

    Raises:
        UserError: there are more than 254.
    """
    if classes > MAX_CATEGORIES:
        raise UserError(
            f"There are {classes} categories, but a label map tells at most {MAX_CATEGORIES} apart; leave some out."
        )
