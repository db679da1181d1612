"""Students made of transformers' classes: RT-DETR for boxes and Mask2Former for instance masks.

RT-DETR stands in for DINO, which transformers lacks: it has DINO's two-stage queries, box refinement and contrastive
denoising, but a hybrid encoder, 300 queries and a varifocal loss. It is called RT-DETR everywhere. No RoI is dropped.

Symbols as in :mod:`weakly.methods.weaksam.detectors`; Q queries.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from math import ceil, sqrt
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional
from torchvision.ops import FrozenBatchNorm2d, box_convert  # type: ignore[import-untyped]

from weakly.errors import UserError
from weakly.methods.fma.networks import pad_to
from weakly.methods.optimisation import norm_parameters
from weakly.methods.weaksam.augment import Target
from weakly.methods.weaksam.detectors import MAX_VALUES, Detections, Detector, scaled_boxes
from weakly.segmentation import Rle, encode_masks, rle_boxes


@dataclass(frozen=True)
class ResNetSettings:
    """The backbone of a student of this file; ResNet-50 by default.

    Attributes:
        pretrained: hub id (fetched from the network) or folder of a ResNet of transformers; its sizes then replace
            those below, and its batch norms are frozen. None: random weights.
        block: ``basic`` for ResNet-18 and 34, ``bottleneck`` for larger ones.
        channels: of the four stages.
        depths: blocks of the four stages.
        stem: channels of the stem.
    """

    pretrained: str | None = None
    block: Literal["basic", "bottleneck"] = "bottleneck"
    channels: tuple[int, int, int, int] = (256, 512, 1024, 2048)
    depths: tuple[int, int, int, int] = (3, 4, 6, 3)
    stem: int = 64

    def __post_init__(self) -> None:
        if len(self.channels) != 4 or len(self.depths) != 4 or min(*self.channels, *self.depths, self.stem) < 1:
            raise UserError("A ResNet has four stages; give four channels and four depths, all at least 1.")


RESNET_18 = ResNetSettings(block="basic", channels=(64, 128, 256, 512), depths=(2, 2, 2, 2))


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
        _check_transformer("rt_detr", self, multiple=self.heads)


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
        _check_transformer("mask2former", self, multiple=32)
        if self.width < 64 or self.width % self.heads:
            raise UserError(
                f"mask2former.width is {self.width}; give a multiple of heads={self.heads} and at least 64."
            )


class RtDetr(Detector):
    """RT-DETR.

    Args:
        net: an ``RTDetrForObjectDetection`` of C labels.
        settings: it was made of.
    """

    kind: ClassVar[str] = "rt_detr"
    makes_masks: ClassVar[bool] = False
    backbone: ClassVar[str] = "net.model.backbone."

    def __init__(self, net: Any, settings: RtDetrSettings) -> None:
        super().__init__()
        self.net = net
        self.settings = settings
        self.backbone_lr = settings.backbone_lr

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
        return _grouped(losses, kinds)

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

    def architecture(self) -> dict[str, Any]:
        """Settings, and the library's own configuration, which has the sizes of a pretrained backbone too."""
        return {"kind": self.kind, "settings": asdict(self.settings), "config": self.net.config.to_dict()}

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


class Mask2Former(Detector):
    """Mask2Former for instances.

    Args:
        net: a ``Mask2FormerForUniversalSegmentation`` of C labels.
        settings: it was made of.
    """

    kind: ClassVar[str] = "mask2former"
    makes_masks: ClassVar[bool] = True
    backbone: ClassVar[str] = "net.model.pixel_level_module.encoder."

    def __init__(self, net: Any, settings: Mask2FormerSettings) -> None:
        super().__init__()
        self.net = net
        self.settings = settings
        self.backbone_lr = settings.backbone_lr

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
        return _grouped(losses, kinds)

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

    def architecture(self) -> dict[str, Any]:
        """Settings, and the library's own configuration, which has the sizes of a pretrained backbone too."""
        return {"kind": self.kind, "settings": asdict(self.settings), "config": self.net.config.to_dict()}

    def undecayed(self) -> set[str]:
        """Norms, and the embeddings of queries and levels."""
        kept = ("queries_embedder", "queries_features", "level_embed")
        return {name for name, _ in self.named_parameters() if any(part in name for part in kept)} | norm_parameters(
            self
        )


