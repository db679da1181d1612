"""What the teacher makes of weak labels: one prompt per part, turned into tokens by the frozen prompt encoder.

Tokens depend on the labels alone, so they are computed once per instance and held flat: K * T * D * 4 bytes
(PartImageNet: 112k instances, 230 MB).
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset as TorchDataset

from weakly.data.dataset import Dataset
from weakly.errors import UserError
from weakly.foundation.promptable import PromptableSegmenter
from weakly.labels import Boxes, Sample
from weakly.methods.base import Skipped
from weakly.methods.stored_views import Inputs, gather_views
from weakly.methods.wps.settings import Supervision, WpsSettings
from weakly.segmentation import Segmentation

log = logging.getLogger(__name__)

CHUNK = 16_384
"""Prompts encoded at once."""


class WpsBatch(NamedTuple):
    """B images with their targets, padded to the M instances of the fullest.

    Attributes:
        embeddings: (B, C, h, w) float32.
        labels: (B, M) int64; padding is 0.
        tokens: (B, M, T, D) float32 teacher tokens; padding is 0.
        prompts: (B, M, 6) float32 frame box and point that the tokens stand for; 0 where the supervision has none.
        counts: number of instances of every image; stays on the host.
    """

    embeddings: Tensor
    labels: Tensor
    tokens: Tensor
    prompts: Tensor
    counts: tuple[int, ...]

    def to(self, device: torch.device) -> WpsBatch:
        """The same batch on a device."""
        embeddings, labels, tokens, prompts = (each.to(device) for each in self[:4])
        return WpsBatch(embeddings, labels, tokens, prompts, self.counts)

    def repeat(self, times: int) -> WpsBatch:
        """The targets of the same images ``times`` over, for as many answers; embeddings stay single."""
        labels, tokens = self.labels.repeat(times, 1), self.tokens.repeat(times, 1, 1, 1)
        return WpsBatch(self.embeddings, labels, tokens, self.prompts.repeat(times, 1, 1), self.counts * times)


@dataclass(frozen=True, eq=False, slots=True)
class Teacher:
    """The frozen prompt encoder, asked as the supervision wants it.

    Attributes:
        segmenter: whose prompt encoder it is.
        supervision: box, point or both.
    """

    segmenter: PromptableSegmenter
    supervision: Supervision

    @property
    def side(self) -> int:
        """Of the segmenter's frame, in pixels."""
        return self.segmenter.side

    @torch.no_grad()
    def __call__(self, prompts: Tensor) -> Tensor:
        """Frame boxes and points (K, 6) to (K, T, D) float32 tokens on the CPU; what is not asked for is ignored."""
        if len(prompts) == 0:
            return torch.zeros(0, self.segmenter.token_counts[self.supervision], self.segmenter.token_width)
        return torch.cat([self._encode(chunk).float().cpu() for chunk in prompts.split(CHUNK)])

    def _encode(self, prompts: Tensor) -> Tensor:
        box, point = prompts.to(self.segmenter.device).split([4, 2], dim=1)
        if self.supervision == "box":
            return self.segmenter.box_tokens(box)
        return self.segmenter.point_tokens(point, box if self.supervision == "point+box" else None)


@dataclass(frozen=True, eq=False, slots=True)
class Targets:
    """Teacher tokens and categories of n images, flat.

    Attributes:
        tokens: (K, T, D) float32, image after image.
        prompts: (K, 6) float32 frame box and point; 0 where the supervision has none.
        labels: (K,) int64.
        counts: (n,) int64 instances per image.
    """

    tokens: Tensor
    prompts: Tensor
    labels: Tensor
    counts: Tensor

    def __len__(self) -> int:
        return len(self.counts)

    def gather(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor, tuple[int, ...]]:
        """Labels (B, M), tokens (B, M, T, D), prompts (B, M, 6) and B counts of (B,) image indices, zero-padded."""
        counts = self.counts[images]
        starts = (self.counts.cumsum(0) - self.counts)[images]
        slot = torch.arange(int(counts.max()) if len(counts) else 0)
        present = slot < counts[:, None]
        rows = torch.where(present, starts[:, None] + slot, 0)
        if not len(self.labels):
            tokens, prompts = (each.new_zeros(*rows.shape, *each.shape[1:]) for each in (self.tokens, self.prompts))
            return rows, tokens, prompts, tuple(counts.tolist())
        return (
            self.labels[rows] * present,
            self.tokens[rows] * present[..., None, None],
            self.prompts[rows] * present[..., None],
            tuple(counts.tolist()),
        )


