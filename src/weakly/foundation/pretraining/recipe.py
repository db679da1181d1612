"""The recipe of the bundled SAM."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class Stage:
    """A stretch of training at one picture size.

    Attributes:
        size: S in pixels; the convolutional encoder and the normalised coordinates take any multiple of 32.
        steps: optimiser steps.
        pictures: pictures per step.
        prompts: prompts per picture.
        worlds: share of rendered worlds; the other pictures are dead leaves.
    """

    size: int
    steps: int
    worlds: float = 0.75
    pictures: int = 8
    prompts: int = 8


@dataclass(frozen=True)
class SamTraining:
    """The recipe of the bundled SAM.

    Attributes:
        stages: coarse to fine: small pictures teach what a part is, full ones where it ends.
        lr: peak learning rate of AdamW; linear warm-up, then cosine to zero over all stages.
        warmup: steps.
        weight_decay: AdamW's, on weights of two or more dimensions.
        clip: largest gradient norm.
        box_share: fraction of prompts that are boxes; the others are points.
        grouping: weight of the encoder's dense loss.
        bf16: train in bfloat16 autocast.
        seed: of weights, batches and prompts.
    """

    stages: tuple[Stage, ...] = (Stage(128, 2500), Stage(192, 1000, pictures=6), Stage(256, 2200, pictures=4))
    lr: float = 8e-4
    warmup: int = 100
    weight_decay: float = 0.01
    clip: float = 1.0
    box_share: float = 0.6
    grouping: float = 0.5
    bf16: bool = False
    seed: int = 0

    @property
    def total_steps(self) -> int:
        """Steps of all stages together."""
        return sum(stage.steps for stage in self.stages)

    def stage_at(self, step: int) -> Stage:
        """The stage that step ``step`` (0-based) belongs to."""
        for stage in self.stages:
            if step < stage.steps:
                return stage
            step -= stage.steps
        return self.stages[-1]

    def rate(self, step: int) -> float:
        """Learning rate of step ``step``."""
        warm = min(1.0, (step + 1) / self.warmup)
        return self.lr * warm * 0.5 * (1 + float(np.cos(np.pi * min(1.0, step / self.total_steps))))


RECIPES: dict[str, SamTraining] = {
    "cpu": SamTraining(bf16=True),
    "gpu": SamTraining(stages=(Stage(256, 10_000, pictures=48, prompts=12),), lr=1e-3, warmup=500, bf16=True),
}
"""By where they fit: two CPU cores (with bf16 instructions) for an hour and a half, one GPU for half an hour."""
