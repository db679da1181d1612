"""Filling a feature store: whole chunks of images, read ahead, encoded in fixed batches, written atomically."""

from __future__ import annotations

import errno
import shutil
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from weakly.errors import UserError
from weakly.foundation import feature_codec as codec
from weakly.foundation.feature_codec import Coded, Drift
from weakly.foundation.feature_index import FeatureIndex
from weakly.foundation.feature_shards import Claims, shard_id, write_shard
from weakly.foundation.image_keys import Stamp, stamp
from weakly.foundation.promptable import PromptableSegmenter

READERS = 2
"""Threads that read and resize the next batch while the current one is encoded."""

_NO_ROOM = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}

ReadImage = Callable[[Path], NDArray[np.uint8]]
Progress = Callable[[int, int], None]


@dataclass(eq=False)
class Build:
    """One run over a list of images.

    Attributes:
        index: the store's shards; grows as chunks are written.
        segmenter: the encoder.
        sources: path of every key, and the file's stamp when its key was computed.
        read: path to (H, W, 3) uint8 RGB; raises UserError.
        chunk: images per shard.
        batch_size: images per call of the encoder.
        progress: told (images done, images in all).
        encoded: images that went through the encoder so far.
        stored: images whose features were written so far.
        failed: reason for every key that has no features.
    """

    index: FeatureIndex
    segmenter: PromptableSegmenter
    sources: Mapping[str, tuple[Path, Stamp]]
    read: ReadImage
    chunk: int
    batch_size: int
    progress: Progress
    encoded: int = 0
    stored: int = 0
    failed: dict[str, str] = field(default_factory=dict)

    def run(self, wanted: Sequence[str]) -> None:
        """Encode what is missing of the distinct keys ``wanted``.

        Chunks that another process works on come last, when they are likely to be there.

        Raises:
            UserError: the disk is full or cannot be written.
        """
        index = self.index
        index.refresh()
        missing = sum(key not in index for key in wanted)
        self.progress(len(wanted) - missing, len(wanted))
        if not missing:
            return
        self._need_room(missing)
        pending = [chunk for chunk in _cut(wanted, self.chunk) if any(key not in index for key in chunk)]
        with ThreadPoolExecutor(READERS) as pool, self._claims() as claims:
            for wait in (False, True):
                postponed = []
                for chunk in pending:
                    with claims.claim(shard_id(chunk), wait=wait) as mine:
                        if not mine:
                            postponed.append(chunk)
                            continue
                        index.refresh()
                        self._encode_chunk([key for key in chunk if key not in index], wanted, pool)
                pending = postponed

    def _encode_chunk(self, keys: list[str], wanted: Sequence[str], pool: ThreadPoolExecutor) -> None:
        """Encode ``keys`` and write them as one shard; images that cannot be read are left out and noted."""
        missing = sum(key not in self.index and key not in self.failed for key in wanted)
        done = len(wanted) - missing
        kept: list[str] = []
        parts: list[Coded] = []
        drift = Drift()
        for images in self._read_ahead(keys, pool):
            good, coded, batch_drift = self._encode_batch(images)
            kept += good
            parts.append(coded)
            drift += batch_drift
            done += len(images)
            self.progress(done, len(wanted))
        if not kept:
            return
        coded = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
        parts.clear()
        try:
            path = write_shard(self.index.folder, kept, coded, drift)
        except OSError as error:
            raise self._cannot_write(error, missing) from error
        self.index.add(path)
        self.stored += len(kept)

    def _read_ahead(self, keys: Sequence[str], pool: ThreadPoolExecutor) -> Iterator[dict[str, Future[Tensor | str]]]:
        """Batches in order; while one is used, the next is read. At most two are in memory."""
        ahead: deque[dict[str, Future[Tensor | str]]] = deque()
        for batch in _cut(keys, self.batch_size):
            ahead.append({key: pool.submit(self._read_one, key) for key in batch})
            if len(ahead) > 1:
                yield ahead.popleft()
        yield from ahead

    def _read_one(self, key: str) -> Tensor | str:
        """(1, 3, S, S) network input of an image, or why there is none."""
        path, before = self.sources[key]
        try:
            pixels = self.segmenter.preprocess([self.read(path)])
            changed = stamp(path) != before
        except UserError as error:
            return str(error)
        except OSError as error:
            return f"{path} cannot be read ({error.strerror or error}); restore the file or drop its record."
        return f"{path} changed while it was read; run again when it is complete." if changed else pixels

    def _encode_batch(self, images: Mapping[str, Future[Tensor | str]]) -> tuple[list[str], Coded, Drift]:
        """Keys, coded features and drift of the images that could be read and encoded."""
        index = self.index
        inputs = {key: future.result() for key, future in images.items()}
        self.failed |= {key: reason for key, reason in inputs.items() if isinstance(reason, str)}
        pixels = {key: tensor for key, tensor in inputs.items() if isinstance(tensor, Tensor)}
        if not pixels:
            return [], codec.empty(index.dtype, index.shape, 0), Drift()
        with torch.inference_mode():
            batch = torch.cat(list(pixels.values())).to(self.segmenter.device)
            exact = self.segmenter.encode(batch).float().cpu()
            coded = codec.encode(exact, index.dtype)
            decoded = codec.decode(coded)
            finite = decoded.isfinite().flatten(1).all(1)
        self.encoded += len(pixels)
        flags = finite.tolist()
        for key, good in zip(pixels, flags, strict=True):
            if not good:
                path = self.sources[key][0]
                self.failed[key] = f"{path} has features that are not finite in {index.dtype}; use float32 or drop it."
        keys = [key for key, good in zip(pixels, flags, strict=True) if good]
        return keys, codec.rows(coded, finite.nonzero()[:, 0]), codec.difference(exact[finite], decoded[finite])

    def _claims(self) -> Claims:
        try:
            return Claims(self.index.folder / "claims")
        except OSError as error:
            raise self._cannot_write(error, 0) from error

    def _need_room(self, images: int) -> None:
        """Say so before hours of encoding if the disk cannot take the result."""
        free = shutil.disk_usage(self.index.folder).free
        if free < images * self.index.image_bytes:
            raise self._cannot_write(OSError(errno.ENOSPC, f"{free:,} are free"), images)

    def _cannot_write(self, error: OSError, images: int) -> UserError:
        folder = self.index.folder
        if error.errno not in _NO_ROOM:
            return UserError(f"{folder} cannot be written ({error.strerror or error}); make it writable and run again.")
        return UserError(
            f"{folder} has no room for features: {images * self.index.image_bytes:,} more bytes are needed "
            f"({error.strerror}); free space or choose another features folder and run again, what is stored is kept."
        )


def _cut(keys: Sequence[str], length: int) -> list[list[str]]:
    """Consecutive pieces of ``length`` keys; the last may be shorter."""
    return [list(keys[start : start + length]) for start in range(0, len(keys), length)]
