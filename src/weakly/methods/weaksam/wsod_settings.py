"""Settings of stage D, the weakly supervised detector (spec weaksam, section 3)."""

from __future__ import annotations

from bisect import bisect_right
from dataclasses import dataclass, field, replace
from typing import Literal

from weakly.errors import UserError
from weakly.methods.weaksam.drop_block import DropBlockSettings
from weakly.methods.weaksam.wsod_backbone import Norm
from weakly.methods.weaksam.wsod_crops import CropSettings

BRANCHES = 3
"""N, the refinement branches."""


@dataclass(frozen=True)
class WsodSettings:
    """The detector; the defaults are WeakSAM's with MIST on VGG16, :func:`oicr_settings` those with OICR.

    Attributes:
        head: ``mist``: streams with a background column, box regression, cross-entropy; ``oicr``: streams of the
            categories alone, no regression, a bounded logarithm.
        mining: ``spread`` (MIST), ``near_top`` (WSOD2's OICR, which WeakSAM uses) or ``top`` (OICR's own).
        backbone: ``vgg16``, a ResNet of timm, ``clip``: the patches of a frozen CLIP and a convolution, or ``crops``: a
            frozen CLIP's embedding of the picture inside each box, where nothing is pooled.
        stages: of that ResNet, 2 to 4.
        norm: of that ResNet: ``group``, or ``frozen`` batch norms, which come with trained weights.
        weights: see :func:`~weakly.methods.weaksam.wsod_backbone.build_vgg16` and ``build_stages``; None: random;
            of ``clip`` and ``crops`` the CLIP's name, ``bundled`` by default.
        frozen_groups: of VGG16's five groups of convolutions, how many do not train.
        colours: of the pixels: ``imagenet`` (RGB, deviation 1), ``caffe`` (BGR, 0..255) or ``clip``, as the weights
            want.
        pool: ``pool`` (RoIPool) or ``align`` (RoIAlign, several times faster on a CPU).
        width: units of the two fully connected layers.
        dropout: behind each of them.
        branch_weights: of the losses of the three refinement branches.
        portion: share of the RoIs that ``spread`` looks at.
        mine_iou: ``spread``: candidates this close to a better one go.
        near_ratio: ``near_top``: share of the best score that candidates reach.
        near_iou: ``near_top``: a candidate that overlaps a better one with a larger IoU goes.
        foreground_iou: of a RoI and its pseudo box.
        drop_block: hides parts of the RoIs in training; None: nothing is hidden.
        crops: of ``crops``.
    """

    head: Literal["mist", "oicr"] = "mist"
    mining: Literal["spread", "near_top", "top"] = "spread"
    backbone: str = "vgg16"
    stages: int = 3
    norm: Norm = "group"
    weights: str | None = None
    frozen_groups: int = 2
    colours: Literal["imagenet", "caffe", "clip"] = "imagenet"
    pool: Literal["pool", "align"] = "pool"
    width: int = 4096
    dropout: float = 0.5
    branch_weights: tuple[float, float, float] = (3.0, 1.0, 1.0)
    portion: float = 0.15
    mine_iou: float = 0.2
    near_ratio: float = 0.9
    near_iou: float = 0.5
    foreground_iou: float = 0.5
    drop_block: DropBlockSettings | None = field(default_factory=DropBlockSettings)
    crops: CropSettings = field(default_factory=CropSettings)

    def __post_init__(self) -> None:
        for name in ("portion", "mine_iou", "near_ratio", "near_iou", "foreground_iou"):
            if not 0 < getattr(self, name) <= 1:
                raise UserError(f"wsod.{name} is {getattr(self, name)}; give a fraction above 0 and at most 1.")
        if not 0 <= self.dropout < 1:
            raise UserError(f"wsod.dropout is {self.dropout}; give a number of at least 0 and below 1.")
        if self.width < 1:
            raise UserError(f"wsod.width is {self.width}; give at least 1.")
        if not 2 <= self.stages <= 4:
            raise UserError(f"wsod.stages is {self.stages}; give 2, 3 or 4.")
        if (self.backbone == "clip") != (self.colours == "clip"):
            raise UserError(
                f"wsod.backbone is {self.backbone!r} but wsod.colours {self.colours!r}; set both to clip, or neither."
            )
        if self.sees_crops and self.drop_block is not None:
            raise UserError("wsod.drop_block hides cells of RoIs, which crops have not; set it to null.")
        if not 0 <= self.frozen_groups <= 5:
            raise UserError(f"wsod.frozen_groups is {self.frozen_groups}; give 0 to 5.")
        if len(self.branch_weights) != BRANCHES or min(self.branch_weights) < 0:
            raise UserError(f"wsod.branch_weights is {list(self.branch_weights)}; give three numbers of at least 0.")

    @property
    def sees_crops(self) -> bool:
        """Whether the detector is shown embeddings of crops in place of pixels."""
        return self.backbone == "crops"

    @property
    def offset(self) -> int:
        """Column of category 0 in the two streams."""
        return 1 if self.head == "mist" else 0


