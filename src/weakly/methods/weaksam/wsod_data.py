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
from typing import NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from weakly.methods.image_views import fit_size, resize_image
from weakly.methods.sampling import epoch_order
from weakly.methods.weaksam.wsod_settings import WsodTraining


class RoiView(NamedTuple):
    """An image as a detector is shown it.

    Attributes:
        inputs: (3, h, w) uint8 RGB, or (R, E) float32 embeddings of crops.
        boxes: (R, 4) float32 in pixels of the view.
        size: (h, w) of the view.
    """

    inputs: Tensor
    boxes: Tensor
    size: tuple[int, int]


class RoiViews(Protocol):
    """An opened image with its proposals, in whatever view is asked for."""

    @property
    def size(self) -> tuple[int, int]:
        """(H, W) of the stored pixels."""

    def view(self, short: int, long: int, *, mirrored: bool) -> RoiView:
        """At a size of which the short side is ``short`` and the long one at most ``long``, maybe mirrored."""


@dataclass(frozen=True, eq=False)
class PixelViews:
    """The views of an image as pixels.

    Attributes:
        image: (H, W, 3) uint8 RGB.
        boxes: (R, 4) float32.
    """

    image: NDArray[np.uint8]
    boxes: NDArray[np.float32]

    @property
    def size(self) -> tuple[int, int]:
        """(H, W)."""
        return self.image.shape[0], self.image.shape[1]

    def view(self, short: int, long: int, *, mirrored: bool) -> RoiView:
        """See :func:`roi_view`."""
        return roi_view(self.image, self.boxes, short, long, mirrored=mirrored)


def open_pixels(read: Callable[[], NDArray[np.uint8]], boxes: NDArray[np.float32]) -> PixelViews:
    """An image that ``read`` gives, with its (R, 4) boxes."""
    return PixelViews(read(), boxes)


@dataclass(frozen=True, eq=False)
class WsodData:
    """Images with tags and proposals. Images without the one or the other teach nothing and are left out.

    Whoever made the proposals has read every image, so an image that cannot be read has none and is left out too.

    Attributes:
        keys: n names that tell the images' contents apart.
        readers: n functions that open an image.
        tags: (n, C) bool.
        proposals: n arrays (R, 4) float32.
    """

    keys: Sequence[str]
    readers: Sequence[Callable[[], RoiViews]]
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
        inputs: B tensors, each of a view's pixels or crops; see :class:`RoiView`.
        boxes: B tensors (R, 4) float32 in pixels of the views.
        tags: (B, C) bool.
    """

    inputs: list[Tensor]
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
        data.readers[index]().view(
            int(rng.choice(training.sizes)), training.max_size, mirrored=bool(rng.random() < training.flip)
        )
        for index in chosen
    ]
    tags = torch.from_numpy(data.tags[chosen])
    return WsodBatch([view.inputs for view in views], [view.boxes for view in views], tags)


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


def roi_view(image: NDArray[np.uint8], boxes: NDArray[np.float32], short: int, long: int, *, mirrored: bool) -> RoiView:
    """An image and its RoIs at another size, and maybe mirrored left to right.

    Args:
        image: (H, W, 3) uint8 RGB.
        boxes: (R, 4).
        short: short side of the view, unless its long side would exceed ``long``.
        long: in pixels.
        mirrored: left to right.
    """
    height, width = image.shape[:2]
    new_height, new_width = fit_size((height, width), short, long)
    resized = resize_image(image, (new_height, new_width))
    factor = np.array([new_width / width, new_height / height] * 2)
    scaled = torch.from_numpy((boxes * factor).astype(np.float32))
    pixels = torch.from_numpy(np.ascontiguousarray(resized.transpose(2, 0, 1)))
    if mirrored:
        pixels, scaled = pixels.flip(2), mirror(scaled, new_width)
    return RoiView(pixels, scaled, (new_height, new_width))


def mirror(boxes: Tensor, width: int) -> Tensor:
    """(..., 4) boxes of the view mirrored left to right, ``width`` pixels wide."""
    x0, y0, x1, y1 = boxes.unbind(-1)
    return torch.stack([width - x1, y0, width - x0, y1], -1)


@lru_cache(maxsize=4)
def _order(images: int, seed: int, epoch: int) -> NDArray[np.int64]:
    return epoch_order(images, seed=seed, epoch=epoch).numpy()
