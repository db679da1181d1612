"""The inference side of semantic segmenters: a network on whole images, at one scale or several.

Symbols: C categories and background with index C, (H, W) size of an image, (h, w) the size its probabilities are held
at: (H, W), but for images so large that (C + 1) * H * W exceeds :data:`MAX_VALUES`. Memory beside the network's own:
two to three times that many float32 values.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from weakly.errors import UserError
from weakly.methods.base import ImageSource, Predictor, Skipped
from weakly.methods.image_views import check_sides, fit_size, resize_image, resize_labels, to_pixels
from weakly.methods.semantic_network import SemanticNetwork
from weakly.segmentation import Segmentation
from weakly.vocabulary import Vocabulary

MAX_VALUES = 1 << 27
"""Probabilities held at once: 512 MiB of float32, 6.4 megapixels of 21 classes."""

Refine = Callable[[NDArray[np.uint8], Tensor], NDArray[Any] | Tensor]
"""Post-processing: (h, w, 3) uint8 RGB and (C + 1, h, w) float32 probabilities to (h, w) categories, background = C."""


@dataclass(frozen=True)
class Inference:
    """At which sizes an image is looked at; their probabilities are averaged.

    Attributes:
        short: short side of the resized image in pixels, unless its long side would exceed ``long``.
        long: largest long side in pixels.
        scales: factors on that size.
        flip: also look at the mirrored image.
    """

    short: int = 512
    long: int = 2048
    scales: tuple[float, ...] = (1.0,)
    flip: bool = False

    def __post_init__(self) -> None:
        check_sides("inference", self.short, self.long)
        if not self.scales or min(self.scales) <= 0:
            raise UserError(f"inference.scales is {list(self.scales)}; give at least one number, all above 0.")


class SemanticPredictor(Predictor):
    """A semantic network on whole images.

    Args:
        network: trained; moved to ``device``.
        vocabulary: C categories.
        inference: at which sizes an image is looked at.
        method: whose network it is; where its masks say they are from.
        refine: post-processing of the probabilities; None: the likeliest class of every pixel.
        device: of the network.
    """

    def __init__(
        self,
        network: SemanticNetwork,
        vocabulary: Vocabulary,
        inference: Inference = Inference(),
        *,
        method: str,
        refine: Refine | None = None,
        device: str = "cpu",
    ) -> None:
        self.network = network.to(device).eval()
        self.vocabulary = vocabulary
        self.inference = inference
        self.method = method
        self.refine = refine
        self.device = device

    def predict(self, sources: Sequence[ImageSource], *, batch_size: int = 8) -> Iterator[Segmentation | Skipped]:
        """One result per source, in order; an image that shows background alone gives an empty segmentation.

        Args:
            sources: images; those that cannot be read give :class:`Skipped`.
            batch_size: images that go through the network at once, where they are resized to the same size.
        """
        for read in _read_ahead(sources, batch_size):
            results = iter(self.segment([image for image in read if not isinstance(image, Skipped)]))
            for item in read:
                yield item if isinstance(item, Skipped) else next(results)

    def segment(self, images: Sequence[NDArray[np.uint8]]) -> list[Segmentation]:
        """Segmentations of (H, W, 3) uint8 RGB images, in order."""
        results: dict[int, Segmentation] = {}
        for rows in self._batches(images):
            batch = [images[row] for row in rows]
            for row, image, probabilities in zip(rows, batch, self.probabilities(batch), strict=True):
                results[row] = self._decide(image, probabilities)
        return [results[row] for row in range(len(images))]

    @torch.no_grad()
    def probabilities(self, images: Sequence[NDArray[np.uint8]]) -> list[Tensor]:
        """(C + 1, h, w) float32 class probabilities of images that are resized to one size: the mean over all views.

        Mirrored outputs are mirrored back first.
        """
        setting = self.inference
        base = fit_size(_size(images[0]), setting.short, setting.long)
        sizes = [held_size(_size(image), len(self.vocabulary) + 1, MAX_VALUES) for image in images]
        sums: list[Tensor | None] = [None] * len(images)
        for scale in setting.scales:
            size = (max(1, round(base[0] * scale)), max(1, round(base[1] * scale)))
            pixels = torch.stack([to_pixels(resize_image(image, size)) for image in images]).to(self.device)
            for mirrored in (False, True)[: 1 + setting.flip]:
                outputs = self.network(pixels.flip(-1)).flip(-1) if mirrored else self.network(pixels)
                for i, size_of_one in enumerate(sizes):
                    view = self.network.probabilities(outputs[i : i + 1], size_of_one)[0]
                    before = sums[i]
                    sums[i] = view if before is None else before.add_(view)
        views = len(setting.scales) * (1 + setting.flip)
        return [one / views for one in sums if one is not None]

    def _batches(self, images: Sequence[NDArray[np.uint8]]) -> Iterator[list[int]]:
        """Positions of images that are resized to one size, so few at a time that their probabilities fit."""
        groups: defaultdict[tuple[int, int], list[int]] = defaultdict(list)
        for row, image in enumerate(images):
            groups[fit_size(_size(image), self.inference.short, self.inference.long)].append(row)
        for rows in groups.values():
            largest = max(math.prod(_size(images[row])) for row in rows)
            at_once = max(1, MAX_VALUES // (largest * (len(self.vocabulary) + 1)))
            yield from (rows[start : start + at_once] for start in range(0, len(rows), at_once))

    def _decide(self, image: NDArray[np.uint8], probabilities: Tensor) -> Segmentation:
        return decide(probabilities, _size(image), self.method, self.refine, lambda: image)


def decide(
    probabilities: Tensor,
    size: tuple[int, int],
    method: str,
    refine: Refine | None,
    read: Callable[[], NDArray[np.uint8]],
) -> Segmentation:
    """The likeliest class of every pixel, or what post-processing makes of it.

    Args:
        probabilities: (C + 1, h, w).
        size: (height, width) of the image; larger than (h, w) for very large images alone.
        method: what made them.
        refine: post-processing, if any.
        read: gives the image, (H, W, 3) uint8 RGB, to post-processing.
    """
    if refine is None:
        return to_segmentation(probabilities.argmax(0), probabilities, size, method)
    held: tuple[int, int] = (probabilities.shape[1], probabilities.shape[2])
    labels = torch.as_tensor(refine(resize_image(read(), held), probabilities), device=probabilities.device)
    if labels.shape != held or not 0 <= labels.min() <= labels.max() < len(probabilities):
        raise ValueError(f"refine must return (h, w) categories up to C={len(probabilities) - 1}")
    return to_segmentation(labels.long(), probabilities, size, method)


def held_size(size: tuple[int, int], classes: int, limit: int) -> tuple[int, int]:
    """``size``, or where its probabilities of ``classes`` would exceed ``limit`` values, the largest that does not."""
    factor = math.sqrt(limit / (size[0] * size[1] * classes))
    return size if factor >= 1 else (max(1, int(size[0] * factor)), max(1, int(size[1] * factor)))


def to_segmentation(labels: Tensor, probabilities: Tensor, size: tuple[int, int], method: str) -> Segmentation:
    """One mask per category present, and the label map.

    Args:
        labels: (h, w) int64 categories, background = C.
        probabilities: (C + 1, h, w); the score of a mask is the mean probability of its category over it.
        size: (height, width) of the image; larger than (h, w) for very large images alone.
        method: what made them.
    """
    background = len(probabilities) - 1
    chosen = probabilities.gather(0, labels[None])[0].flatten().double()
    counts = torch.bincount(labels.flatten(), minlength=background + 1)
    sums = torch.zeros(background + 1, dtype=torch.float64, device=chosen.device)
    sums.scatter_add_(0, labels.flatten(), chosen)
    scores = (sums / counts.clamp(min=1)).clamp(0, 1).cpu().numpy()
    kind = np.uint8 if background < 256 else np.uint16
    label_map = resize_labels(labels.cpu().numpy().astype(kind), size)
    present = np.unique(label_map)
    present = present[present != background].astype(np.int64)
    return Segmentation.from_masks(
        label_map == present[:, None, None],
        present,
        scores[present],
        [{"method": method}] * len(present),
        label_map,
    )


def _size(image: NDArray[np.uint8]) -> tuple[int, int]:
    return image.shape[0], image.shape[1]


def _read_ahead(sources: Sequence[ImageSource], batch_size: int) -> Iterator[list[NDArray[np.uint8] | Skipped]]:
    """``batch_size`` sources at a time; the next are read while the caller works."""
    chunks = [sources[start : start + batch_size] for start in range(0, len(sources), batch_size)]
    with ThreadPoolExecutor(1) as pool:
        coming = [pool.submit(_read, chunk) for chunk in chunks[:1]]
        for following in [*chunks[1:], None]:
            if not coming:
                return
            read = coming.pop().result()
            if following is not None:
                coming.append(pool.submit(_read, following))
            yield read


def _read(sources: Sequence[ImageSource]) -> list[NDArray[np.uint8] | Skipped]:
    return [_read_one(source) for source in sources]


def _read_one(source: ImageSource) -> NDArray[np.uint8] | Skipped:
    try:
        return source.read()
    except UserError as error:
        return Skipped(source.image_id, source.path, str(error))
