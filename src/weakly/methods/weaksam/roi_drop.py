"""RoI drop: the losses of a second stage without the terms that pseudo boxes most likely got wrong (weaksam, 5.1).

Symbols: R sampled RoIs of all images of a batch, C categories; label 0 is background and k + 1 is category k, as
torchvision counts. A dropped term counts as 0 while the divisor stays R.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional
from torchvision.models.detection.roi_heads import RoIHeads, maskrcnn_loss  # type: ignore[import-untyped]

from weakly.errors import UserError

DropMode = Literal["none", "joint", "independent"]


@dataclass(frozen=True)
class DropSettings:
    """Which RoIs count. The published code fits both modes and runs with neither; the figure shows ``independent``.

    Attributes:
        mode: ``independent`` drops every classification term above ``cls`` and every regression term above ``reg``,
            confident false negatives among them; ``joint`` drops both terms of foreground RoIs where both are above;
            ``none`` drops nothing.
        cls: threshold of the cross-entropy; 4 is a probability of the label below 0.018.
        reg: threshold of the sum of the four absolute errors, in encoded units.
        start: first training step at which terms are dropped.
    """

    mode: DropMode = "independent"
    cls: float = 4.0
    reg: float = 4.0
    start: int = 2000

    def __post_init__(self) -> None:
        for name in ("cls", "reg"):
            if not getattr(self, name) > 0:
                raise UserError(f"drop.{name} is {getattr(self, name)}; give a number above 0.")
        if self.start < 0:
            raise UserError(f"drop.start is {self.start}; give 0 or more.")


class RoiLosses(NamedTuple):
    """What :func:`roi_losses` found, all scalars.

    Attributes:
        classification: sum of the kept cross-entropies over R.
        regression: sum of the kept regression losses of foreground RoIs over R.
        dropped_classification: share of the R cross-entropies that were dropped.
        dropped_regression: share of the foreground RoIs whose regression loss was dropped.
    """

    classification: Tensor
    regression: Tensor
    dropped_classification: Tensor
    dropped_regression: Tensor


def kept_terms(
    classification: Tensor, regression: Tensor, foreground: Tensor, drop: DropSettings, step: int | None
) -> tuple[Tensor, Tensor]:
    """Which terms stay.

    Args:
        classification: (R,) cross-entropies.
        regression: (R,) summed absolute errors in encoded units; those of background RoIs do not matter.
        foreground: (R,) bool.
        drop: thresholds and mode.
        step: training step; None: nothing is dropped, as in validation.

    Returns:
        (R,) bool: classification terms that stay, and regression terms that stay (also True for background).
    """
    if drop.mode == "none" or step is None or step < drop.start:
        everything = torch.ones_like(foreground)
        return everything, everything
    doubtful_class = classification > drop.cls
    doubtful_box = (regression > drop.reg) & foreground
    if drop.mode == "independent":
        return ~doubtful_class, ~doubtful_box
    both = doubtful_class & doubtful_box
    return ~both, ~both


def roi_losses(
    class_logits: Tensor,
    box_regression: Tensor,
    labels: Tensor,
    targets: Tensor,
    drop: DropSettings,
    step: int | None,
    beta: float = 0.0,
) -> RoiLosses:
    """Both losses of the second stage without the dropped terms, which get no gradient.

    What is dropped is decided by plain absolute errors, whatever ``beta`` is. There is no host sync.

    Args:
        class_logits: (R, C + 1).
        box_regression: (R, 4 (C + 1)) class-specific deltas.
        labels: (R,) int64, 0 for background.
        targets: (R, 4) encoded deltas; those of background RoIs may be anything, infinite too.
        drop: thresholds and mode.
        step: training step; None: nothing is dropped.
        beta: of the smooth L1 loss; 0 is L1.
    """
    count = max(1, len(labels))
    foreground = labels > 0
    cross_entropy = functional.cross_entropy(class_logits.float(), labels, reduction="none")
    deltas = box_regression.float().reshape(len(labels), -1, 4)
    chosen = deltas.gather(1, labels[:, None, None].expand(-1, 1, 4))[:, 0]
    goals = targets.where(foreground[:, None], chosen.detach())  # so that background adds exactly 0
    errors = functional.smooth_l1_loss(chosen, goals, beta=beta, reduction="none").sum(1)
    distances = (chosen - goals).detach().abs().sum(1)
    kept_class, kept_box = kept_terms(cross_entropy.detach(), distances, foreground, drop, step)
    return RoiLosses(
        cross_entropy.where(kept_class, 0).sum() / count,
        errors.where(kept_box & foreground, 0).sum() / count,
        (~kept_class).sum() / count,
        (~kept_box).sum() / foreground.sum().clamp(min=1),
    )


class DropRoIHeads(RoIHeads):
    """torchvision's second stage, trained with RoI drop; its inference is unchanged.

    Args:
        drop: thresholds and mode.
        beta: of the smooth L1 loss of the boxes.
        options: of ``RoIHeads``.
    """

    def __init__(self, drop: DropSettings, beta: float, **options: Any) -> None:
        super().__init__(**options)
        self.drop = drop
        self.beta = beta

    def losses(
        self,
        features: Mapping[str, Tensor],
        proposals: Sequence[Tensor],
        sizes: Sequence[tuple[int, int]],
        targets: Sequence[Mapping[str, Tensor]],
        step: int | None,
    ) -> dict[str, Tensor]:
        """What training minimises, and the shares that were dropped.

        Args:
            features: maps of the pyramid by name, of B images.
            proposals: B times (n, 4) boxes in pixels of the view.
            sizes: (height, width) of the B views without padding.
            targets: B mappings with ``boxes`` (m, 4), ``labels`` (m,) of 1..C and, with a mask head, ``masks``
                (m, H, W).
            step: training step; None: nothing is dropped.

        Returns:
            ``classification`` and ``regression``, with a mask head ``mask``; detached ``dropped_classification`` and
            ``dropped_regression``.
        """
        proposals, matched, labels, goals = self.select_training_samples(list(proposals), list(targets))
        pooled = self.box_head(self.box_roi_pool(features, proposals, list(sizes)))
        logits, deltas = self.box_predictor(pooled)
        found = roi_losses(logits, deltas, torch.cat(labels), torch.cat(goals), self.drop, step, self.beta)
        parts: dict[str, Tensor] = found._asdict()
        if self.has_mask():
            parts["mask"] = self._mask_loss(features, proposals, matched, labels, sizes, targets)
        return parts

    def _mask_loss(
        self,
        features: Mapping[str, Tensor],
        proposals: Sequence[Tensor],
        matched: Sequence[Tensor],
        labels: Sequence[Tensor],
        sizes: Sequence[tuple[int, int]],
        targets: Sequence[Mapping[str, Tensor]],
    ) -> Tensor:
        """Mean cross-entropy of the masks of foreground RoIs."""
        inside = [of_image > 0 for of_image in labels]
        boxes = [box[mask] for box, mask in zip(proposals, inside, strict=True)]
        rows = [row[mask] for row, mask in zip(matched, inside, strict=True)]
        logits = self.mask_predictor(self.mask_head(self.mask_roi_pool(features, boxes, list(sizes))))
        truth, classes = [t["masks"] for t in targets], [t["labels"] for t in targets]
        loss: Tensor = maskrcnn_loss(logits.float(), boxes, truth, classes, rows)
        return loss
