"""A retrained student on whole images: instances at original size, whatever the student finds.

Instance heads give their own masks. Of detectors, each box prompts the frozen segmenter, or is its own mask; their
segmentations keep the predicted boxes, which need not be the tight extents of the masks; the provenance says so.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torchvision.ops import batched_nms  # type: ignore[import-untyped]

from weakly.errors import UserError
from weakly.foundation.features import FeatureStore
from weakly.foundation.promptable import PromptableSegmenter
from weakly.methods.base import ImageSource, Predictor, Skipped
from weakly.methods.embedding import Embedder
from weakly.methods.image_views import fit_size, resize_image, to_pixels
from weakly.methods.weaksam.detectors import Detections, Detector
from weakly.methods.weaksam.pseudo_masks import decode_boxes
from weakly.segmentation import Segmentation, box_masks, rle_areas, rle_boxes
from weakly.vocabulary import Vocabulary

PUBLISHED_SHORTS = (480, 576, 688, 864, 1000, 1800)
"""Short sides, mirrored and not, at which WeakSAM tests Faster R-CNN on VOC 2007, with a long side up to 2000."""


@dataclass(frozen=True)
class Inference:
    """At which sizes an image is looked at.

    Attributes:
        short: short sides of the resized images in pixels, unless the long side would exceed ``long``. With several,
            the detections of all of them are joined, which instance heads cannot.
        long: largest long side in pixels.
        flip: also look at the mirrored image; likewise for detectors alone.
        nms: joined detections of one category that overlap a better one with a larger IoU are left out.
        detections: of an image at most.
        boxes_to_masks: masks of detectors that find boxes alone: those of the ``segmenter``, or the filled ``box``.
    """

    short: tuple[int, ...] = (1024,)
    long: int = 1024
    flip: bool = False
    nms: float = 0.5
    detections: int = 100
    boxes_to_masks: Literal["segmenter", "box"] = "segmenter"

    def __post_init__(self) -> None:
        if not self.short or not 1 <= min(self.short) <= max(self.short) <= self.long:
            raise UserError(
                f"inference.short is {list(self.short)} and inference.long is {self.long}; give at least one short "
                "side, each from 1 to long."
            )
        if not 0 <= self.nms <= 1:
            raise UserError(f"inference.nms is {self.nms}; give a number in [0, 1].")
        if self.detections < 1:
            raise UserError(f"inference.detections is {self.detections}; give at least 1.")

    @property
    def views(self) -> int:
        """How often an image is looked at."""
        return len(self.short) * (1 + self.flip)


class WeakSamPredictor(Predictor):
    """A detector or an instance head on whole images.

    Args:
        student: trained; moved to ``device``.
        vocabulary: C categories.
        inference: at which sizes an image is looked at.
        segmenter: frozen, on its device; needed by detectors whose boxes are to prompt it.
        device: of the student.
        store: the segmenter's embeddings of images that need not be encoded again.

    Raises:
        UserError: an instance head is to join several views.
        ValueError: the segmenter is missing.
    """

    def __init__(
        self,
        student: Detector,
        vocabulary: Vocabulary,
        inference: Inference = Inference(),
        segmenter: PromptableSegmenter | None = None,
        device: str = "cpu",
        store: FeatureStore | None = None,
    ) -> None:
        if student.makes_masks and inference.views > 1:
            raise UserError(
                f"{student.kind} cannot join masks of {inference.views} views; give one inference.short and no flip."
            )
        if not student.makes_masks and inference.boxes_to_masks == "segmenter" and segmenter is None:
            raise ValueError("boxes_to_masks: segmenter needs a segmenter")
        self.student = student.to(device).eval()
        self.vocabulary = vocabulary
        self.inference = inference
        self.embedder = None if segmenter is None else Embedder(segmenter, store)
        self.device = device

    def predict(self, sources: Sequence[ImageSource], *, batch_size: int = 8) -> Iterator[Segmentation | Skipped]:
        """One result per source, in order; an image in which nothing is found gives an empty segmentation.

        Args:
            sources: images; those that cannot be read give :class:`Skipped`.
            batch_size: images that go through the network at once, where they are resized to the same size.
        """
        for start in range(0, len(sources), batch_size):
            some = sources[start : start + batch_size]
            read = [_read(source) for source in some]
            found = iter(self.detect([item for item in read if not isinstance(item, Skipped)]))
            for source, item in zip(some, read, strict=True):
                yield item if isinstance(item, Skipped) else self._segmentation(source.path, item, next(found))

    def detect(self, images: Sequence[NDArray[np.uint8]]) -> list[Detections]:
        """Detections in (H, W, 3) uint8 RGB images, joined over all views, in order."""
        views: list[list[Detections]] = [[] for _ in images]
        for short in self.inference.short:
            for mirrored in (False, True)[: 1 + self.inference.flip]:
                for found, of_image in zip(self._look(images, short, mirrored), views, strict=True):
                    of_image.append(found)
        return [self._joined(of_image) for of_image in views]

    def _look(self, images: Sequence[NDArray[np.uint8]], short: int, mirrored: bool) -> list[Detections]:
        """Detections of one view; images of one size go through the network together, so no batch changes a result."""
        groups: defaultdict[tuple[int, int], list[int]] = defaultdict(list)
        for row, image in enumerate(images):
            groups[fit_size(_size(image), short, self.inference.long)].append(row)
        results: dict[int, Detections] = {}
        for size, rows in groups.items():
            pixels = torch.stack([_pixels(images[row], size, mirrored) for row in rows]).to(self.device)
            originals = [_size(images[row]) for row in rows]
            found = self.student.predict(pixels, [size] * len(rows), originals)
            for row, detections, original in zip(rows, found, originals, strict=True):
                results[row] = _mirrored(detections, original[1]) if mirrored else detections
        return [results[row] for row in range(len(images))]

    def _joined(self, views: Sequence[Detections]) -> Detections:
        return views[0] if len(views) == 1 else join(views, self.inference.nms, self.inference.detections)

    def _segmentation(self, path: Path, image: NDArray[np.uint8], found: Detections) -> Segmentation:
        """Instances of an image, whose embedding is asked for if boxes are to prompt the segmenter."""
        size, embedder = _size(image), self.embedder
        if embedder is None or self.inference.boxes_to_masks == "box":
            return segmentation_of(found, self.student.kind, size)
        embedding = partial(embedder.embedding, path, image)
        return segmentation_of(found, self.student.kind, size, embedder.segmenter, embedding)


def segmentation_of(
    found: Detections,
    head: str,
    size: tuple[int, int],
    segmenter: PromptableSegmenter | None = None,
    embedding: Tensor | Callable[[], Tensor] | None = None,
) -> Segmentation:
    """The instances of an image; empty masks of instance heads are left out.

    Args:
        found: in the image.
        head: the student's name.
        size: (height, width) of the image.
        segmenter: makes a mask of each box of a student that has none; where it finds no pixel, and without it, the
            mask is the filled box.
        embedding: the image's (1, C, h, w) by the segmenter, or what gives it where there is a box to prompt with.
    """
    if found.rles is not None:
        return _of_masks(size, found, head)
    rles, origin = box_masks(found.boxes, size), ["box"] * len(found.labels)
    if segmenter is not None and embedding is not None and len(found.labels):
        known = embedding if isinstance(embedding, Tensor) else embedding()
        made = decode_boxes(segmenter, known, segmenter.frame(size), found.boxes).rles
        empty = rle_areas(made) == 0
        rles = tuple(box if none else mask for box, mask, none in zip(rles, made, empty, strict=True))
        origin = ["box" if none else "segmenter" for none in empty]
    provenance = tuple({"method": "weaksam", "head": head, "box": "predicted", "mask": mask} for mask in origin)
    return Segmentation(size, rles, found.boxes, found.labels, found.scores.clip(0, 1), provenance)


def join(views: Sequence[Detections], nms: float, detections: int) -> Detections:
    """The detections of several views of an image: all of them, suppressed per category, the best ``detections``."""
    boxes, labels, scores = (
        torch.from_numpy(np.concatenate([getattr(view, name) for view in views]))
        for name in ("boxes", "labels", "scores")
    )
    kept: Tensor = batched_nms(boxes, scores, labels, nms)[:detections]
    return Detections(boxes[kept].numpy(), labels[kept].numpy(), scores[kept].numpy())


def _of_masks(size: tuple[int, int], found: Detections, head: str) -> Segmentation:
    rles = found.rles or ()
    kept = np.flatnonzero(rle_areas(rles) > 0)
    rles = tuple(rles[index] for index in kept)
    provenance = tuple({"method": "weaksam", "head": head, "mask": "head"} for _ in rles)
    return Segmentation(size, rles, rle_boxes(rles), found.labels[kept], found.scores[kept].clip(0, 1), provenance)


def _pixels(image: NDArray[np.uint8], size: tuple[int, int], mirrored: bool) -> Tensor:
    resized = resize_image(image, size)
    return to_pixels(resized[:, ::-1] if mirrored else resized)


def _mirrored(found: Detections, width: int) -> Detections:
    boxes = found.boxes.copy()
    boxes[:, [0, 2]] = width - boxes[:, [2, 0]]
    return found._replace(boxes=boxes)


def _read(source: ImageSource) -> NDArray[np.uint8] | Skipped:
    try:
        return source.read()
    except UserError as error:
        return Skipped(source.image_id, source.path, str(error))


def _size(image: NDArray[np.uint8]) -> tuple[int, int]:
    return image.shape[0], image.shape[1]
