"""The pictures the bundled SAM learns from: pre-training worlds and dead leaves, rendered once and kept on disk."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from multiprocessing import get_context
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from weakly.data.menagerie.scene import render_scene
from weakly.foundation.pretraining.dead_leaves import Picture, dead_leaves

PRETRAINING_SEED = 730_001
"""Seed of the pre-training worlds; every downstream world uses another (``weakly data make`` refuses this one)."""

CHUNK = 64


def world(seed: int, index: int, size: int) -> Picture:
    """A rendered scene with its names taken away: region ids of objects, parts and sub-parts."""
    scene = render_scene(seed, index, size)
    return Picture(scene.image, np.stack([scene.object_map, scene.part_map, scene.detail_map]).astype(np.uint8))


SOURCES: dict[str, Callable[[int, int, int], Picture]] = {"leaves": dead_leaves, "worlds": world}


@dataclass(frozen=True, eq=False)
class PictureBank:
    """Rendered pictures in memory: 6 bytes per pixel, 384 KiB each at 256 px.

    Attributes:
        images: (N, S, S, 3) uint8 RGB.
        levels: (N, 3, S, S) uint8 region ids of wholes, parts and sub-parts.
    """

    images: NDArray[np.uint8]
    levels: NDArray[np.uint8]

    def __len__(self) -> int:
        return len(self.images)


def render_bank(
    folder: Path,
    source: str,
    count: int,
    *,
    seed: int = PRETRAINING_SEED,
    size: int = 256,
    workers: int = 1,
    progress: Callable[[int, int], None] = lambda _done, _total: None,
) -> PictureBank:
    """Render ``count`` pictures, 6 bytes per pixel each; chunks that exist are kept, so a killed run goes on.

    Args:
        folder: where the chunks lie; one folder per (source, seed, size) is made inside.
        source: ``"leaves"`` or ``"worlds"``.
        count: number of pictures, rounded up to a whole chunk of 64.
        seed: the world's seed.
        size: S, pixels.
        workers: processes; one renders in this process.
        progress: called with (pictures done, pictures wanted).
    """
    home = folder / f"{source}-{seed}-{size}"
    home.mkdir(parents=True, exist_ok=True)
    chunks = -(-count // CHUNK)
    missing = [chunk for chunk in range(chunks) if not _chunk_file(home, chunk).is_file()]
    progress((chunks - len(missing)) * CHUNK, chunks * CHUNK)
    jobs = [(home, source, chunk, seed, size) for chunk in missing]
    with ExitStack() as stack:
        run: Callable[..., Iterable[None]] = map
        if workers > 1:
            run = stack.enter_context(ProcessPoolExecutor(workers, mp_context=get_context("spawn"))).map
        for done, _ in enumerate(run(_render_chunk, jobs), start=1):
            progress((chunks - len(missing) + done) * CHUNK, chunks * CHUNK)
    data = np.concatenate([np.load(_chunk_file(home, chunk)) for chunk in range(chunks)])
    return PictureBank(data[:, :3].transpose(0, 2, 3, 1), data[:, 3:])


def _chunk_file(home: Path, chunk: int) -> Path:
    return home / f"{chunk:06d}.npy"


def _render_chunk(job: tuple[Path, str, int, int, int]) -> None:
    home, source, chunk, seed, size = job
    cv2.setNumThreads(1)
    data = np.empty((CHUNK, 6, size, size), np.uint8)
    for row in range(CHUNK):
        made = SOURCES[source](seed, chunk * CHUNK + row, size)
        data[row, :3] = made.image.transpose(2, 0, 1)
        data[row, 3:] = made.levels
    target = _chunk_file(home, chunk)
    temporary = target.with_suffix(f".{os.getpid()}.tmp")
    with temporary.open("wb") as file:
        np.save(file, data)
    temporary.replace(target)
