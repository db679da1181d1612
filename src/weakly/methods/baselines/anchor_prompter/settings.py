"""The settings of the anchor-based prompter; its architecture is ours, the paper states none."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from weakly.errors import UserError
from weakly.foundation.promptable import Pad
from weakly.methods.wps.settings import PRESETS as WPS_PRESETS
from weakly.methods.wps.settings import Fusion, PointSource, Position, WpsSettings


@dataclass(frozen=True)
class AnchorPrompterSettings:
    """The ``settings:`` section of a recipe. What has a name of WPS-SAM's settings means the same.

    Attributes:
        segmenter: the promptable segmenter.
        supervision: ``box`` or ``point+box``; regions are matched to parts by their boxes, so points do not do alone.
        width: channels of the pyramid.
        hidden: units of the two layers that all heads share.
        anchors: sides of the anchors of the four levels, finest first, as shares of the frame's side.
        ratios: of the anchors' height to width.
        anchors_per_image: sampled to train the proposals, half of them on parts where there are as many.
        pre_nms: proposals of a level before suppression.
        proposals: regions of an image after suppression, which the second stage looks at.
        rois: regions of an image sampled to train the second stage, a quarter of them on parts where there are as many.
        position: ``zeros``: learned positions that start at zero; ``tokens``: they start as the segmenter's own
            encoding of the cells' centres. Either way they are added to the embedding's cells: pooling regions
            forgets where they lie, and prompts are places.
        lambda_cls: weight of the cross-entropy.
        lambda_reg: weight of the smooth-L1 regression of tokens. The proposals' losses and the regression of box
            offsets, which serve suppression alone, weigh 1.
        nms: regions of one category that overlap a better one with a larger IoU do not ask.
        detections: regions of an image that ask, at most.
        score_threshold: keep a region only if its class probability reaches this; None: argmax alone decides.
        fusion: of masks.
        pad: of images.
        point_source: where points come from.
        flip: also train on mirrored images.
        max_prompts: prompts decoded at once.
    """

    segmenter: str = "bundled"
    supervision: Literal["box", "point+box"] = "box"
    width: int = 256
    hidden: int = 1024
    anchors: tuple[float, float, float, float] = (0.0625, 0.125, 0.25, 0.5)
    ratios: tuple[float, ...] = (0.5, 1.0, 2.0)
    anchors_per_image: int = 256
    pre_nms: int = 500
    proposals: int = 250
    rois: int = 128
    position: Position = "zeros"
    lambda_cls: float = 5.0
    lambda_reg: float = 20.0
    nms: float = 0.5
    detections: int = 100
    score_threshold: float | None = None
    fusion: Fusion = "argmax"
    pad: Pad = "sam"
    point_source: PointSource = "box_center"
    flip: bool = False
    max_prompts: int = 64

    def __post_init__(self) -> None:
        for name in ("width", "hidden", "anchors_per_image", "pre_nms", "proposals", "rois", "detections"):
            if getattr(self, name) < 1:
                raise UserError(f"settings.{name} is {getattr(self, name)}; give a number of at least 1.")
        if len(self.anchors) != 4 or list(self.anchors) != sorted(self.anchors) or min(self.anchors) <= 0:
            raise UserError(
                f"settings.anchors is {list(self.anchors)}; give four ascending shares of the frame's side, above 0."
            )
        if not self.ratios or min(self.ratios) <= 0:
            raise UserError(f"settings.ratios is {list(self.ratios)}; give at least one number, all above 0.")
        if not 0 <= self.nms <= 1:
            raise UserError(f"settings.nms is {self.nms}; give a number in [0, 1].")
        if self.supervision not in ("box", "point+box"):
            raise UserError(f"settings.supervision is {self.supervision!r}; give box or point+box: anchors need boxes.")
        self.prompting()  # which looks at the rest

    def prompting(self) -> WpsSettings:
        """The settings under which WPS-SAM asks its teacher, and decodes and fuses what a student asks, as this does.

        Its number of queries says nothing here, and is so large that no image has more parts.
        """
        return WpsSettings(
            segmenter=self.segmenter,
            supervision=self.supervision,
            queries=1 << 30,
            score_threshold=self.score_threshold,
            fusion=self.fusion,
            pad=self.pad,
            point_source=self.point_source,
            flip=self.flip,
            max_prompts=self.max_prompts,
        )


PRESETS: Mapping[str, Mapping[str, Any]] = {name: WPS_PRESETS[name] for name in ("default", "paper")}
"""Those of WPS-SAM but for ``official``: the released code has no anchors."""