def labels_of(targets: Sequence[Target]) -> list[Tensor]:
    """B times (n,) int64."""
    return [target.labels for target in targets]


def best_pairs(scores: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """The best pairs of a query and a category, so that a query can stand for several categories.

    Args:
        scores: (B, Q, C).
        count: pairs per image.

    Returns:
        Scores, categories and queries, each (B, min(count, Q C)), by descending score.
    """
    classes = scores.shape[2]
    best, pairs = scores.flatten(1).topk(min(count, scores.shape[1] * classes))
    return best, pairs % classes, pairs // classes


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
    backbone = None if resnet.pretrained is None else _pretrained(resnet.pretrained, stages)
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
    backbone = None if resnet.pretrained is None else _pretrained(resnet.pretrained, stages)
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


def rebuild_rt_detr(settings: RtDetrSettings, config: Mapping[str, Any], classes: int) -> RtDetr:
    """RT-DETR of a stored configuration, with random weights; fetches nothing."""
    from transformers import RTDetrConfig, RTDetrForObjectDetection  # noqa: PLC0415 - slow to import

    described = RTDetrConfig.from_dict(dict(config))
    _check_outputs(described.num_labels, classes)
    return RtDetr(RTDetrForObjectDetection(described), settings)


def rebuild_mask2former(settings: Mask2FormerSettings, config: Mapping[str, Any], classes: int) -> Mask2Former:
    """Mask2Former of a stored configuration, with random weights; fetches nothing."""
    from transformers import Mask2FormerConfig  # noqa: PLC0415 - slow to import

    described = Mask2FormerConfig.from_dict(dict(config))
    _check_outputs(described.num_labels, classes)
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


def _pretrained(name: str, stages: list[int]) -> Any:
    """A ResNet of a hub id or a folder; nothing but a hub id asks the network."""
    from transformers import AutoConfig, ResNetBackbone, RTDetrResNetBackbone  # noqa: PLC0415 - slow to import

    kinds = {"resnet": ResNetBackbone, "rt_detr_resnet": RTDetrResNetBackbone}
    try:
        config = AutoConfig.from_pretrained(name, out_indices=stages)
        backbone, loading = kinds[config.model_type].from_pretrained(name, config=config, output_loading_info=True)
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise UserError(
            f"{name!r} cannot be loaded as a backbone ({str(error).splitlines()[0]}); give the hub id or the folder "
            "of a ResNet."
        ) from error
    if loading["missing_keys"]:  # the library would go on with random weights
        absent = min(loading["missing_keys"])
        raise UserError(f"{name!r} is no ResNet: its weights lack {absent}; give the hub id or the folder of one.")
    return backbone


def _grouped(losses: Mapping[str, Tensor], kinds: Mapping[str, str]) -> dict[str, Tensor]:
    """``loss`` and its parts, each the sum of all losses whose names begin alike."""
    parts = {part: _sum(loss for key, loss in losses.items() if key.startswith(name)) for part, name in kinds.items()}
    return {"loss": _sum(parts.values()), **parts}


def _sum(values: Iterable[Tensor]) -> Tensor:
    return torch.stack([value.reshape(()) for value in values]).sum()


def _check_outputs(found: int, classes: int) -> None:
    if found != classes:
        raise ValueError(f"it has {found} outputs, not {classes}")


def _check_transformer(section: str, settings: Any, *, multiple: int) -> None:
    if settings.width < multiple or settings.width % multiple:
        raise UserError(f"{section}.width is {settings.width}; give a multiple of {multiple}.")
    for name in ("queries", "decoder_layers", "detections"):
        if getattr(settings, name) < 1:
            raise UserError(f"{section}.{name} is {getattr(settings, name)}; give at least 1.")
    if not 0 <= settings.min_score <= 1:
        raise UserError(f"{section}.min_score is {settings.min_score}; give a number in [0, 1].")