def oicr_settings(settings: WsodSettings | None = None) -> WsodSettings:
    """``settings`` (the defaults) with the head, mining and weights of WeakSAM's OICR."""
    return replace(
        settings or WsodSettings(),
        head="oicr",
        mining="near_top",
        branch_weights=(1.0, 1.0, 1.0),
        drop_block=None,
    )


@dataclass(frozen=True)
class WsodTraining:
    """How the detector is trained; the defaults are those of MIST on VOC07.

    Attributes:
        iterations: updates.
        batch: views per update.
        lr: of weights, after the warm-up.
        bias_lr: learning rate of biases over that of weights.
        refine_lr: learning rate of the refinement branches over that of the rest.
        weight_decay: of weights; biases have none.
        steps: updates from which on the rate is multiplied by ``gamma`` once more.
        gamma: see ``steps``.
        warmup: updates over which the rate rises in a line.
        warmup_factor: of the rate, where the warm-up starts.
        gate_lr: learning rate of the drop block's network, with the same schedule.
        gate_weight: of the detector's loss, which that network makes larger.
        sizes: short sides of views in pixels, drawn evenly.
        max_size: largest long side of a view.
        flip: probability of mirroring left to right.
        save_every: updates between two checkpoints; a multiple of 10 looks at the loss first.
        workers: threads that read images ahead. The batches are the same.
        seed: of order, views, dropout and hidden parts.
    """

    iterations: int = 30_000
    batch: int = 8
    lr: float = 1e-5
    bias_lr: float = 2.0
    refine_lr: float = 1.0
    weight_decay: float = 5e-4
    steps: tuple[int, ...] = (20_000, 26_700)
    gamma: float = 0.1
    warmup: int = 200
    warmup_factor: float = 1 / 3
    gate_lr: float = 1e-5
    gate_weight: float = 0.01
    sizes: tuple[int, ...] = (480, 576, 688, 864, 1000, 1200)
    max_size: int = 2000
    flip: float = 0.5
    save_every: int = 500
    workers: int = 2
    seed: int = 42

    def __post_init__(self) -> None:
        for name in ("iterations", "batch", "lr", "save_every", "workers"):
            if getattr(self, name) <= 0:
                raise UserError(f"wsod_training.{name} is {getattr(self, name)}; give a number above 0.")
        for name in ("bias_lr", "refine_lr", "weight_decay", "gamma", "warmup", "gate_lr", "gate_weight", "seed"):
            if getattr(self, name) < 0:
                raise UserError(f"wsod_training.{name} is {getattr(self, name)}; give 0 or more.")
        for name in ("warmup_factor", "flip"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"wsod_training.{name} is {getattr(self, name)}; give a number in [0, 1].")
        if not self.sizes or not 1 <= min(self.sizes) <= max(self.sizes) <= self.max_size:
            raise UserError(
                f"wsod_training.sizes is {list(self.sizes)} and max_size is {self.max_size}; give short sides of at "
                "least 1 pixel and none above max_size."
            )
        if list(self.steps) != sorted(self.steps):
            raise UserError(f"wsod_training.steps is {list(self.steps)}; give them in ascending order.")

    def factor(self, step: int) -> float:
        """What learning rates are multiplied by at update ``step`` (0 is the first)."""
        rise = min(1.0, step / self.warmup) if self.warmup else 1.0
        warm = self.warmup_factor + (1 - self.warmup_factor) * rise
        return warm * self.gamma ** bisect_right(self.steps, step)
