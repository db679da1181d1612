"""Mask2Former for instances, a student for masks.

Symbols as in :mod:`weakly.methods.weaksam.detectors`; Q queries.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torchvision.ops import FrozenBatchNorm2d  # type: ignore[import-untyped]

from weakly.errors import UserError
from weakly.methods.optimisation import norm_parameters
from weakly.methods.semantic_network import pad_to
from weakly.methods.weaksam.augment import Target
from weakly.methods.weaksam.detectors import MAX_VALUES, Detections
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
from weakly.segmentation import Rle, encode_masks, rle_boxes


@dataclass(frozen=True)
class Mask2FormerSettings:
    """Mask2Former for instances; the defaults are its ResNet-50 configuration.

    Attributes:
        resnet: the backbone.
        queries: Q.
        width: channels of pixel decoder and queries; a multiple of 32, the groups of its norms, at least 64.
        encoder_layers: deformable attention layers of the pixel decoder.
        encoder_ffn: their hidden units.
        decoder_layers: masked attention layers.
        decoder_ffn: their hidden units.
        heads: attention heads of pixel decoder and queries.
        class_weight: weight of the classification, in matching and loss.
        mask_weight: of the masks' cross-entropy.
        dice_weight: of the masks' dice loss.
        no_object_weight: weight of "no object" in the classification.
        points: at which masks are compared.
        min_score: instances with a lower score are left out.
        detections: of an image at most.
        backbone_lr: learning rate of the backbone over that of the rest.
    """

    resnet: ResNetSettings = field(default_factory=ResNetSettings)
    queries: int = 100
    width: int = 256
    encoder_layers: int = 6
    encoder_ffn: int = 1024
    decoder_layers: int = 9
    decoder_ffn: int = 2048
    heads: int = 8
    class_weight: float = 2.0
    mask_weight: float = 5.0
    dice_weight: float = 5.0
    no_object_weight: float = 0.1
    points: int = 12_544
    min_score: float = 0.05
    detections: int = 100
    backbone_lr: float = 0.1

    def __post_init__(self) -> None:
        check_transformer("mask2former", self, multiple=32)
        if self.width < 64 or self.width % self.heads:
            raise UserError(
                f"mask2former.width is {self.width}; give a multiple of heads={self.heads} and at least 64."
            )


class Mask2Former(QueryDetector):
    """Mask2Former for instances.

    Args:
        net: a ``Mask2FormerForUniversalSegmentation`` of C labels.
        settings: it was made of.
    """

    kind: ClassVar[str] = "mask2former"
    makes_masks: ClassVar[bool] = True
    backbone: ClassVar[str] = "net.model.pixel_level_module.encoder."

    settings: Mask2FormerSettings

    def loss(
        self,
        pixels: Tensor,
        sizes: Sequence[tuple[int, int]],  # noqa: ARG002 - padding belongs to no instance
        targets: Sequence[Target],
        step: int | None,  # noqa: ARG002 - no RoI is dropped
    ) -> dict[str, Tensor]:
        """``classification``, ``mask`` and ``dice``, summed over the decoder's layers, in float32."""
        padded = pad_to(pixels, 32, 0)
        masks = [pad_to(target.masks.float(), 32, 0) for target in targets if target.masks is not None]
        if len(masks) != len(targets):
            raise ValueError("Mask2Former learns from masks")
        outputs = self.net(pixel_values=padded, output_auxiliary_logits=True)
        with torch.autocast(pixels.device.type, enabled=False):
            losses = self.net.get_loss_dict(
                outputs.masks_queries_logits.float(),
                outputs.class_queries_logits.float(),
                masks,
                labels_of(targets),
                [{key: value.float() for key, value in layer.items()} for layer in outputs.auxiliary_logits],
            )
        kinds = {"classification": "loss_cross_entropy", "mask": "loss_mask", "dice": "loss_dice"}
        return grouped(losses, kinds)

    @torch.no_grad()
    def predict(
        self, pixels: Tensor, sizes: Sequence[tuple[int, int]], originals: Sequence[tuple[int, int]]
    ) -> list[Detections]:
        """The best pairs of query and category; scores are class probability times mean mask probability inside."""
        padded = pad_to(pixels, 32, 0)
        outputs = self.net(pixel_values=padded)
        probabilities = outputs.class_queries_logits.float().softmax(-1)[..., :-1]
        scores, labels, queries = best_pairs(probabilities, self.settings.detections)
        frame = (padded.shape[2], padded.shape[3])
        found = []
        for row, (size, original) in enumerate(zip(sizes, originals, strict=True)):
            good = scores[row] >= self.settings.min_score
            logits = outputs.masks_queries_logits[row].float()[queries[row][good]]
            rles, quality = instance_masks(logits, frame, size, original)
            final = (scores[row][good] * quality).cpu().numpy()
            order = np.argsort(-final, kind="stable")
            order = order[final[order] >= max(self.settings.min_score, 1e-6)]
            chosen = tuple(rles[index] for index in order)
            found.append(Detections(rle_boxes(chosen), labels[row][good].cpu().numpy()[order], final[order], chosen))
        return found

    def undecayed(self) -> set[str]:
        """Norms, and the embeddings of queries and levels."""
        kept = ("queries_embedder", "queries_features", "level_embed")
        return {name for name, _ in self.named_parameters() if any(part in name for part in kept)} | norm_parameters(
            self
        )


