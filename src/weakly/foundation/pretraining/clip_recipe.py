"""The recipe of the bundled CLIP."""

from __future__ import annotations

from dataclasses import dataclass

from weakly.foundation.pretraining.staged import Stage, StagedTraining


@dataclass(frozen=True)
class ClipStage(Stage):
    """A stretch of training at one picture size, a multiple of the patch.

    Attributes:
        pictures: pictures per step.
    """

    pictures: int = 64


@dataclass(frozen=True, kw_only=True)
class ClipTraining(StagedTraining[ClipStage]):
    """The recipe of the bundled CLIP: small pictures cost a quarter and teach what is what, full ones the fine grid.

    Attributes:
        captions: per picture and step.
        cls: weight of the class token's loss; that of the mean patch token is 1.
    """

    stages: tuple[ClipStage, ...] = (ClipStage(128, 2100), ClipStage(192, 600), ClipStage(256, 350))
    captions: int = 3
    lr: float = 1e-3
    warmup: int = 150
    weight_decay: float = 0.05
    cls: float = 0.5


CLIP_RECIPES: dict[str, ClipTraining] = {
    "cpu": ClipTraining(bf16=True),
    "gpu": ClipTraining(
        stages=(ClipStage(128, 8000, 256), ClipStage(192, 3000, 256), ClipStage(256, 3000, 256)), warmup=500, bf16=True
    ),
}
"""By where they fit: two CPU cores (with bf16 instructions) for about an hour, one GPU for about half an hour."""
