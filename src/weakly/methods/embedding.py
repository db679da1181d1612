"""Image embeddings for prediction: from the feature store where it has them, else from the encoder."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from weakly.data.images import image_header
from weakly.errors import UserError
from weakly.foundation.features import FeatureStore
from weakly.foundation.promptable import Frame, PromptableSegmenter
from weakly.methods.base import ImageSource, Skipped


@dataclass(frozen=True)
class EmbeddingSource:
    """Whose embeddings a student looks at.

    Attributes:
        segmenter: the segmenter's name.
        fingerprint: of its weights and preprocessing.
        channels: K, of an embedding that are looked at, the first ones.
        side: S of the segmenter's frame, in whose pixels views are.
    """

    segmenter: str
    fingerprint: str
    channels: int
    side: int

    @classmethod
    def of(cls, segmenter: PromptableSegmenter) -> EmbeddingSource:
        """That of a segmenter."""
        return cls(segmenter.name, segmenter.fingerprint, segmenter.student_channels, segmenter.side)


class Embedded(NamedTuple):
    """A batch of images as the segmenter sees them.

    Attributes:
        frames: one per image that could be read, in order.
        embeddings: (B, C, h, w) float32, one row per frame.
        outcomes: one per source: the row of its image, or why there is none.
    """

    frames: list[Frame]
    embeddings: Tensor
    outcomes: list[int | Skipped]


@dataclass(frozen=True, eq=False)
class Embedder:
    """Encodes images, looking up those that were encoded before.

    Attributes:
        segmenter: the encoder.
        store: its features, if there is a store; only looked at.
    """

    segmenter: PromptableSegmenter
    store: FeatureStore | None = None

    def batches(self, sources: Sequence[ImageSource], batch_size: int) -> Iterator[Embedded]:
        """``batch_size`` sources at a time; the next files are read while the caller works. Memory: two batches."""
        chunks = [sources[start : start + batch_size] for start in range(0, len(sources), batch_size)]
        with ThreadPoolExecutor(1) as pool:
            coming = pool.submit(self._read, chunks[0]) if chunks else None
            for following in [*chunks[1:], None]:
                if coming is None:
                    return
                read = coming.result()
                coming = None if following is None else pool.submit(self._read, following)
                yield self._embed(read)

    def embedding(self, path: Path, image: NDArray[np.uint8]) -> Tensor:
        """(1, C, h, w) float32 of an image that has been read, (H, W, 3) uint8 RGB, from the file ``path`` if any."""
        key = None if self.store is None else self.store.keys([path])[0]
        return self._embed([self._stored(path, key) or image]).embeddings

    def _read(self, sources: Sequence[ImageSource]) -> list[_Stored | NDArray[np.uint8] | Skipped]:
        keys = [None] * len(sources) if self.store is None else self.store.keys([source.path for source in sources])
        return [self._read_one(source, key) for source, key in zip(sources, keys, strict=True)]

    def _read_one(self, source: ImageSource, key: str | None) -> _Stored | NDArray[np.uint8] | Skipped:
        try:
            return self._stored(source.path, key) or source.read()
        except UserError as error:
            return Skipped(source.image_id, source.path, str(error))

    def _stored(self, path: Path, key: str | None) -> _Stored | None:
        """The place of stored features; they are of the stored frame, so a file to be shown rotated has none."""
        if key is None or self.store is None or key not in self.store:
            return None
        header = image_header(path)
        return _Stored(key, header.size) if header.orientation == 1 else None

    @torch.no_grad()
    def _embed(self, read: Sequence[_Stored | NDArray[np.uint8] | Skipped]) -> Embedded:
        usable = [item for item in read if not isinstance(item, Skipped)]
        sizes = [item.size if isinstance(item, _Stored) else item.shape[:2] for item in usable]
        embeddings = torch.zeros(len(usable), *self.segmenter.embedding_shape, device=self.segmenter.device)
        fresh = {row: item for row, item in enumerate(usable) if not isinstance(item, _Stored)}
        if fresh:
            pixels = self.segmenter.preprocess(list(fresh.values())).to(self.segmenter.device)
            embeddings[list(fresh)] = self.segmenter.encode(pixels)
        known = {row: item.key for row, item in enumerate(usable) if isinstance(item, _Stored)}
        if known and self.store is not None:
            embeddings[list(known)] = self.store.get(list(known.values())).to(embeddings)
        rows = iter(range(len(usable)))
        outcomes = [item if isinstance(item, Skipped) else next(rows) for item in read]
        return Embedded([self.segmenter.frame((h, w)) for h, w in sizes], embeddings, outcomes)


class _Stored(NamedTuple):
    key: str
    size: tuple[int, int]


def find_store(root: Path, segmenter: PromptableSegmenter, dtype: str) -> FeatureStore | None:
    """The existing store of a segmenter's features of unchanged images, or None; nothing is made."""
    for description in sorted(root.glob(f"*-{dtype}/store.json")):
        try:
            store = FeatureStore.at(description.parent)
        except UserError:
            continue
        if store.identity.fingerprint == segmenter.fingerprint and store.identity.variant == "":
            return store
    return None
