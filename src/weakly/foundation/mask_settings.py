"""The settings of automatic masks, and the presets behind FMA-WSSS's Table 4."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal

from weakly.errors import UserError

WholeFirst = Literal["first_pass", "every_pass"]
StabilityAt = Literal["crop", "decoder"]
LevelOf = Literal["output", "area"]


@dataclass(frozen=True)
class AutomaticMaskSettings:
    """How automatic masks are made; the defaults are those of FMA-WSSS (fma-wsss, section 5.1).

    Attributes:
        points_per_side: points along each side of the image; 32 is 1,024 prompts.
        crop_layers: 0: the image alone; 1: also 2 x 2 crops; l: also 2^l x 2^l.
        point_downscale: points per side are divided by this from layer to layer.
        crop_overlap: of neighbouring crops, as a fraction of the image's short side.
        iou_threshold: predicted IoU must exceed this.
        whole_iou_offset: added to the predicted IoU of a whole for that test: more wholes.
        stability_threshold: least stability, the IoU of the mask at logits over +offset and over -offset.
        stability_offset: in logits.
        stability_at: ``crop``: stability of the logits upscaled to the crop, as published; ``decoder``: of the
            decoder's own, before upscaling. The second is an approximation, coarse for masks of a few decoder pixels,
            that saves upscaling unstable masks.
        nms_threshold: box IoU over which the worse of two masks of one crop goes.
        crop_nms_threshold: the same over all crops, where the smaller crop wins.
        whole_nms_offset: added to the score of a whole in non-maximum suppression: wholes first.
        whole_first: ``first_pass``: within a crop only, as published; ``every_pass``: also over the crops and after
            the clean-up.
        min_region: holes and islands under this many pixels are cleaned away; 0: no clean-up and no third pass.
        edge_margin: a mask that ends within this many pixels of a crop's edge, and not of the image's, is dropped.
        level_of: ``output``: a mask's level is the index of the decoder's output, as in SAM; ``area``: the rank of its
            area among the three masks of its prompt, for a segmenter whose outputs have no order.
        prompts_per_batch: prompts decoded at once.
        crops_per_batch: crops encoded at once; a ViT with relative positions at 1,024 px holds about 1 GiB of
            attention for each.
    """

    points_per_side: int = 32
    crop_layers: int = 1
    point_downscale: int = 2
    crop_overlap: float = 512 / 1500
    iou_threshold: float = 0.86
    whole_iou_offset: float = 0.1
    stability_threshold: float = 0.92
    stability_offset: float = 1.0
    stability_at: StabilityAt = "crop"
    nms_threshold: float = 0.7
    crop_nms_threshold: float = 0.7
    whole_nms_offset: float = 1.0
    whole_first: WholeFirst = "first_pass"
    min_region: int = 100
    edge_margin: int = 20
    level_of: LevelOf = "output"
    prompts_per_batch: int = 64
    crops_per_batch: int = 5

    def __post_init__(self) -> None:
        for name in ("points_per_side", "point_downscale", "prompts_per_batch", "crops_per_batch"):
            _require(getattr(self, name) >= 1, name, getattr(self, name), "a whole number of at least 1")
        for name in ("min_region", "edge_margin", "stability_offset", "whole_iou_offset", "whole_nms_offset"):
            _require(getattr(self, name) >= 0, name, getattr(self, name), "a number of at least 0")
        for name in ("iou_threshold", "stability_threshold", "nms_threshold", "crop_nms_threshold"):
            _require(0 <= getattr(self, name) <= 1, name, getattr(self, name), "a fraction in [0, 1]")
        _require(0 <= self.crop_layers <= 4, "crop_layers", self.crop_layers, "0 to 4")
        _require(0 <= self.crop_overlap < 1, "crop_overlap", self.crop_overlap, "a fraction in [0, 1)")
        _require(self.stability_at in {"crop", "decoder"}, "stability_at", self.stability_at, "crop or decoder")
        _require(self.level_of in {"output", "area"}, "level_of", self.level_of, "output or area")
        _require(
            self.whole_first in {"first_pass", "every_pass"},
            "whole_first",
            self.whole_first,
            "first_pass or every_pass",
        )

    def points_on(self, layer: int) -> int:
        """Points per side of a crop of ``layer``."""
        return max(1, self.points_per_side // self.point_downscale**layer)


def _require(condition: bool, name: str, value: Any, wanted: str) -> None:
    if not condition:
        raise UserError(f"The automatic-mask setting {name} is {value!r}; give {wanted}.")


MASK_PRESETS: Mapping[str, AutomaticMaskSettings] = MappingProxyType(
    {
        "official_heavy": AutomaticMaskSettings(whole_iou_offset=0, whole_nms_offset=0),
        "s1": AutomaticMaskSettings(whole_nms_offset=0),
        "l2_nmsf": AutomaticMaskSettings(whole_iou_offset=0),
        "l2_nmsf_s1": AutomaticMaskSettings(),
        "l2_nmsf_s1_c0": AutomaticMaskSettings(crop_layers=0),
    }
)
"""The masks behind FMA-WSSS's Table 4: plain SAM, more wholes (``s1``; no published preset has it alone), wholes first
in NMS, both, and both without crops. The filter of the table's last rows is the method's, not the segmenter's."""
