"""The inference side of Det-SAM: images in, boxes of parts, and the frozen segmenter's masks for them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from weakly.errors import UserError
from weakly.foundation.features import FeatureStore
from weakly.foundation.promptable import Frame, PromptableSegmenter
from weakly.methods.base import ImageSource, Predictor, Skipped
from weakly.methods.baselines.det_sam.model import Detector, Found
from weakly.methods.baselines.det_sam.settings import DetSamSettings
from weakly.methods.baselines.det_sam.targets import frame_pixels
from weakly.methods.decoding import decode_prompts, fuse
from weakly.methods.embedding import Embedder
from weakly.segmentation import Segmentation, box_masks
from weakly.vocabulary import Vocabulary

T = TypeVar("T")

MIN_SIDE = 1.0
"""Detections with a shorter side inside the image, in its pixels, prompt nothing."""


class Parts(NamedTuple):
    """The detections in one image, best first.

    Attributes:
        boxes: (n, 4) float32 in pixels of the image, inside it.
        labels: (n,) int64 categories.
        scores: (n,) float32 in [0, 1].
    """

    boxes: NDArray[np.float32]
    labels: NDArray[np.int64]
    scores: NDArray[np.float32]

    def at_least(self, score: float) -> Parts:
        """Those with this score or a better one."""
        kept = self.scores >= score
        return Parts(self.boxes[kept], self.labels[kept], self.scores[kept])


class Look(NamedTuple):
    """Some images as the detector sees them.

    Attributes:
        frames: its frames of the images that could be read.
        inputs: (B, ...) what it looks at, one row per frame.
        embeddings: asked for them, the segmenter's (B, C, h, w).
        outcomes: one per source: the row of its image, or why there is none.
    """

    frames: list[Frame]
    inputs: Tensor
    embeddings: Callable[[], Tensor]
    outcomes: list[int | Skipped]


class DetSamPredictor(Predictor):
    """A part detector in front of a promptable segmenter.

    Args:
        student: trained detector.
        segmenter: its boxes prompt.
        vocabulary: C categories.
        settings: of the method.
        threshold: least score of a box that prompts.
        store: embeddings that need not be computed again.
    """

    def __init__(
        self,
        student: Detector,
        segmenter: PromptableSegmenter,
        vocabulary: Vocabulary,
        settings: DetSamSettings,
        threshold: float,
        store: FeatureStore | None = None,
    ) -> None:
        self.student = student.to(segmenter.device).eval()
        self.segmenter = segmenter
        self.vocabulary = vocabulary
        self.settings = settings
        self.threshold = threshold
        self.embedder = Embedder(segmenter, store)

    def predict(self, sources: Sequence[ImageSource], *, batch_size: int = 8) -> Iterator[Segmentation | Skipped]:
        """One result per source, in order; an image without detections gives an empty segmentation.

        Args:
            sources: images; those that cannot be read give :class:`Skipped`.
            batch_size: images looked at at once.
        """
        for look in self._looks(sources, batch_size):
            results = self.segment(look) if look.frames else []
            for outcome in look.outcomes:
                yield outcome if isinstance(outcome, Skipped) else results[outcome]

    def detect(self, sources: Sequence[ImageSource], *, batch_size: int = 8) -> Iterator[Segmentation | Skipped]:
        """All detections, however unsure, as segmentations whose masks are the filled boxes; no prompt is decoded."""
        for look in self._looks(sources, batch_size):
            found = self.parts(look) if look.frames else []
            for outcome in look.outcomes:
                yield outcome if isinstance(outcome, Skipped) else _filled(found[outcome], look.frames[outcome].size)

    def parts(self, look: Look) -> list[Parts]:
        """The detections in every image of a look."""
        found = self.student.detect(look.inputs.to(self.segmenter.device))
        return in_images(Found(*(each.cpu() for each in found)), look.frames)

    @torch.no_grad()
    def segment(self, look: Look) -> list[Segmentation]:
        """Segmentations of B images, at their original sizes."""
        parts = [found.at_least(self.threshold) for found in self.parts(look)]
        frames = [self.segmenter.frame(frame.size) for frame in look.frames]
        prompts = [frame.boxes_to_frame(found.boxes) for frame, found in zip(frames, parts, strict=True)]
        counts = [len(found.labels) for found in parts]
        image = torch.repeat_interleave(torch.arange(len(parts)), torch.tensor(counts)).to(self.segmenter.device)
        boxes = torch.from_numpy(np.concatenate(prompts)).float().to(self.segmenter.device)
        tokens, most = self.segmenter.box_tokens(boxes), self.settings.max_prompts
        logits, _ = decode_prompts(self.segmenter, look.embeddings(), tokens, image, max_prompts=most)
        return [
            fuse(
                frame,
                mine,
                found.labels,
                found.scores,
                [{"method": "det-sam", "box": np.round(box.astype(float), 1).tolist()} for box in found.boxes],
                background=self.vocabulary.background,
                fusion=self.settings.fusion,
            )
            for frame, mine, found in zip(frames, logits.split(counts), parts, strict=True)
        ]

    def _looks(self, sources: Sequence[ImageSource], batch_size: int) -> Iterator[Look]:
        return (self._at_embeddings if self.settings.on_embeddings else self._at_images)(sources, batch_size)

    def _at_embeddings(self, sources: Sequence[ImageSource], batch_size: int) -> Iterator[Look]:
        for batch in self.embedder.batches(sources, batch_size):
            yield Look(batch.frames, batch.embeddings, partial(_same, batch.embeddings), batch.outcomes)

    def _at_images(self, sources: Sequence[ImageSource], batch_size: int) -> Iterator[Look]:
        side = self.student.side
        for start in range(0, len(sources), batch_size):
            some = sources[start : start + batch_size]
            read = [_read(source) for source in some]
            images = [image for image in read if not isinstance(image, Skipped)]
            held = [
                replace(source, read=partial(_same, image))
                for source, image in zip(some, read, strict=True)
                if not isinstance(image, Skipped)
            ]
            rows = iter(range(len(images)))
            outcomes = [item if isinstance(item, Skipped) else next(rows) for item in read]
            pixels = [frame_pixels(image, side) for image in images]
            inputs = torch.stack(pixels) if pixels else torch.zeros(0, 3, side, side)
            frames = [Frame.fit((image.shape[0], image.shape[1]), side) for image in images]
            yield Look(frames, inputs, partial(self._embeddings, held), outcomes)

    def _embeddings(self, sources: Sequence[ImageSource]) -> Tensor:
        """(B, C, h, w) of images that can be read, at once."""
        return next(self.embedder.batches(sources, len(sources))).embeddings


def in_images(found: Found, frames: Sequence[Frame]) -> list[Parts]:
    """Detections in pixels of their images, clipped to them; what is then below a pixel is left out.

    Args:
        found: in B images, on the CPU.
        frames: the detector's, of the B images.
    """
    image, boxes, labels, scores = (each.numpy() for each in found)
    parts = []
    for row, frame in enumerate(frames):
        mine, (height, width) = image == row, frame.size
        placed = frame.points_to_image(boxes[mine].reshape(-1, 2, 2)).reshape(-1, 4)
        inside = np.clip(placed, 0, [width, height] * 2).astype(np.float32)
        whole = (inside[:, 2:] - inside[:, :2] >= MIN_SIDE).all(1)
        parts.append(Parts(inside[whole], labels[mine][whole], scores[mine][whole].clip(0, 1)))
    return parts


def _filled(parts: Parts, size: tuple[int, int]) -> Segmentation:
    origin = ({"method": "det-sam", "mask": "box"},) * len(parts.labels)
    return Segmentation(size, box_masks(parts.boxes, size), parts.boxes, parts.labels, parts.scores, origin)


def _read(source: ImageSource) -> NDArray[np.uint8] | Skipped:
    try:
        return source.read()
    except UserError as error:
        return Skipped(source.image_id, source.path, str(error))


def _same(value: T) -> T:
    return value
