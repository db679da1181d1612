"""What the weakly supervised detector is trained on: views of images with their tags and proposals.

Symbols: B views of an update, C categories, R proposals of an image or RoIs of a view: ``x0, y0, x1, y1`` in its
pixels, exclusive.
"""

from __future__ import annotations

import hashlib
import json
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from weakly.methods.fma.augment import fit_size, resize_image
from weakly.methods.sampling import epoch_order
from weakly.methods.weaksam.wsod_settings import WsodTraining


@dataclass(frozen=True, eq=False)
class WsodData:
    """Images with tags and proposals. Images without the one or the other teach nothing and are left out.

    Whoever made the proposals has read every image, so an image that cannot be read has none and is left out too.

    Attributes:
        keys: n names that tell the images' contents apart.
        readers: n functions that return (H, W, 3) uint8 RGB.
        tags: (n, C) bool.
        proposals: n arrays (R, 4) float32.
    """

    keys: Sequence[str]
    readers: Sequence[Callable[[], NDArray[np.uint8]]]
    tags: NDArray[np.bool_]
    proposals: Sequence[NDArray[np.float32]]

    def __post_init__(self) -> None:
        lengths = {len(self.keys), len(self.readers), len(self.tags), len(self.proposals)}
        if len(lengths) != 1:
            raise ValueError(f"keys, readers, tags and proposals of different lengths: {sorted(lengths)}")

    @cached_property
    def usable(self) -> NDArray[np.int64]:
        """(m,) indices of images with tags and proposals."""
        return np.flatnonzero(self.tags.any(1) & self._proposed)

    @cached_property
    def skipped(self) -> dict[str, list[int]]:
        """{reason: indices of the images that are left out for it}; images without both count as untagged."""
        tagged = self.tags.any(1)
        return {
            "no tags": np.flatnonzero(~tagged).tolist(),
            "no proposals": np.flatnonzero(tagged & ~self._proposed).tolist(),
        }

    @cached_property
    def digest(self) -> str:
        """Hex digest of keys, tags and proposals."""
        digest = hashlib.sha256(json.dumps(list(self.keys)).encode())
        digest.update(np.packbits(self.tags).tobytes())
        for boxes in self.proposals:
            digest.update(len(boxes).to_bytes(8, "little") + np.ascontiguousarray(boxes, np.float32).tobytes())
        return digest.hexdigest()

    @property
    def _proposed(self) -> NDArray[np.bool_]:
        return np.array([len(boxes) > 0 for boxes in self.proposals], bool)


class WsodBatch(NamedTuple):
    """Views of an update.

    Attributes:
        images: B tensors (3, h, w) uint8 RGB.
        boxes: B tensors (R, 4) float32 in pixels of the views.
        tags: (B, C) bool.
    """

    images: list[Tensor]
    boxes: list[Tensor]
    tags: Tensor


def load_batch(data: WsodData, step: int, training: WsodTraining) -> WsodBatch:
    """The views of update ``step``: shuffled epochs of the usable images, incomplete batches left out."""
    size = min(training.batch, len(data.usable))
    epoch, place = divmod(step, len(data.usable) // size)
    order = _order(len(data.usable), training.seed, epoch)[place * size : (place + 1) * size]
    chosen = data.usable[order]
    rng = np.random.default_rng([training.seed, step])
    views = [
        roi_view(
            data.readers[index](),
            data.proposals[index],
            int(rng.choice(training.sizes)),
            training.max_size,
            mirrored=bool(rng.random() < training.flip),
        )
        for index in chosen
    ]
    return WsodBatch([image for image, _ in views], [boxes for _, boxes in views], torch.from_numpy(data.tags[chosen]))


def read_batches(data: WsodData, training: WsodTraining, first: int) -> Iterator[WsodBatch]:
    """:func:`load_batch` of the updates from ``first`` on, a few read ahead of the one that is used."""
    with ThreadPoolExecutor(training.workers) as pool:
        ahead: deque[Future[WsodBatch]] = deque()
        try:
            for step in range(first, training.iterations):
                ahead.append(pool.submit(load_batch, data, step, training))
                if len(ahead) > training.workers:
                    yield ahead.popleft().result()
            while ahead:
                yield ahead.popleft().result()
        finally:
            for batch in ahead:
                batch.cancel()


def roi_view(
    image: NDArray[np.uint8], boxes: NDArray[np.float32], short: int, long: int, *, mirrored: bool
) -> tuple[Tensor, Tensor]:
    """An image and its RoIs at another size, and maybe mirrored left to right.

    Args:
        image: (H, W, 3) uint8 RGB.
        boxes: (R, 4).
        short: short side of the view, unless its long side would exceed ``long``.
        long: in pixels.
        mirrored: left to right.

    Returns:
        (3, h, w) uint8 and (R, 4) float32.
    """
    height, width = image.shape[:2]
    new_height, new_width = fit_size((height, width), short, long)
    resized = resize_image(image, (new_height, new_width))
    factor = np.array([new_width / width, new_height / height] * 2)
    scaled = torch.from_numpy((boxes * factor).astype(np.float32))
    pixels = torch.from_numpy(np.ascontiguousarray(resized.transpose(2, 0, 1)))
    return (pixels.flip(2), mirror(scaled, new_width)) if mirrored else (pixels, scaled)


def mirror(boxes: Tensor, width: int) -> Tensor:
    """(..., 4) boxes of the view mirrored left to right, ``width`` pixels wide."""
    x0, y0, x1, y1 = boxes.unbind(-1)
    return torch.stack([width - x1, y0, width - x0, y1], -1)


@lru_cache(maxsize=4)
def _order(images: int, seed: int, epoch: int) -> NDArray[np.int64]:
    return epoch_order(images, seed=seed, epoch=epoch).numpy()