@dataclass(frozen=True, eq=False)
class WpsData(TorchDataset[WpsBatch]):
    """Training data, collated a batch at a time. Index ``v * n + i`` is image i in view v: as it is, or mirrored.

    Attributes:
        inputs: embeddings of the n images, in every view.
        targets: of the images of all views, view after view.
        teacher: that made the targets; random views need it for tokens of their own.
        skipped: images that could not be read and are not among the n.
    """

    inputs: tuple[Inputs, ...]
    targets: Targets
    teacher: Teacher | None = None
    skipped: tuple[Skipped, ...] = ()

    def __len__(self) -> int:
        return len(self.targets) // self.variants

    @property
    def variants(self) -> int:
        """Versions of every image: 2 with mirrored ones."""
        return len(self.inputs)

    def __getitem__(self, index: int) -> WpsBatch:
        return self.__getitems__([index])

    def __getitems__(self, indices: Sequence[int]) -> WpsBatch:
        """The batch of these indices, in this order."""
        chosen = torch.as_tensor(indices, dtype=torch.int64)
        view, image = chosen // len(self), chosen % len(self)
        return WpsBatch(gather_views(self.inputs, view, image), *self.targets.gather(chosen))


def teacher_targets(
    segmenter: PromptableSegmenter, dataset: Dataset, settings: WpsSettings, *, mirrored: Sequence[bool] = (False,)
) -> Targets:
    """Teacher tokens of every instance of a dataset, in several views one after the other (WPS-SAM, section 3.2).

    Args:
        segmenter: its prompt encoder is the teacher.
        dataset: with boxes or points, as ``settings.supervision`` says.
        settings: of the method.
        mirrored: whether each view shows the images mirrored left to right; names then swap left and right.

    Raises:
        UserError: a sample lacks the labels, or (``strict``) has more instances than there are queries.
    """
    if settings.point_source in ("mask_centroid", "inner_point") and settings.supervision != "box":
        log.warning(
            "settings.point_source=%s reads truth masks: these points are strong labels, and results with them are"
            " not weakly supervised.",
            settings.point_source,
        )
    instances = [instances_of(dataset, index, settings) for index in range(len(dataset))]
    if settings.prompter == "queries":
        _check_crowded(dataset, [len(labels) for labels, _, _ in instances], settings)
    boxes, points, labels = [], [], [np.zeros(0, np.int64)]
    for flip in mirrored:
        swapped = dataset.vocabulary.mirrored() if flip else np.arange(len(dataset.vocabulary))
        for sample, (named, xyxy, xy) in zip(dataset, instances, strict=True):
            frame = segmenter.frame(sample.size)
            if flip:
                xyxy, xy = mirror(xyxy, xy, sample.size[1])  # noqa: PLW2901 - the mirrored image's labels
            boxes.append(frame.boxes_to_frame(xyxy))
            points.append(frame.points_to_frame(xy))
            labels.append(swapped[named])
    counts = torch.tensor([len(named) for named in labels[1:]], dtype=torch.int64)
    prompts = torch.cat([_rows(boxes, 4), _rows(points, 2)], dim=1)
    tokens = Teacher(segmenter, settings.supervision)(prompts)
    return Targets(tokens, prompts, torch.from_numpy(np.concatenate(labels)), counts)


