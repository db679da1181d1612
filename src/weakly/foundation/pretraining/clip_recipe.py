"""The recipe of the bundled CLIP."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np


@dataclass(frozen=True)
class ClipStage:
    """A stretch of training at one picture size.

    Attributes:
        size: S in pixels, a multiple of the patch.
        steps: optimiser steps.
        pictures: pictures per step.
    """

    size: int
    steps: int
    pictures: int = 64


@dataclass(frozen=True)
class ClipTraining:
    """The recipe of the bundled CLIP.

    Attributes:
        stages: coarse to fine: small pictures cost a quarter and teach what is what, full ones the fine grid.
        captions: per picture and step.
        lr: peak learning rate of AdamW; linear warm-up, then cosine to zero over all stages.
        warmup: steps.
        weight_decay: AdamW's, on weights of two or more dimensions.
        clip: largest gradient norm.
        cls: weight of the class token's loss; that of the mean patch token is 1.
        bf16: train in bfloat16 autocast.
        seed: of weights, batches and captions.
    """

    stages: tuple[ClipStage, ...] = (ClipStage(128, 2400), ClipStage(192, 450), ClipStage(256, 250))
    captions: int = 3
    lr: float = 1e-3
    warmup: int = 150
    weight_decay: float = 0.05
    clip: float = 1.0
    cls: float = 0.5
    bf16: bool = False
    seed: int = 0

    @property
    def total_steps(self) -> int:
        """Steps of all stages together."""
        return sum(stage.steps for stage in self.stages)

    def stage_at(self, step: int) -> ClipStage:
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

    def scaled(self, steps: int | None) -> ClipTraining:
        """The recipe with its stages shortened or lengthened in proportion to ``steps`` in all."""
        if steps is None:
            return self
        factor = steps / self.total_steps
        stages = tuple(replace(stage, steps=max(1, round(stage.steps * factor))) for stage in self.stages)
        return replace(self, stages=stages)


CLIP_RECIPES: dict[str, ClipTraining] = {
    "cpu": ClipTraining(bf16=True),
    "gpu": ClipTraining(
        stages=(ClipStage(128, 8000, 256), ClipStage(192, 3000, 256), ClipStage(256, 3000, 256)), warmup=500, bf16=True
    ),
}
"""By where they fit: two CPU cores (with bf16 instructions) for about an hour, one GPU for about half an hour."""
