"""RT-DETR, a student for boxes.

It stands in for DINO, which transformers lacks: it has DINO's two-stage queries, box refinement and contrastive
denoising, but a hybrid encoder, 300 queries and a varifocal loss. It is called RT-DETR everywhere. No RoI is dropped.

Symbols as in :mod:`weakly.methods.weaksam.detectors`; Q queries.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import ceil, sqrt
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional
from torchvision.ops import box_convert  # type: ignore[import-untyped]

from weakly.methods.semantic_network import pad_to
from weakly.methods.weaksam.augment import Target
from weakly.methods.weaksam.detectors import Detections, scaled_boxes
from weakly.methods.weaksam.query_detectors import (
    QueryDetector,
    ResNetSettings,
    best_pairs,
    check_outputs,
    check_transformer,
    grouped,
    labels_of,
    pretrained_resnet,
)


@dataclass(frozen=True)
class RtDetrSettings:
    """RT-DETR; the defaults are its ResNet-50 configuration.

    Attributes:
        resnet: the backbone.
        queries: Q.
        width: of encoder and decoder; a multiple of ``heads``.
        ffn: hidden units of their feed-forward layers.
        heads: attention heads.
        decoder_layers: of the decoder.
        denoising: denoising queries of a training view.
        min_score: detections with a lower score are left out.
        detections: of an image at most.
        backbone_lr: learning rate of the backbone over that of the rest.
    """

    resnet: ResNetSettings = field(default_factory=ResNetSettings)
    queries: int = 300
    width: int = 256
    ffn: int = 1024
    heads: int = 8
    decoder_layers: int = 6
    denoising: int = 100
    min_score: float = 0.05
    detections: int = 100
    backbone_lr: float = 0.1

    def __post_init__(self) -> None:
        check_transformer("rt_detr", self, multiple=self.heads)


class RtDetr(QueryDetector):
    """RT-DETR.

    Args:
        net: an ``RTDetrForObjectDetection`` of C labels.
        settings: it was made of.
    """

    kind: ClassVar[str] = "rt_detr"
    makes_masks: ClassVar[bool] = False
    backbone: ClassVar[str] = "net.model.backbone."

    settings: RtDetrSettings

    def loss(
        self,
        pixels: Tensor,
        sizes: Sequence[tuple[int, int]],  # noqa: ARG002 - boxes are relative to the padded view
        targets: Sequence[Target],
        step: int | None,  # noqa: ARG002 - no RoI is dropped
    ) -> dict[str, Tensor]:
        """``varifocal``, ``l1`` and ``giou``, summed over encoder, decoder layers and denoising."""
        padded = self._padded(pixels)
        frame = padded.new_tensor([padded.shape[3], padded.shape[2]] * 2)
        labels = [{"class_labels": t.labels, "boxes": box_convert(t.boxes, "xyxy", "cxcywh") / frame} for t in targets]
        losses = self.net(padded, labels=labels).loss_dict if any(map(len, labels_of(targets))) else self._empty(padded)
        kinds = {"varifocal": "loss_vfl", "l1": "loss_bbox", "giou": "loss_giou"}
        return grouped(losses, kinds)

    @torch.no_grad()
    def predict(
        self, pixels: Tensor, sizes: Sequence[tuple[int, int]], originals: Sequence[tuple[int, int]]
    ) -> list[Detections]:
        """The best pairs of query and category; no suppression."""
        padded = self._padded(pixels)
        outputs = self.net(padded)
        scores, labels, queries = best_pairs(outputs.logits.float().sigmoid(), self.settings.detections)
        frame = padded.new_tensor([padded.shape[3], padded.shape[2]] * 2)
        corners = box_convert(outputs.pred_boxes.float(), "cxcywh", "xyxy") * frame
        boxes = corners.gather(1, queries[..., None].expand(-1, -1, 4))
        found = []
        for row, (size, original) in enumerate(zip(sizes, originals, strict=True)):
            good = scores[row] >= self.settings.min_score
            inside = scaled_boxes(boxes[row][good].cpu().numpy(), size, original)
            whole = (inside[:, 2:] > inside[:, :2]).all(1)
            names, sure = (values[row][good].cpu().numpy()[whole] for values in (labels, scores))
            found.append(Detections(inside[whole], names, sure))
        return found

    def _padded(self, pixels: Tensor) -> Tensor:
        """Padded to multiples of 32, and so far that there are as many places as queries."""
        least = 32 * ceil(sqrt(self.settings.queries / (4**2 + 2**2 + 1)))
        height, width = pixels.shape[-2:]
        margins = (0, max(0, least - width), 0, max(0, least - height))
        return pad_to(functional.pad(pixels, margins), 32, 0)

    def _empty(self, pixels: Tensor) -> dict[str, Tensor]:
        """The loss of views without any instance, which the library's matching refuses: every score is too high.

        No parameter is left without a gradient, for the sake of processes that wait for each other's.
        """
        config, outputs = self.net.config, self.net.model(pixels)
        logits = torch.cat([outputs.intermediate_logits.flatten(0, 1), outputs.enc_topk_logits]).float()
        weight = config.focal_loss_alpha * logits.detach().sigmoid() ** config.focal_loss_gamma
        loss = functional.binary_cross_entropy_with_logits(logits, torch.zeros_like(logits), weight, reduction="sum")
        untouched = torch.stack([parameter.sum() for parameter in self.net.parameters()]).sum() * 0
        zero = untouched + outputs.intermediate_reference_points.sum() * 0
        return {"loss_vfl": config.weight_loss_vfl * loss, "loss_bbox": zero, "loss_giou": zero.detach()}


def build_rt_detr(settings: RtDetrSettings, classes: int) -> RtDetr:
    """RT-DETR with random weights, or a pretrained backbone.

    Raises:
        UserError: the backbone cannot be loaded.
    """
    from transformers import RTDetrConfig, RTDetrForObjectDetection, RTDetrResNetConfig  # noqa: PLC0415 - slow to import

    stages = [2, 3, 4]
    resnet = settings.resnet
    described = RTDetrResNetConfig(
        embedding_size=resnet.stem,
        hidden_sizes=list(resnet.channels),
        depths=list(resnet.depths),
        layer_type=resnet.block,
        out_indices=stages,
    )
    backbone = None if resnet.pretrained is None else pretrained_resnet(resnet.pretrained, stages)
    channels = list(resnet.channels[1:]) if backbone is None else list(backbone.channels)
    config = RTDetrConfig(
        backbone_config=described if backbone is None else backbone.config,
        freeze_backbone_batch_norms=backbone is not None,
        encoder_in_channels=channels,
        encoder_hidden_dim=settings.width,
        encoder_ffn_dim=settings.ffn,
        encoder_attention_heads=settings.heads,
        d_model=settings.width,
        decoder_in_channels=[settings.width] * 3,
        decoder_ffn_dim=settings.ffn,
        decoder_attention_heads=settings.heads,
        decoder_layers=settings.decoder_layers,
        num_queries=settings.queries,
        num_denoising=settings.denoising,
        num_labels=classes,
    )
    net = RTDetrForObjectDetection(config)
    if backbone is not None:
        net.model.backbone.model.load_state_dict(backbone.state_dict())
    return RtDetr(net, settings)


def rebuild_rt_detr(settings: RtDetrSettings, config: Mapping[str, Any], classes: int) -> RtDetr:
    """RT-DETR of a stored configuration, with random weights; fetches nothing."""
    from transformers import RTDetrConfig, RTDetrForObjectDetection  # noqa: PLC0415 - slow to import

    described = RTDetrConfig.from_dict(dict(config))
    check_outputs(described.num_labels, classes)
    return RtDetr(RTDetrForObjectDetection(described), settings)