def instances_of(
    dataset: Dataset, index: int, settings: WpsSettings
) -> tuple[NDArray[np.int64], NDArray[np.float32], NDArray[np.float32]]:
    """Labels (M,), boxes (M, 4) and points (M, 2) of one image, in image pixels.

    Boxes are zeros where the supervision needs none.

    Raises:
        UserError: the image has no labels of the kind.
    """
    sample = dataset[index]
    if settings.supervision == "box":
        boxes = _needed_boxes(sample, settings)
        return boxes.labels, boxes.xyxy, np.zeros((len(boxes), 2), np.float32)
    if settings.point_source in ("mask_centroid", "inner_point"):
        truth = dataset.truth(index)
        return truth.labels, truth.boxes, mask_points(truth, settings.point_source)
    clicks = settings.point_source == "given" or sample.boxes is None
    if clicks and sample.points is None:
        raise UserError(f"{sample.path} has no points; give points, or set settings.point_source to box_center.")
    if settings.supervision == "point":
        points = sample.points if clicks and sample.points is not None else _needed_boxes(sample, settings).centers()
        return points.labels, np.zeros((len(points), 4), np.float32), points.xy
    boxes = _needed_boxes(sample, settings)
    points = sample.points if clicks and sample.points is not None else boxes.centers()
    if not np.array_equal(points.labels, boxes.labels):
        raise UserError(f"{sample.path} has boxes and points of different parts; give one point per box, in order.")
    return boxes.labels, boxes.xyxy, points.xy


def mask_points(truth: Segmentation, source: str) -> NDArray[np.float32]:
    """(M, 2) points inside or amid M truth masks, in image pixels; pixel (x, y) has its centre at +0.5.

    ``mask_centroid``: the mean of the mask's pixels. ``inner_point``: the pixel deepest inside it.
    """
    masks = truth.masks()
    points = np.zeros((len(masks), 2), np.float32)
    for point, mask in zip(points, masks, strict=True):
        if not mask.any():
            continue
        if source == "mask_centroid":
            point[:] = np.argwhere(mask).mean(0)[::-1] + 0.5
        else:
            depth = cv2.distanceTransform(np.pad(mask.astype(np.uint8), 1), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
            y, x = np.unravel_index(int(depth[1:-1, 1:-1].argmax()), mask.shape)
            point[:] = (x + 0.5, y + 0.5)
    return points


def mirror(
    boxes: NDArray[np.float32], points: NDArray[np.float32], width: int
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Boxes (M, 4) and points (M, 2) of the image mirrored left to right."""
    flipped = boxes.copy()
    flipped[:, [0, 2]] = width - boxes[:, [2, 0]]
    return flipped, np.stack([width - points[:, 0], points[:, 1]], axis=1)


def _needed_boxes(sample: Sample, settings: WpsSettings) -> Boxes:
    if sample.boxes is None:
        remedy = "give boxes" + ("" if settings.supervision == "box" else " or points")
        raise UserError(f"{sample.path} has no boxes, but settings.supervision is {settings.supervision}; {remedy}.")
    return sample.boxes


def _check_crowded(dataset: Dataset, counts: Sequence[int], settings: WpsSettings) -> None:
    """Warn (or refuse) where an image has more instances than there are queries."""
    crowded = [index for index, count in enumerate(counts) if count > settings.queries]
    if not crowded:
        return
    fullest = max(crowded, key=lambda index: counts[index])
    sentence = (
        f"{len(crowded)} of {len(counts)} images have more than settings.queries={settings.queries} instances"
        f" (most: {counts[fullest]} in {dataset[fullest].path})"
    )
    if settings.strict:
        raise UserError(f"{sentence}; raise settings.queries or set settings.strict to false.")
    log.warning("%s; their surplus instances are left out of the matching. Raise settings.queries.", sentence)


def _rows(arrays: Sequence[NDArray[np.float64]], columns: int) -> Tensor:
    stacked = np.concatenate(arrays) if arrays else np.zeros((0, columns))
    return torch.from_numpy(stacked).float()