def instance_masks(
    logits: Tensor, frame: tuple[int, int], size: tuple[int, int], original: tuple[int, int]
) -> tuple[list[Rle], Tensor]:
    """Masks at the size of the image, and how sure their pixels are.

    Args:
        logits: (n, h, w) over the whole padded view.
        frame: (height, width) of the padded view.
        size: of the view without padding.
        original: of the image.

    Returns:
        n RLEs, and (n,) mean probabilities of the pixels inside; 0 for an empty mask.
    """
    largest = max(frame[0] * frame[1], original[0] * original[1])
    rles: list[Rle] = []
    quality = [logits.new_zeros(0)]
    for some in logits.split(max(1, MAX_VALUES // largest)):
        if not len(some):
            continue
        inside = functional.interpolate(some[:, None], frame, mode="bilinear")[..., : size[0], : size[1]]
        resized = functional.interpolate(inside, original, mode="bilinear")[:, 0]
        masks = resized > 0
        rles += encode_masks(masks.cpu().numpy())
        quality.append((resized.sigmoid() * masks).sum((1, 2)) / masks.sum((1, 2)).clamp(min=1))
    return rles, torch.cat(quality)


def build_mask2former(settings: Mask2FormerSettings, classes: int) -> Mask2Former:
    """Mask2Former with random weights, or a pretrained backbone.

    Raises:
        UserError: the backbone cannot be loaded.
    """
    from transformers import Mask2FormerConfig, ResNetConfig  # noqa: PLC0415 - slow to import

    stages = [1, 2, 3, 4]
    resnet = settings.resnet
    described = ResNetConfig(
        embedding_size=resnet.stem,
        hidden_sizes=list(resnet.channels),
        depths=list(resnet.depths),
        layer_type=resnet.block,
        out_indices=stages,
    )
    backbone = None if resnet.pretrained is None else pretrained_resnet(resnet.pretrained, stages)
    config = Mask2FormerConfig(
        backbone_config=described if backbone is None else backbone.config,
        num_labels=classes,
        num_queries=settings.queries,
        hidden_dim=settings.width,
        feature_size=settings.width,
        mask_feature_size=settings.width,
        encoder_layers=settings.encoder_layers,
        encoder_feedforward_dim=settings.encoder_ffn,
        decoder_layers=settings.decoder_layers + 1,  # the library counts the queries' first answer
        dim_feedforward=settings.decoder_ffn,
        num_attention_heads=settings.heads,
        class_weight=settings.class_weight,
        mask_weight=settings.mask_weight,
        dice_weight=settings.dice_weight,
        no_object_weight=settings.no_object_weight,
        train_num_points=settings.points,
    )
    net = _mask2former(config, frozen=backbone is not None)
    if backbone is not None:
        net.model.pixel_level_module.encoder.load_state_dict(backbone.state_dict(), strict=False)
    return Mask2Former(net, settings)


def rebuild_mask2former(settings: Mask2FormerSettings, config: Mapping[str, Any], classes: int) -> Mask2Former:
    """Mask2Former of a stored configuration, with random weights; fetches nothing."""
    from transformers import Mask2FormerConfig  # noqa: PLC0415 - slow to import

    described = Mask2FormerConfig.from_dict(dict(config))
    check_outputs(described.num_labels, classes)
    return Mask2Former(_mask2former(described, frozen=settings.resnet.pretrained is not None), settings)


def freeze_batch_norms(module: nn.Module) -> None:
    """Replace every batch norm inside by one whose statistics, scale and shift stay as they are."""
    for name, child in list(module.named_children()):
        if isinstance(child, nn.BatchNorm2d):
            frozen = FrozenBatchNorm2d(child.num_features, child.eps)
            frozen.load_state_dict(child.state_dict())
            setattr(module, name, frozen)
        else:
            freeze_batch_norms(child)


def _mask2former(config: Any, *, frozen: bool) -> Any:
    from transformers import Mask2FormerForUniversalSegmentation  # noqa: PLC0415 - slow to import

    net = Mask2FormerForUniversalSegmentation(config)
    if frozen:
        freeze_batch_norms(net.model.pixel_level_module.encoder)
    return net
