"""The two stages of Faster R-CNN on any feature pyramid, from torchvision's parts.

A pyramid gives its maps by name, finest first: ``0``, ``1`` ... and ``pool``, the coarsest, from which proposals come
and no RoI is pooled.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

from torch import Tensor
from torchvision.models.detection.anchor_utils import AnchorGenerator  # type: ignore[import-untyped]
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor, TwoMLPHead  # type: ignore[import-untyped]
from torchvision.models.detection.image_list import ImageList  # type: ignore[import-untyped]
from torchvision.models.detection.rpn import RegionProposalNetwork, RPNHead  # type: ignore[import-untyped]
from torchvision.ops import MultiScaleRoIAlign  # type: ignore[import-untyped]

from weakly.errors import UserError
from weakly.methods.resnet import LEVELS, Norm


@dataclass(frozen=True)
class TwoStageSettings:
    """Sizes of the pyramid and of both stages; the defaults are torchvision's, for a pyramid with strides 4 to 64.

    Attributes:
        section: what a recipe calls them.
        width: channels of the pyramid; a multiple of 32.
        hidden: units of the box head's two layers.
        anchors: side in pixels of the anchors of each level of the pyramid, finest first.
        ratios: of the anchors' height to width.
        anchors_per_image: sampled to train the proposals.
        pre_nms: proposals of a level before suppression; half as many in prediction.
        proposals: of an image after suppression.
        rois: sampled to train the second stage, a quarter of them foreground where there are as many.
        roi_scale: side in pixels of the RoIs that are pooled at stride 16; smaller ones at finer strides.
        scales: of the pyramid on a segmenter's embedding: sides of its maps to those of the embedding, finest first.
            The defaults give strides 4 to 64 on SAM's embedding of stride 16.
        frozen_stages: of stem and four stages, how many a pretrained ResNet keeps as they are, from the stem on.
        norm: of a ResNet with random weights and of its pyramid; a pretrained one has frozen batch norm and no norm in
            the pyramid.
    """

    section: ClassVar[str] = "detector"

    width: int = 256
    hidden: int = 1024
    anchors: tuple[int, ...] = (32, 64, 128, 256, 512)
    ratios: tuple[float, ...] = (0.5, 1.0, 2.0)
    anchors_per_image: int = 256
    pre_nms: int = 2000
    proposals: int = 1000
    rois: int = 512
    roi_scale: int = 224
    scales: tuple[float, ...] = (4, 2, 1, 0.5, 0.25)
    frozen_stages: int = 2
    norm: Norm = "group"

    def __post_init__(self) -> None:
        section = self.section
        if len(self.anchors) < 2 or min(self.anchors) < 1:
            raise UserError(
                f"{section}.anchors is {list(self.anchors)}; give sides in pixels, one per level, at least 2."
            )
        if not self.ratios or min(self.ratios) <= 0:
            raise UserError(f"{section}.ratios is {list(self.ratios)}; give at least one number, all above 0.")
        if self.width < 32 or self.width % 32:
            raise UserError(f"{section}.width is {self.width}; give a multiple of 32, the groups of its norms.")
        for name in ("hidden", "anchors_per_image", "pre_nms", "proposals", "rois", "roi_scale"):
            if getattr(self, name) < 1:
                raise UserError(f"{section}.{name} is {getattr(self, name)}; give at least 1.")
        doubled = all(fine == 2 * coarse for fine, coarse in zip(self.scales, self.scales[1:], strict=False))
        if not doubled or not set(self.scales) <= {4, 2, 1, 0.5, 0.25, 0.125}:
            raise UserError(
                f"{section}.scales is {list(self.scales)}; give powers of two from 4 to 0.125, each half of the one "
                "before."
            )
        if not 0 <= self.frozen_stages <= 5:
            raise UserError(f"{section}.frozen_stages is {self.frozen_stages}; give a number from 0 to 5.")

    def check_levels(self, backbone: str) -> None:
        """Refuse anchors that are not one per level of the pyramid on ``backbone``, a ResNet or the ``segmenter``.

        Raises:
            UserError: there are more of them, or fewer.
        """
        levels = len(self.scales) if backbone == "segmenter" else LEVELS
        if len(self.anchors) != levels:
            raise UserError(
                f"{self.section}.anchors has {len(self.anchors)} sides, but the pyramid {levels} levels; give one side "
                "per level."
            )

    @property
    def roi_levels(self) -> list[str]:
        """Names of the maps that RoIs are pooled from."""
        return level_names(len(self.anchors))[:-1]


def level_names(count: int) -> list[str]:
    """Names of the maps of a pyramid, finest first."""
    return [*(str(level) for level in range(count - 1)), "pool"]


def images_in_frames(inputs: Tensor, side: int, sizes: Sequence[tuple[int, int]]) -> ImageList:
    """B images in frames of S x S pixels as the stages want them, whose size they ask for and not their pixels.

    Args:
        inputs: (B, ...) what a pyramid makes its maps of, pixels or embeddings.
        side: S.
        sizes: (height, width) of the B images in their frames, at the top left.
    """
    return ImageList(inputs.new_zeros(1).expand(len(inputs), 1, side, side), list(sizes))


def proposal_network(settings: TwoStageSettings) -> RegionProposalNetwork:
    """The first stage. It has neither norms nor dropout: its mode only decides whether it gives losses."""
    anchors = AnchorGenerator(tuple((side,) for side in settings.anchors), (settings.ratios,) * len(settings.anchors))
    return RegionProposalNetwork(
        anchors,
        RPNHead(settings.width, len(settings.ratios)),
        fg_iou_thresh=0.7,
        bg_iou_thresh=0.3,
        batch_size_per_image=settings.anchors_per_image,
        positive_fraction=0.5,
        pre_nms_top_n={"training": settings.pre_nms, "testing": max(1, settings.pre_nms // 2)},
        post_nms_top_n={"training": settings.proposals, "testing": settings.proposals},
        nms_thresh=0.7,
    )


def roi_align(settings: TwoStageSettings, side: int) -> MultiScaleRoIAlign:
    """Pools side x side cells per RoI, from the level that suits its size."""
    align = partial(MultiScaleRoIAlign, settings.roi_levels, sampling_ratio=2, canonical_scale=settings.roi_scale)
    return align(output_size=side)


def box_branch(
    settings: TwoStageSettings, classes: int, *, min_score: float, nms: float, detections: int
) -> dict[str, Any]:
    """What torchvision's ``RoIHeads`` is made of for C categories, with label 0 for background.

    Args:
        settings: sizes.
        classes: C.
        min_score: detections with a lower score are left out.
        nms: detections of one category that overlap a better one with a larger IoU are left out.
        detections: of an image at most.
    """
    return {
        "box_roi_pool": roi_align(settings, 7),
        "box_head": TwoMLPHead(settings.width * 7**2, settings.hidden),
        "box_predictor": FastRCNNPredictor(settings.hidden, classes + 1),
        "fg_iou_thresh": 0.5,
        "bg_iou_thresh": 0.5,
        "batch_size_per_image": settings.rois,
        "positive_fraction": 0.25,
        "bbox_reg_weights": (10.0, 10.0, 5.0, 5.0),
        "score_thresh": min_score,
        "nms_thresh": nms,
        "detections_per_img": detections,
    }
