"""The recipe of the bundled SAM."""

from __future__ import annotations

from dataclasses import dataclass

from weakly.foundation.pretraining.staged import Stage, StagedTraining


@dataclass(frozen=True)
class SamStage(Stage):
    """A stretch of training at one picture size, of which the convolutional encoder takes any multiple of 32.

    Attributes:
        worlds: share of rendered worlds; the other pictures are dead leaves.
        pictures: pictures per step.
        prompts: prompts per picture.
        turns: further sizes that steps take in turn with ``size``; empty: every step has ``size``.
    """

    worlds: float = 0.75
    pictures: int = 8
    prompts: int = 8
    turns: tuple[int, ...] = ()

    @property
    def sizes(self) -> tuple[int, ...]:
        """Of its pictures, in pixels, in the order of its turns."""
        return (self.size, *self.turns)

    def size_at(self, step: int) -> int:
        """Side in pixels of the pictures of step ``step`` of the training."""
        return self.sizes[step % len(self.sizes)]


@dataclass(frozen=True, kw_only=True)
class SamTraining(StagedTraining[SamStage]):
    """The recipe of the bundled SAM: small pictures teach what a part is, full ones where it ends.

    Attributes:
        box_share: fraction of prompts that are boxes; the others are points.
        whole_pictures: fraction of the pictures shown whole; the others are close-ups of one region.
        area_power: within a level, regions are drawn in proportion to their area to this power.
        grouping: weight of the encoder's dense loss.
    """

    stages: tuple[SamStage, ...] = (
        SamStage(128, 2500),
        SamStage(192, 1000, pictures=6),
        SamStage(256, 2200, pictures=4),
    )
    lr: float = 8e-4
    warmup: int = 100
    weight_decay: float = 0.01
    box_share: float = 0.6
    whole_pictures: float = 0.4
    area_power: float = 0.5
    grouping: float = 0.5


RECIPES: dict[str, SamTraining] = {
    "cpu": SamTraining(bf16=True),
    "cpu-more": SamTraining(stages=(SamStage(256, 7000, worlds=0.85, pictures=4),), lr=6e-4, whole_pictures=0.6),
    "cpu-fine": SamTraining(
        stages=(SamStage(384, 3400, worlds=0.9, pictures=4, turns=(256,)),),
        lr=4e-4,
        whole_pictures=0.75,
        area_power=0.25,
    ),
    "gpu": SamTraining(stages=(SamStage(256, 10_000, pictures=48, prompts=12),), lr=1e-3, warmup=500, bf16=True),
}
"""By where they fit: two CPU cores (with bf16 instructions) for an hour and a half; as long again for weights that are
started from, at full size and in fp32, which compiled is faster where bf16 has no matrix units; the same in turn with
finer pictures, for another hour and a half; one GPU for half an hour."""


@dataclass(frozen=True)
class ClipSegStage(Stage):
    """A stretch of training at one picture size, a multiple of the patch.

    Attributes:
        pictures: pictures per step.
    """

    pictures: int = 16


@dataclass(frozen=True, kw_only=True)
class ClipSegTraining(StagedTraining[ClipSegStage]):
    """The recipe of the bundled CLIPSeg's decoder: small pictures teach what a phrase means, full ones where it ends.

    Attributes:
        phrases: per picture and step; the frozen vision tower runs once for all of them.
        absent: how many of them are true of nothing in the picture.
    """

    stages: tuple[ClipSegStage, ...] = (ClipSegStage(128, 1600), ClipSegStage(256, 800, pictures=8))
    phrases: int = 5
    absent: int = 2
    lr: float = 1e-3
    warmup: int = 100
    weight_decay: float = 0.01


CLIPSEG_RECIPES: dict[str, ClipSegTraining] = {
    "cpu": ClipSegTraining(),
    "gpu": ClipSegTraining(
        stages=(ClipSegStage(128, 6000, 64), ClipSegStage(256, 6000, 64)), phrases=8, absent=3, warmup=500, bf16=True
    ),
}
"""By where they fit: one CPU core for half an hour (where bfloat16 gains nothing: heads are 16 wide), or one GPU."""
