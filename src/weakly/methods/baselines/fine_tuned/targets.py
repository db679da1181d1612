"""Training images in the place of stored embeddings: a trained encoder's features cannot be kept."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from weakly.data.dataset import Dataset
from weakly.data.images import read_image
from weakly.errors import UserError
from weakly.foundation.feature_build import ReadImage
from weakly.foundation.features import Features
from weakly.methods.base import Skipped, Workspace

log = logging.getLogger(__name__)

Preprocess = Callable[[Sequence[NDArray[np.uint8]]], Tensor]
"""(H, W, 3) uint8 RGB images to one (B, 3, S, S) float32 input."""


class Images(Features):
    """Preprocessed images, read when a batch asks for them: "features" that no encoder has seen yet.

    Memory: a batch, ``B * 3 * S * S * 4`` bytes.

    Args:
        paths: of n image files that can be read.
        read: how a file is read; from threads.
        preprocess: of the segmenter.
    """

    resident = False

    def __init__(self, paths: Sequence[Path], read: ReadImage, preprocess: Preprocess) -> None:
        self._paths = tuple(paths)
        self._read = read
        self._preprocess = preprocess

    def __len__(self) -> int:
        return len(self._paths)

    def __getitem__(self, indices: Tensor) -> Tensor:
        """(B,) int64 positions among the paths to (B, 3, S, S) float32 on the CPU.

        Raises:
            UserError: an image can no longer be read.
        """
        chosen = indices.tolist()
        with ThreadPoolExecutor(_threads(len(chosen))) as pool:
            return torch.cat([self._preprocess([]), *pool.map(self._one, chosen)])  # none of them is a batch, too

    def _one(self, index: int) -> Tensor:
        return self._preprocess([self._read(self._paths[index])])


def readable(dataset: Dataset, workspace: Workspace) -> tuple[tuple[int, ...], tuple[Skipped, ...]]:
    """Indices of the images that can be decoded, and the others with the reason; every file is decoded once.

    Raises:
        UserError: none can be.
    """
    reasons: list[str | None] = []
    with ThreadPoolExecutor(_threads(len(dataset))) as pool:
        for reason in pool.map(_fault, [sample.path for sample in dataset]):
            reasons.append(reason)
            workspace.progress(f"images {dataset.split}", len(reasons), len(dataset))
    kept = tuple(index for index, reason in enumerate(reasons) if reason is None)
    if not kept:
        raise UserError(f"No image of {dataset.name} ({dataset.split}) can be read; run `weakly data check` on it.")
    skipped = tuple(
        Skipped(sample.image_id, sample.path, reason)
        for sample, reason in zip(dataset, reasons, strict=True)
        if reason is not None
    )
    for one in skipped:
        log.warning("Left out of training: %s", one.reason)
    return kept, skipped


def _fault(path: Path) -> str | None:
    """Why a file cannot be decoded."""
    try:
        read_image(path)
    except UserError as error:
        return str(error)
    return None


def _threads(jobs: int) -> int:
    return max(1, min(jobs, os.cpu_count() or 1))
