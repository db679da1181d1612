"""How good a promptable segmenter is on masks it never saw: boxes and single centre points."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from weakly.data.dataset import Dataset
from weakly.data.menagerie.scene import render_scene
from weakly.foundation.pretraining.prompts import centre_points, tight_boxes
from weakly.foundation.promptable import PromptableSegmenter

MEASURING_SEED = 730_002
"""Seed of the unseen worlds the bundled SAM is measured on: neither a pre-training nor a downstream seed."""

Truth: TypeAlias = tuple[NDArray[np.uint8], NDArray[np.bool_]]
"""An image (H, W, 3) and the masks (N, H, W) on it."""


@dataclass(frozen=True)
class PromptScores:
    """Mean IoU over masks, at the images' original size.

    Attributes:
        box: box prompts, single-mask output.
        point: single centre points, best of the three masks.
        point_single: single centre points, single-mask output.
        masks: how many masks.
        images: how many images.
    """

    box: float
    point: float
    point_single: float
    masks: int
    images: int


def world_parts(count: int, seed: int = MEASURING_SEED, size: int = 256) -> Iterable[Truth]:
    """``count`` unseen worlds as (image (S, S, 3), part masks (N, S, S)); worlds without a part are left out."""
    for index in range(count):
        scene = render_scene(seed, index, size)
        ids = np.arange(1, len(scene.parts) + 1)
        if len(ids):
            yield scene.image, scene.part_map == ids[:, None, None]


def dataset_masks(dataset: Dataset, limit: int | None = None) -> Iterable[Truth]:
    """Images and non-empty truth masks of a dataset, at original size."""
    for index in range(len(dataset) if limit is None else min(limit, len(dataset))):
        masks = dataset.truth(index).masks()
        masks = masks[masks.any((1, 2))]
        if len(masks):
            yield dataset.image(index), masks


@torch.no_grad()
def measure_prompts(segmenter: PromptableSegmenter, pictures: Iterable[Truth]) -> PromptScores:
    """Prompt with each mask's own box and with its pixel nearest to the box centre."""
    box: list[Tensor] = []
    point: list[Tensor] = []
    single: list[Tensor] = []
    images = 0
    for image, masks in pictures:
        images += 1
        frame = segmenter.frame(image.shape[:2])
        embedding = segmenter.encode(segmenter.preprocess([image]))
        truth = torch.from_numpy(masks)
        owner = torch.zeros(len(masks), dtype=torch.int64)
        corners = torch.from_numpy(frame.boxes_to_frame(tight_boxes(masks))).float()
        clicks = torch.from_numpy(frame.points_to_frame(centre_points(masks) + 0.5)).float()
        for tokens, multimask, into in (
            (segmenter.box_tokens(corners), False, box),
            (segmenter.point_tokens(clicks), True, point),
            (segmenter.point_tokens(clicks), False, single),
        ):
            logits, _ = segmenter.decode(embedding, tokens, owner, multimask=multimask)
            full = frame.logits_to_image(logits.flatten(0, 1)) > 0
            into.append(best_iou(full.view(len(masks), -1, *truth.shape[1:]), truth))
    means = [float(torch.cat(values).mean()) for values in (box, point, single)]
    return PromptScores(means[0], means[1], means[2], masks=sum(map(len, box)), images=images)


def best_iou(predicted: Tensor, truth: Tensor) -> Tensor:
    """(N,) IoU of the best of (N, K, H, W) masks with (N, H, W) masks."""
    truth = truth[:, None]
    intersection = (predicted & truth).sum((2, 3))
    union = (predicted | truth).sum((2, 3)).clamp(min=1)
    return (intersection / union).max(1).values
