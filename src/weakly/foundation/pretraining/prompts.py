"""Batches for training a SAM: crops, photometric change, and prompts with the masks they ask for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional
from torch.utils.data import Dataset

from weakly.foundation.pretraining.pictures import PictureBank
from weakly.foundation.pretraining.recipe import SamTraining
from weakly.foundation.promptable import PIXEL_MEAN, PIXEL_STD

LEVEL_WEIGHTS = (0.2, 0.65, 0.15)
"""How often a prompt asks for a whole, a part, a sub-part."""


@dataclass(frozen=True, eq=False)
class PromptBatch:
    """A training step's input.

    Attributes:
        pixels: (B, 3, S, S) float32: in [0, 1] as drawn, normalised for training.
        levels: (B, 3, S, S) uint8 region ids of wholes, parts and sub-parts.
        masks: (N, S, S) bool, the mask each prompt asks for.
        boxes: (N, 4) float32 frame boxes: exact as drawn, jittered for training.
        points: (N, 2) float32, a pixel inside each mask.
        image_index: (N,) int64.
        is_part: (N,) bool, the mask is a part (not a whole or a sub-part).
        is_box: (N,) bool, the prompt is the box, else the point.
    """

    pixels: Tensor
    levels: Tensor
    masks: Tensor
    boxes: Tensor
    points: Tensor
    image_index: Tensor
    is_part: Tensor
    is_box: Tensor

    def to(self, device: torch.device) -> PromptBatch:
        """The same batch on another device."""
        return PromptBatch(**{field.name: getattr(self, field.name).to(device) for field in fields(self)})


def draw_batch(
    rng: np.random.Generator,
    banks: Sequence[tuple[PictureBank, float]],
    size: int,
    pictures: int,
    prompts: int,
    *,
    whole: float = 0.4,
    area_power: float = 0.5,
    min_area: int = 24,
) -> PromptBatch:
    """``pictures`` crops at ``size`` pixels with ``prompts`` masks each; each bank with its probability.

    A fraction ``whole`` of the pictures is shown whole; the others are close-ups of one region.

    A crop with fewer regions repeats them (the prompts differ), so that every batch has the same shape.
    """
    shares = [share for _, share in banks]
    images: list[NDArray[np.uint8]] = []
    maps: list[NDArray[np.uint8]] = []
    masks: list[NDArray[np.bool_]] = []
    owners: list[int] = []
    is_part: list[bool] = []
    while len(images) < pictures:
        bank = banks[int(rng.choice(len(banks), p=shares))][0]
        row = int(rng.integers(len(bank)))
        image, levels = _crop(rng, bank.images[row], bank.levels[row], size, whole, area_power, min_area)
        chosen = _choose(rng, levels, prompts, area_power, min_area)
        if not chosen:
            continue
        chosen = [chosen[i % len(chosen)] for i in range(prompts)]
        masks.extend(levels[level] == region for level, region in chosen)
        is_part.extend(level == 1 for level, _ in chosen)
        owners.extend([len(images)] * prompts)
        images.append(image)
        maps.append(levels)
    stacked = np.stack(masks)
    return PromptBatch(
        pixels=torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).float() / 255,
        levels=torch.from_numpy(np.stack(maps)),
        masks=torch.from_numpy(stacked),
        boxes=torch.from_numpy(tight_boxes(stacked)),
        points=torch.from_numpy(inner_points(rng, stacked)),
        image_index=torch.tensor(owners),
        is_part=torch.tensor(is_part),
        is_box=torch.ones(len(stacked), dtype=torch.bool),
    )


class StepBatches(Dataset[PromptBatch]):
    """The batch of every training step, a pure function of (recipe, step): order and resuming change nothing.

    Args:
        leaves: dead leaves.
        worlds: rendered worlds; None while no stage that needs them is reached.
        training: the recipe.
    """

    def __init__(self, leaves: PictureBank, worlds: PictureBank | None, training: SamTraining) -> None:
        self.leaves, self.worlds, self.training = leaves, worlds, training

    def __len__(self) -> int:
        return self.training.total_steps

    def __getitem__(self, step: int) -> PromptBatch:
        seed = self.training.seed
        stage = self.training.stage_at(step)
        rng = np.random.default_rng(np.random.SeedSequence([seed, step]))
        generator = torch.Generator().manual_seed(seed * 1_000_003 + step)
        banks = [(self.leaves, 1.0)]
        if self.worlds is not None:
            banks = [(self.leaves, 1 - stage.worlds), (self.worlds, stage.worlds)]
        drawn = draw_batch(
            rng,
            banks,
            stage.size_at(step),
            stage.pictures,
            stage.prompts,
            whole=self.training.whole_pictures,
            area_power=self.training.area_power,
        )
        mean, std = (torch.tensor(values).view(3, 1, 1) for values in (PIXEL_MEAN, PIXEL_STD))
        return replace(
            drawn,
            pixels=(photometric(drawn.pixels, generator) - mean) / std,
            is_box=torch.rand(len(drawn.masks), generator=generator) < self.training.box_share,
            boxes=jitter_boxes(drawn.boxes, generator),
        )


def _crop(
    rng: np.random.Generator,
    image: NDArray[np.uint8],
    levels: NDArray[np.uint8],
    size: int,
    whole: float,
    area_power: float,
    min_area: int,
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """A square crop resized to ``size``: the whole picture or a close-up; mirrored, sometimes turned."""
    full = image.shape[0]
    y, x, side = (0, 0, full) if rng.random() < whole else _close_up(rng, levels, area_power, min_area)
    image, levels = image[y : y + side, x : x + side], levels[:, y : y + side, x : x + side]
    if side != size:
        shrink = cv2.INTER_AREA if side > size else cv2.INTER_LINEAR
        image = np.asarray(cv2.resize(np.ascontiguousarray(image), (size, size), interpolation=shrink), np.uint8)
        levels = np.stack([cv2.resize(level, (size, size), interpolation=cv2.INTER_NEAREST) for level in levels])
    if rng.random() < 0.5:
        image, levels = image[:, ::-1], levels[:, :, ::-1]
    turns = int(rng.integers(1, 4)) if rng.random() < 0.15 else 0
    return np.rot90(image, turns).copy(), np.rot90(levels, turns, axes=(1, 2)).copy()


def _close_up(
    rng: np.random.Generator, levels: NDArray[np.uint8], area_power: float, min_area: int
) -> tuple[int, int, int]:
    """Corner y, x and side of a square in which one region's longer side takes up 20 to 80 % of the width.

    Most parts are a few pixels in the whole picture; close up they teach what a boundary is.
    """
    full = levels.shape[1]
    chosen = _choose(rng, levels, 1, area_power, min_area)
    if not chosen:
        return 0, 0, full
    level, region = chosen[0]
    x0, y0, x1, y1 = tight_boxes((levels[level] == region)[None])[0]
    side = int(np.clip(max(x1 - x0, y1 - y0) / rng.uniform(0.2, 0.8), full // 4, full))
    centre = np.array([y0 + y1, x0 + x1]) / 2 + rng.uniform(-0.15, 0.15, 2) * side
    y, x = np.clip(centre - side / 2, 0, full - side).astype(int)
    return int(y), int(x), side


def _choose(
    rng: np.random.Generator, levels: NDArray[np.uint8], prompts: int, area_power: float, min_area: int
) -> list[tuple[int, int]]:
    """Up to ``prompts`` distinct (level, region id) pairs, levels drawn by :data:`LEVEL_WEIGHTS`.

    Within a level large regions come more often, in proportion to their area to the power ``area_power``.
    """
    pairs: list[tuple[int, int]] = []
    weights: list[NDArray[np.float64]] = []
    for level, share in enumerate(LEVEL_WEIGHTS):
        areas = np.bincount(levels[level].ravel(), minlength=256)[1:]
        regions = np.flatnonzero(areas >= min_area)
        extents = areas[regions] ** area_power
        pairs.extend((level, int(region) + 1) for region in regions)
        weights.append(share * extents / max(extents.sum(), 1.0))
    if not pairs:
        return []
    p = np.concatenate(weights)
    take = rng.choice(len(pairs), size=min(prompts, len(pairs)), replace=False, p=p / p.sum())
    return [pairs[i] for i in take]


def tight_boxes(masks: NDArray[np.bool_]) -> NDArray[np.float32]:
    """(N, 4) float32 extents ``x0, y0, x1, y1`` (x1, y1 exclusive) of non-empty (N, H, W) masks."""
    columns, rows = np.asarray(masks.any(1)), np.asarray(masks.any(2))
    x0, y0 = columns.argmax(1), rows.argmax(1)
    x1 = masks.shape[2] - columns[:, ::-1].argmax(1)
    y1 = masks.shape[1] - rows[:, ::-1].argmax(1)
    return np.stack([x0, y0, x1, y1], 1).astype(np.float32)


def centre_points(masks: NDArray[np.bool_]) -> NDArray[np.float32]:
    """(N, 2) float32 x, y: the mask's pixel nearest to the centre of its box."""
    boxes = tight_boxes(masks)
    centre = (boxes[:, :2] + boxes[:, 2:] - 1) / 2
    y, x = np.ogrid[: masks.shape[1], : masks.shape[2]]
    distance = (x - centre[:, 0, None, None]) ** 2 + (y - centre[:, 1, None, None]) ** 2
    nearest = np.where(masks, distance, np.inf).reshape(len(masks), -1).argmin(1)
    return np.stack([nearest % masks.shape[2], nearest // masks.shape[2]], 1).astype(np.float32)


def inner_points(rng: np.random.Generator, masks: NDArray[np.bool_]) -> NDArray[np.float32]:
    """(N, 2) float32 x, y: half of them the mask's pixel nearest to the box centre, half any pixel of the mask."""
    height, width = masks.shape[1:]
    noise = rng.random((1, height, width), np.float32)
    anywhere = np.where(masks, noise, -1).reshape(len(masks), -1).argmax(1)
    random_points = np.stack([anywhere % width, anywhere // width], 1).astype(np.float32)
    central = rng.random(len(masks)) < 0.5
    return np.where(central[:, None], centre_points(masks), random_points).astype(np.float32)


def jitter_boxes(boxes: Tensor, generator: torch.Generator, sigma: float = 0.06, exact: float = 0.4) -> Tensor:
    """(N, 4) boxes with Gaussian noise of ``sigma`` times their sides; a fraction ``exact`` stays as it is."""
    sides = (boxes[:, 2:] - boxes[:, :2]).repeat(1, 2)
    noise = torch.randn(boxes.shape, generator=generator) * sides * sigma
    moved = torch.rand(len(boxes), 1, generator=generator) >= exact
    return boxes + noise * moved


def photometric(pixels: Tensor, generator: torch.Generator) -> Tensor:
    """Strong photometric change of (B, 3, S, S) images in [0, 1], independent per image; geometry stays."""
    b = len(pixels)

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return torch.empty(b, *shape).uniform_(low, high, generator=generator)

    def some(probability: float) -> Tensor:
        return (torch.rand(b, 1, 1, 1, generator=generator) < probability).float()

    x = pixels
    if torch.rand((), generator=generator) < 0.25:
        x = x[:, torch.randperm(3, generator=generator)]
    grey = x.mean(1, keepdim=True)
    x = torch.lerp(x, grey.expand_as(x), some(0.12) + (1 - some(0.12)) * uniform(-0.4, 0.6, 1, 1, 1).clamp(max=1))
    invert = some(0.06)
    x = x * (1 - invert) + (1 - x) * invert
    x = x.clamp(1e-3, 1) ** torch.exp(uniform(-0.5, 0.5, 1, 1, 1))
    x = (x - 0.5) * torch.exp(uniform(-0.4, 0.35, 1, 1, 1)) + 0.5 + uniform(-0.1, 0.1, 3, 1, 1)
    ramp = torch.linspace(-1, 1, x.shape[-1])
    light = uniform(-0.3, 0.3, 1, 1, 1) * ramp + uniform(-0.3, 0.3, 1, 1, 1) * ramp[:, None]
    x = x * (1 + light * some(0.5))
    soft = functional.avg_pool2d(functional.pad(x, (1, 1, 1, 1), mode="replicate"), 3, 1)
    x = torch.lerp(x, soft, some(0.3) * uniform(0.3, 1.0, 1, 1, 1))
    noise = torch.randn(x.shape, generator=generator)
    return (x + noise * uniform(0, 0.05, 1, 1, 1) * some(0.5)).clamp(0, 1)
