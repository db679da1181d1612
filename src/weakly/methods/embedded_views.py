"""Embeddings of whole images as training data, as they are or mirrored: what FMA-WSSS and WeakSAM share of it.

A view is a whole image in the frozen segmenter's frame of S x S pixels. Both versions are encoded once, and lie in the
feature store.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, Self

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset as TorchDataset

from weakly.data.dataset import Dataset
from weakly.foundation.features import Features
from weakly.foundation.promptable import Frame, PromptableSegmenter
from weakly.labels import Sample
from weakly.methods.base import Skipped, Workspace
from weakly.methods.stored_views import gather_views, image_views, store_views


class Encoded(NamedTuple):
    """Those of some images that can be read.

    Attributes:
        features: as they are and, if they are to be, mirrored.
        samples: the images.
        kept: which of the images they are.
        skipped: the others, and why.
    """

    features: tuple[Features, ...]
    samples: tuple[Sample, ...]
    kept: tuple[int, ...]
    skipped: tuple[Skipped, ...]


class Drawn(NamedTuple):
    """Views of B images.

    Attributes:
        embeddings: (B, K, h, w) float32.
        rows: which image each shows.
        mirrored: whether it shows it mirrored.
    """

    embeddings: Tensor
    rows: list[int]
    mirrored: list[bool]


@dataclass(frozen=True, eq=False, kw_only=True)
class EmbeddedViews(TorchDataset[Any], ABC):
    """Embeddings of n images, collated a batch at a time by whoever adds the targets.

    Without a seed, index i is image i as it is. With a seed, index ``v * n + i`` is view v of image i, mirrored or not
    as (seed, v, i) decide.

    Attributes:
        features: of the n images: as they are and, if there are two, mirrored.
        samples: the n images.
        frame: the segmenter's, of an image of a size (height, width).
        flip: probability of a mirrored view.
        seed: of random views; None: the images as they are.
        skipped: images that could not be used and are not among the n.
    """

    features: tuple[Features, ...]
    samples: tuple[Sample, ...]
    frame: Callable[[tuple[int, int]], Frame]
    flip: float = 0.0
    seed: int | None = None
    skipped: tuple[Skipped, ...] = ()

    def __len__(self) -> int:
        return len(self.samples)

    def random_views(self, seed: int) -> Self:
        """The same images in random views."""
        return replace(self, seed=seed)

    def __getitem__(self, index: int) -> Any:
        return self.__getitems__([index])

    @abstractmethod
    def __getitems__(self, indices: Sequence[int]) -> Any:
        """The batch of these indices, in this order."""

    def draw(self, indices: Sequence[int]) -> Drawn:
        """The views of these indices, in this order.

        Raises:
            IndexError: there is no such image.
        """
        mirrored, rows = [self._mirrored(index) for index in indices], [index % len(self) for index in indices]
        return Drawn(gather_views(self.features, torch.tensor(mirrored), torch.tensor(rows)), rows, mirrored)

    def _mirrored(self, index: int) -> bool:
        number, row = divmod(index, len(self))
        if self.seed is None and number:
            raise IndexError(f"index {index} of {len(self)} images")
        return self.seed is not None and bool(np.random.default_rng((self.seed, number, row)).random() < self.flip)


def encode_views(
    segmenter: PromptableSegmenter, dataset: Dataset, images: Sequence[Path], flip: float, workspace: Workspace
) -> Encoded:
    """What students look at: encoded where the store lacks it, mirrored too if views are to be.

    Args:
        segmenter: whose embeddings.
        dataset: the images are from.
        images: files.
        flip: probability of a mirrored view.
        workspace: where the feature store is.

    Raises:
        UserError: no image can be read, or the disk is full.
    """
    rows = {sample.path: row for row, sample in enumerate(dataset)}
    usable = dataset.select([rows[path] for path in images])
    views = image_views((False, True) if flip > 0 else (False,))
    stored = store_views(segmenter, usable, views, workspace, channels=segmenter.student_channels)
    return Encoded(stored.features, tuple(usable[row] for row in stored.kept), stored.kept, stored.skipped)
