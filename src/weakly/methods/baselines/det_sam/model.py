"""The part detectors behind one interface, and Faster R-CNN among them: what trains.

A detector sees a square frame of S x S pixels, as an image or as its embedding, and answers in pixels of that frame.
Symbols: B images, M instances of the fullest, N detections of all images, C categories. Boxes are ``x0, y0, x1, y1``.
Categories are 0..C-1 here; torchvision's shift by 1 happens inside.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torchvision.models.detection.roi_heads import RoIHeads  # type: ignore[import-untyped]

from weakly.methods.baselines.det_sam.settings import DetSamSettings
from weakly.methods.baselines.det_sam.targets import DetSamBatch
from weakly.methods.two_stage import box_branch, images_in_frames, proposal_network


class Found(NamedTuple):
    """N detections in B images, image after image, by descending score within each.

    Attributes:
        image: (N,) int64.
        boxes: (N, 4) float32 in pixels of the frame; they may leave it.
        labels: (N,) int64 categories.
        scores: (N,) float32 in [0, 1].
    """

    image: Tensor
    boxes: Tensor
    labels: Tensor
    scores: Tensor


class Detector(nn.Module, ABC):
    """A network that finds parts of C categories.

    Attributes:
        side: S.
        backbone: beginning of the names of a ResNet's parameters; without a ResNet, of none.
    """

    side: int
    backbone: ClassVar[str] = "no backbone."

    @abstractmethod
    def losses(self, batch: DetSamBatch) -> dict[str, Tensor]:
        """Scalars: ``"loss"``, which training minimises, and the weighted parts it is the sum of."""

    @abstractmethod
    def detect(self, inputs: Tensor) -> Found:
        """Detections in ``inputs`` as in :class:`DetSamBatch`, of a detector in evaluation mode."""

    def described(self) -> Mapping[str, Any]:
        """What is needed besides the settings to build it again, as values that JSON can hold."""
        return {}


class FasterRcnn(Detector):
    """Faster R-CNN on a feature pyramid.

    Args:
        pyramid: (B, ...) inputs to maps by name; see :mod:`weakly.methods.two_stage`.
        side: S.
        settings: of the method.
        classes: C.
    """

    backbone: ClassVar[str] = "pyramid.body."

    def __init__(self, pyramid: nn.Module, side: int, settings: DetSamSettings, classes: int) -> None:
        super().__init__()
        self.side = side
        self.pyramid = pyramid
        self.rpn = proposal_network(settings.faster_rcnn)
        limits = {"nms": settings.nms, "min_score": settings.min_score}
        branch = box_branch(settings.faster_rcnn, classes, detections=settings.detections, **limits)
        self.roi_heads: Any = RoIHeads(**branch)

    def losses(self, batch: DetSamBatch) -> dict[str, Tensor]:
        """``objectness``, ``proposal``, ``classification`` and ``regression``."""
        instances = zip(batch.boxes, batch.labels, batch.counts, strict=True)
        targets = [{"boxes": boxes[:count], "labels": labels[:count] + 1} for boxes, labels, count in instances]
        _, found = self._stages(batch.inputs, targets)
        names = {
            "objectness": "loss_objectness",
            "proposal": "loss_rpn_box_reg",
            "classification": "loss_classifier",
            "regression": "loss_box_reg",
        }
        parts = {name: found[theirs] for name, theirs in names.items()}
        return {"loss": torch.stack(list(parts.values())).sum(), **parts}

    @torch.no_grad()
    def detect(self, inputs: Tensor) -> Found:
        """Detections of the second stage, suppressed per category."""
        results, _ = self._stages(inputs, None)
        image = torch.repeat_interleave(torch.tensor([len(result["scores"]) for result in results]))
        boxes, labels, scores = (
            torch.cat([result[key] for result in results]) for key in ("boxes", "labels", "scores")
        )
        return Found(image.to(boxes.device), boxes, labels - 1, scores)

    def _stages(
        self, inputs: Tensor, targets: list[dict[str, Tensor]] | None
    ) -> tuple[list[dict[str, Tensor]], dict[str, Tensor]]:
        """What both stages find, and with targets their losses.

        The stages have neither norms nor dropout: their mode decides alone whether they give losses.
        """
        for stage in (self.rpn, self.roi_heads):
            stage.train(targets is not None)
        sizes = [(self.side, self.side)] * len(inputs)
        images = images_in_frames(inputs, self.side, sizes)
        features = self.pyramid(inputs)
        proposals, proposal_losses = self.rpn(images, features, targets)
        results, box_losses = self.roi_heads(features, proposals, sizes, targets)
        return results, {**proposal_losses, **box_losses}
