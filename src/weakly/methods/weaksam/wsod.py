"""The weakly supervised detector of stage D: OICR and MIST as one plain torch module (spec weaksam, section 3).

Symbols: B views, R RoIs of all of them, C categories, K = C + 1 columns of the two streams with MIST (0 is background)
and C with OICR, D channels, N = 3 refinement branches. RoIs are ``x0, y0, x1, y1`` in pixels of their view, exclusive.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torchvision.ops import box_iou, roi_align, roi_pool  # type: ignore[import-untyped]

from weakly.errors import UserError
from weakly.foundation.clip import CLIP_MEAN, CLIP_STD
from weakly.methods.weaksam.drop_block import ConcreteDropBlock
from weakly.methods.weaksam.mining import (
    PseudoBoxes,
    RoiTargets,
    assign,
    box_loss,
    cross_entropy_loss,
    decode_boxes,
    image_loss,
    mil_scores,
    mine_near_top,
    mine_spread,
    mine_top,
    probability_loss,
    to_inclusive,
)
from weakly.methods.weaksam.wsod_backbone import STRIDE, Body, build_stages, build_vgg16
from weakly.methods.weaksam.wsod_clip import build_clip, build_crops
from weakly.methods.weaksam.wsod_settings import BRANCHES, WsodSettings

CELLS = 7
"""Pooled cells along a side of a RoI."""

PAD = 32
"""Heights and widths of batches are multiples of it."""

_COLOURS = {  # channel order of RGB input, mean, deviation; of 0..255
    "imagenet": ((0, 1, 2), (123.675, 116.28, 103.53), (58.395, 57.12, 57.375)),
    "caffe": ((2, 1, 0), (102.9801, 115.9465, 122.7717), (1.0, 1.0, 1.0)),
    "clip": ((0, 1, 2), tuple(255 * value for value in CLIP_MEAN), tuple(255 * value for value in CLIP_STD)),
}


class HeadOutputs(NamedTuple):
    """What the heads say of R RoIs.

    Attributes:
        cls: (R, K) logits of the classification stream.
        det: (R, K) logits of the detection stream.
        logits: (N, R, C + 1) of the refinement branches.
        offsets: (N, R, C + 1, 4) of theirs; None with OICR.
    """

    cls: Tensor
    det: Tensor
    logits: Tensor
    offsets: Tensor | None


class RoiPredictions(NamedTuple):
    """What a view says of its RoIs.

    Attributes:
        boxes: (R, C, 4).
        scores: (R, C) probabilities.
    """

    boxes: Tensor
    scores: Tensor


class WsodDetector(nn.Module):
    """Backbone, RoI pooling, two fully connected layers, two streams, three refinement branches.

    On crops nothing is pooled: a RoI's features are the embedding of its own picture.

    Args:
        settings: sizes and losses.
        classes: C.
        body: what looks at the pixels, or at the embeddings of crops.
    """

    _mean: Tensor
    _deviation: Tensor

    def __init__(self, settings: WsodSettings, classes: int, body: Body) -> None:
        super().__init__()
        self.settings, self.classes = settings, classes
        self.body = body.network
        self.neck = _build_neck(body, settings)
        columns = classes + settings.offset
        self.cls, self.det = nn.Linear(settings.width, columns), nn.Linear(settings.width, columns)
        self.refine = nn.ModuleList(nn.Linear(settings.width, classes + 1) for _ in range(BRANCHES))
        regressed = BRANCHES if settings.head == "mist" else 0
        self.regress = nn.ModuleList(nn.Linear(settings.width, 4 * (classes + 1)) for _ in range(regressed))
        for head in (self.cls, self.det, *self.refine, *self.regress):
            nn.init.normal_(head.weight, std=0.001)
            nn.init.zeros_(head.bias)
        self.drop_block = ConcreteDropBlock(body.channels, settings.drop_block) if settings.drop_block else None
        self._channels, mean, deviation = _COLOURS[settings.colours]
        self.register_buffer("_mean", torch.tensor(mean)[:, None, None], persistent=False)
        self.register_buffer("_deviation", torch.tensor(deviation)[:, None, None], persistent=False)

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self._mean.device

    def prepare(self, inputs: Sequence[Tensor]) -> Tensor:
        """The inputs of B views as one tensor on the detector's device.

        Args:
            inputs: B (3, h, w) uint8 RGB, or (r, E) embeddings of crops.

        Returns:
            (B, 3, H, W) float32: normalised, padded by 0 at the bottom and the right; (R, E) of crops.
        """
        if self.settings.sees_crops:
            return torch.cat(list(inputs)).to(self.device, non_blocking=True)
        height, width = (PAD * ceil(max(image.shape[side] for image in inputs) / PAD) for side in (1, 2))
        batch = torch.zeros(len(inputs), 3, height, width, device=self.device)
        for row, image in zip(batch, inputs, strict=True):
            pixels = image[list(self._channels)].to(self.device, non_blocking=True)
            row[:, : image.shape[1], : image.shape[2]] = (pixels - self._mean) / self._deviation
        return batch

    def pooled(self, pixels: Tensor, boxes: Sequence[Tensor]) -> Tensor:
        """(R, D, 7, 7) features of the RoIs; (R, D) of crops.

        RoIPool takes the last cell inside a box, so it is told inclusive boxes.

        Args:
            pixels: (B, 3, H, W), or (R, E), of :meth:`prepare`.
            boxes: B tensors (r, 4).
        """
        features: Tensor = self.body(pixels)
        if self.settings.sees_crops:
            return features
        if self.settings.pool == "pool":
            return roi_pool(features, [to_inclusive(each) for each in boxes], CELLS, 1 / STRIDE)
        return roi_align(features, list(boxes), CELLS, 1 / STRIDE, sampling_ratio=2, aligned=True)

    def heads(self, pooled: Tensor) -> HeadOutputs:
        """What the heads say of (R, D, 7, 7) or (R, D) features."""
        hidden = self.neck(pooled.flatten(1))
        offsets = None
        if self.regress:
            offsets = torch.stack([head(hidden).unflatten(1, (-1, 4)) for head in self.regress])
        logits = torch.stack([head(hidden) for head in self.refine])
        return HeadOutputs(self.cls(hidden), self.det(hidden), logits, offsets)

    def forward(self, pixels: Tensor, boxes: Sequence[Tensor]) -> HeadOutputs:
        """Of the RoIs of all views, one view after the other; parts of them hidden in training."""
        pooled = self.pooled(pixels, boxes)
        return self.heads(pooled if self.drop_block is None else self.drop_block(pooled))


def build_detector(settings: WsodSettings, classes: int, seed: int = 0) -> WsodDetector:
    """A fresh detector on the CPU; what its weights do not say of random ones depends on ``seed`` alone.

    Raises:
        UserError: the backbone or its weights cannot be had, or its norms would stay untrained.
    """
    if settings.backbone != "vgg16" and settings.norm == "frozen" and settings.weights is None:
        raise UserError("wsod.norm is 'frozen' but wsod.weights names none; give weights, or set norm to 'group'.")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return WsodDetector(settings, classes, _build_body(settings, settings.weights))


def rebuild_detector(settings: WsodSettings, classes: int) -> WsodDetector:
    """The detector of ``settings`` for whoever has all its weights: fetches and reads nothing but a frozen CLIP."""
    weights = settings.weights if settings.backbone in ("clip", "crops") else None
    return WsodDetector(settings, classes, _build_body(settings, weights))


def wsod_losses(
    outputs: HeadOutputs, boxes: Sequence[Tensor], tags: Tensor, settings: WsodSettings
) -> dict[str, Tensor]:
    """What training minimises: means over views.

    Args:
        outputs: of the R RoIs.
        boxes: B tensors (r, 4), on the device of the outputs.
        tags: (B, C) bool on the CPU, at least one per view.
        settings: which losses.

    Returns:
        Scalars: ``"loss"``, and the parts it is the sum of: ``"image"``, ``"classification"`` and, with MIST,
        ``"regression"``.
    """
    device = outputs.cls.device
    sizes = [len(each) for each in boxes]
    shown = [row.nonzero()[:, 0].to(device, non_blocking=True) for row in tags]
    parts = [outputs.logits.split(sizes, 1), outputs.offsets.split(sizes, 1) if outputs.offsets is not None else ()]
    probabilities: list[Tensor] = []
    classification: list[Tensor] = []
    regression: list[Tensor] = []
    for view, (cls, det) in enumerate(zip(outputs.cls.split(sizes), outputs.det.split(sizes), strict=True)):
        scores = mil_scores(cls, det)
        probabilities.append(scores.sum(0))
        logits = parts[0][view]
        for branch, targets in enumerate(branch_targets(scores, logits, boxes[view], shown[view], settings)):
            weight = settings.branch_weights[branch]
            term = cross_entropy_loss if settings.head == "mist" else probability_loss
            classification.append(weight * term(logits[branch], targets))
            if parts[1]:
                regression.append(weight * box_loss(parts[1][view][branch], boxes[view], targets))
    wanted = torch.nn.functional.pad(tags, (settings.offset, 0)).to(device, non_blocking=True)
    over_columns: Literal["mean", "sum"] = "mean" if settings.head == "mist" else "sum"
    losses = {
        "image": image_loss(torch.stack(probabilities), wanted, over_columns),
        "classification": torch.stack(classification).sum() / len(boxes),
    }
    if regression:
        losses["regression"] = torch.stack(regression).sum() / len(boxes)
    return {"loss": torch.stack(list(losses.values())).sum(), **losses}


@torch.no_grad()
def branch_targets(
    scores: Tensor, logits: Tensor, boxes: Tensor, tags: Tensor, settings: WsodSettings
) -> list[RoiTargets]:
    """What each branch of a view is taught: the first by the two streams, every other by the branch before it.

    Args:
        scores: (R, K) of the two streams.
        logits: (N, R, C + 1).
        boxes: (R, 4).
        tags: (T,) int64.
        settings: how boxes are mined.
    """
    overlaps = box_iou(boxes, boxes)
    sources = [scores[:, settings.offset :], *logits[:-1].softmax(-1)[..., 1:]]
    return [
        assign(
            overlaps,
            _mine(source, boxes, overlaps, tags, settings),
            min_iou=settings.foreground_iou,
            above=settings.mining == "top",
        )
        for source in sources
    ]


def roi_predictions(outputs: HeadOutputs, boxes: Tensor) -> RoiPredictions:
    """The mean of the branches' probabilities, and the boxes of their mean offsets (spec, section 3.5).

    Args:
        outputs: of one view.
        boxes: (R, 4) its RoIs.
    """
    scores = outputs.logits.softmax(-1).mean(0)[:, 1:]
    if outputs.offsets is None:
        return RoiPredictions(boxes[:, None].expand(-1, scores.shape[1], -1), scores)
    return RoiPredictions(decode_boxes(outputs.offsets.mean(0)[:, 1:], boxes), scores)


def _mine(scores: Tensor, boxes: Tensor, overlaps: Tensor, tags: Tensor, settings: WsodSettings) -> PseudoBoxes:
    if settings.mining == "spread":
        return mine_spread(scores, tags, overlaps, portion=settings.portion, max_iou=settings.mine_iou)
    if settings.mining == "near_top":
        return mine_near_top(scores, tags, boxes, ratio=settings.near_ratio, max_iou=settings.near_iou)
    return mine_top(scores, tags)


def _build_body(settings: WsodSettings, weights: str | None) -> Body:
    if settings.sees_crops:
        return build_crops(weights)
    if settings.backbone == "clip":
        return build_clip(weights)
    if settings.backbone == "vgg16":
        return build_vgg16(weights, frozen_groups=settings.frozen_groups, last_relu=settings.head == "oicr")
    return build_stages(settings.backbone, settings.stages, settings.norm, weights)


def _build_neck(body: Body, settings: WsodSettings) -> nn.Sequential:
    """Two fully connected layers, with VGG16's weights where they came with the body and fit."""
    cells = 1 if settings.sees_crops else CELLS**2
    neck = nn.Sequential(
        nn.Linear(body.channels * cells, settings.width),
        nn.ReLU(),
        nn.Dropout(settings.dropout),
        nn.Linear(settings.width, settings.width),
        nn.ReLU(),
        nn.Dropout(settings.dropout),
    )
    for position in (0, 3):
        layer = neck[position]
        weight, bias = body.neck.get(f"{position}.weight"), body.neck.get(f"{position}.bias")
        if weight is not None and bias is not None and weight.shape == layer.weight.shape:
            layer.load_state_dict({"weight": weight, "bias": bias})
        else:
            nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")  # type: ignore[arg-type]
            nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
    return neck
