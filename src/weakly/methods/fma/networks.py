"""The networks of the second stage: DeepLabV3+ and Mask2Former behind one interface (fma-wsss, section 6).

Symbols: B images, C categories and background with index C, (H, W) size of the pixels, Q queries, s the stride that
the network pads its input to. Labels hold C for background and 255 for pixels to ignore.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from weakly.errors import UserError
from weakly.methods.fma.augment import VOID
from weakly.methods.optimisation import norm_parameters


@dataclass(frozen=True)
class DeepLabSettings:
    """DeepLabV3+; the defaults are FMA-WSSS's. Its deep-stem ResNet is encoder ``tu-resnet101c.gluon_in1k``.

    Attributes:
        encoder: any encoder of segmentation_models_pytorch with dilated stages; ``tu-`` ones are timm's.
        encoder_weights: ``imagenet`` and the like to fetch trained weights from the hub; None: random ones.
        output_stride: of the last stage, 8 or 16.
        decoder_channels: of the atrous pyramid and the decoder.
        atrous_rates: of the pyramid's three dilated convolutions.
        dropout: in the pyramid and the auxiliary head.
        aux_channels: hidden channels of the auxiliary head on the third of the encoder's four stages.
        aux_weight: weight of its loss; 0: no such head.
        backbone_lr: learning rate of the encoder over that of the rest.
    """

    encoder: str = "resnet101"
    encoder_weights: str | None = None
    output_stride: Literal[8, 16] = 8
    decoder_channels: int = 512
    atrous_rates: tuple[int, int, int] = (12, 24, 36)
    dropout: float = 0.1
    aux_channels: int = 256
    aux_weight: float = 0.2
    backbone_lr: float = 1.0


@dataclass(frozen=True)
class Mask2FormerSettings:
    """Mask2Former; but for the size of the backbone the defaults are FMA-WSSS's (Swin-L, window 12, 384 px there).

    Attributes:
        pretrained: hub id or folder of a Swin or of a whole Mask2Former to start from; its sizes then replace those
            below that describe it. None: random weights.
        embed_dim: channels of Swin's first stage.
        depths: blocks of its four stages.
        heads: attention heads of its four stages.
        window: side of its windows in patches of 4 px.
        drop_path: largest rate at which its blocks are left out in training.
        queries: Q.
        width: channels of pixel decoder and queries; a multiple of 32, the groups of its norms,
            and at least 64.
        encoder_layers: deformable attention layers of the pixel decoder.
        encoder_ffn: their hidden units.
        decoder_layers: masked attention layers.
        decoder_ffn: their hidden units.
        attention_heads: of pixel decoder and queries.
        class_weight: weight of the classification, in matching and loss.
        mask_weight: of the masks' cross-entropy.
        dice_weight: of the masks' dice loss.
        no_object_weight: weight of "no object" in the classification.
        points: at which masks are compared.
        backbone_lr: learning rate of the backbone over that of the rest.
    """

    pretrained: str | None = None
    embed_dim: int = 96
    depths: tuple[int, int, int, int] = (2, 2, 6, 2)
    heads: tuple[int, int, int, int] = (3, 6, 12, 24)
    window: int = 7
    drop_path: float = 0.3
    queries: int = 50
    width: int = 256
    encoder_layers: int = 6
    encoder_ffn: int = 1024
    decoder_layers: int = 9
    decoder_ffn: int = 2048
    attention_heads: int = 8
    class_weight: float = 2.0
    mask_weight: float = 5.0
    dice_weight: float = 5.0
    no_object_weight: float = 0.1
    points: int = 12_544
    backbone_lr: float = 0.1

    def __post_init__(self) -> None:
        if self.width < 64 or self.width % 32 or self.width % self.attention_heads:
            raise UserError(
                f"The width of Mask2Former is {self.width}; give a multiple of 32 and of attention_heads="
                f"{self.attention_heads}, at least 64."
            )


class SemanticNetwork(nn.Module, ABC):
    """A network that tells C categories and background apart at every pixel.

    Attributes:
        stride: s; inputs of other sizes are padded at the bottom and the right, outputs cut again.
        backbone: beginning of the backbone's parameter names.
        backbone_lr: learning rate of the backbone over that of the rest.
    """

    stride: ClassVar[int] = 32
    backbone: ClassVar[str]
    backbone_lr: float

    @abstractmethod
    def scores(self, pixels: Tensor) -> Tensor:
        """(B, 3, H, W) with H and W multiples of s to (B, C + 1, H, W): a softmax over them gives probabilities."""

    @abstractmethod
    def padded_loss(self, pixels: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """:meth:`loss` of a batch whose height and width are multiples of s."""

    @abstractmethod
    def architecture(self) -> dict[str, Any]:
        """JSON from which :func:`rebuild_network` makes this network anew, without its weights."""

    def forward(self, pixels: Tensor) -> Tensor:
        """Class scores at the resolution of the pixels.

        Args:
            pixels: (B, 3, H, W) float32, normalised by ImageNet's mean and deviation; any size.

        Returns:
            (B, C + 1, H, W): logits, or log-probabilities; their softmax over dimension 1 are the probabilities.
        """
        height, width = pixels.shape[-2:]
        return self.scores(pad_to(pixels, self.stride, 0))[..., :height, :width]

    def loss(self, pixels: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """What training minimises.

        Args:
            pixels: (B, 3, H, W) as in :meth:`forward`.
            labels: (B, H, W) int64: category, C for background, 255 for pixels to ignore.

        Returns:
            Scalars: ``"loss"``, and the weighted parts it is the sum of.
        """
        parts = self.padded_loss(pad_to(pixels, self.stride, 0), pad_to(labels, self.stride, VOID))
        return {"loss": torch.stack(list(parts.values())).sum(), **parts}

    def probabilities(self, outputs: Tensor, size: tuple[int, int]) -> Tensor:
        """What :meth:`forward` returned, as (B, C + 1, *size) probabilities: logits are resized, then normalised."""
        return resize(outputs.float(), size).softmax(1)

    def undecayed(self) -> set[str]:
        """Names of the parameters that weight decay leaves alone."""
        return set()


class DeepLab(SemanticNetwork):
    """DeepLabV3+ with an auxiliary fully convolutional head.

    Args:
        settings: its sizes.
        classes: C.

    Raises:
        UserError: there is no such encoder, or its weights cannot be fetched.
    """

    backbone: ClassVar[str] = "net.encoder."

    def __init__(self, settings: DeepLabSettings, classes: int) -> None:
        super().__init__()
        self.settings = settings
        self.backbone_lr = settings.backbone_lr
        self.net = _deeplab(settings, classes + 1)
        channels, hidden = self.net.encoder.out_channels[-2], settings.aux_channels
        self.auxiliary = None
        if settings.aux_weight:
            self.auxiliary = nn.Sequential(
                nn.Conv2d(channels, hidden, 3, padding=1, bias=False),
                nn.BatchNorm2d(hidden),
                nn.ReLU(),
                nn.Dropout2d(settings.dropout),
                nn.Conv2d(hidden, classes + 1, 1),
            )

    def scores(self, pixels: Tensor) -> Tensor:
        """Logits."""
        return resize(self._head(self.net.encoder(pixels)), pixels.shape[-2:])

    def padded_loss(self, pixels: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """``cross_entropy`` and, with the auxiliary head, ``auxiliary``: means over the labelled pixels."""
        if len(pixels) == 1:  # batch norm of the pyramid's pooled features needs two images
            pixels, labels = pixels.expand(2, -1, -1, -1), labels.expand(2, -1, -1)
        features = self.net.encoder(pixels)
        parts = {"cross_entropy": cross_entropy(resize(self._head(features), labels.shape[-2:]), labels)}
        if self.auxiliary is not None:
            logits = resize(self.auxiliary(features[-2]), labels.shape[-2:])
            parts["auxiliary"] = self.settings.aux_weight * cross_entropy(logits, labels)
        return parts

    def architecture(self) -> dict[str, Any]:
        """Settings, and the number of outputs they are for."""
        return {"kind": "deeplab", "settings": asdict(self.settings)}

    def _head(self, features: list[Tensor]) -> Tensor:
        """Logits at stride 4."""
        logits: Tensor = self.net.segmentation_head(self.net.decoder(features))
        return logits


class Mask2Former(SemanticNetwork):
    """Mask2Former as a semantic segmenter: one target mask per category present, background among them.

    Args:
        net: a ``Mask2FormerForUniversalSegmentation`` of C + 1 labels.
        settings: it was made of.
    """

    backbone: ClassVar[str] = "net.model.pixel_level_module.encoder."

    def __init__(self, net: Any, settings: Mask2FormerSettings) -> None:
        super().__init__()
        self.settings = settings
        self.backbone_lr = settings.backbone_lr
        self.net = net
        for name, parameter in net.named_parameters():  # Swin's last norm, which the library's backbone never uses
            if name.endswith(("swin.layernorm.weight", "swin.layernorm.bias")):
                parameter.requires_grad_(False)

    def scores(self, pixels: Tensor) -> Tensor:
        """Log-probabilities: :func:`semantic_log_probabilities` of the masks at the resolution of the pixels."""
        outputs = self.net(pixel_values=pixels)
        masks = resize(outputs.masks_queries_logits.float(), pixels.shape[-2:])
        return semantic_log_probabilities(masks, outputs.class_queries_logits.float())

    def padded_loss(self, pixels: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """``classification``, ``mask`` and ``dice``, summed over the decoder's layers.

        Ignored pixels belong to no mask. The loss itself is computed in float32.
        """
        outputs = self.net(pixel_values=pixels, output_auxiliary_logits=True)
        with torch.autocast(pixels.device.type, enabled=False):
            masks, classes = mask_targets(labels)
            losses = self.net.get_loss_dict(
                outputs.masks_queries_logits.float(),
                outputs.class_queries_logits.float(),
                masks,
                classes,
                [{key: value.float() for key, value in layer.items()} for layer in outputs.auxiliary_logits],
            )
        kinds = {"classification": "loss_cross_entropy", "mask": "loss_mask", "dice": "loss_dice"}
        return {
            part: torch.stack([loss for key, loss in losses.items() if key.startswith(name)]).sum()
            for part, name in kinds.items()
        }

    def probabilities(self, outputs: Tensor, size: tuple[int, int]) -> Tensor:
        """Probabilities at input resolution, resized: means of neighbours, so still probabilities."""
        return resize(outputs.float().softmax(1), size)

    def architecture(self) -> dict[str, Any]:
        """Settings, and the library's own configuration, which has the sizes of a pretrained network too."""
        return {"kind": "mask2former", "settings": asdict(self.settings), "config": self.net.config.to_dict()}

    def undecayed(self) -> set[str]:
        """Norms, position biases, and the embeddings of queries and levels."""
        kept = ("relative_position_bias_table", "queries_embedder", "queries_features", "level_embed")
        named = {name for name, _ in self.named_parameters() if any(part in name for part in kept)}
        return named | norm_parameters(self)


def build_network(settings: DeepLabSettings | Mask2FormerSettings, classes: int) -> SemanticNetwork:
    """A network of C categories and background; random weights are drawn from torch's generator.

    Raises:
        UserError: encoder or pretrained weights are unknown or cannot be fetched.
    """
    if isinstance(settings, DeepLabSettings):
        return DeepLab(settings, classes)
    return Mask2Former(_mask2former(settings, classes + 1), settings)


def rebuild_network(architecture: Mapping[str, Any], classes: int) -> SemanticNetwork:
    """The network that :meth:`SemanticNetwork.architecture` describes, with random weights; fetches nothing.

    Raises:
        UserError: the description is of another version or damaged.
    """
    try:
        stored: Mapping[str, Any] = architecture["settings"]
        settings: dict[str, Any] = {key: tuple(v) if isinstance(v, list) else v for key, v in stored.items()}
        if architecture["kind"] == "deeplab":
            return DeepLab(DeepLabSettings(**{**settings, "encoder_weights": None}), classes)
        if architecture["kind"] == "mask2former":
            return Mask2Former(_from_config(architecture["config"], classes + 1), Mask2FormerSettings(**settings))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"The network's description is damaged ({error}); copy the student folder again.") from error
    raise UserError(f"There is no network {architecture['kind']!r}; use a version of weakly that has it.")


def semantic_log_probabilities(masks: Tensor, classes: Tensor) -> Tensor:
    """Sigmoid masks times class probabilities, summed over the queries and divided by their total over the classes.

    "No object" is left out of the sums, so only the division makes them probabilities; the released code takes a
    softmax of them instead, which flattens them (fma-wsss, section 6, defect b). The masks of a pixel are divided by
    their largest first: that changes no quotient, and no pixel is without any mask.

    Args:
        masks: (B, Q, H, W) float32 logits.
        classes: (B, Q, C + 2) float32 logits, the last of "no object".

    Returns:
        (B, C + 1, H, W) float32.
    """
    weights = functional.logsigmoid(masks)
    weights = (weights - weights.amax(1, keepdim=True)).exp()
    summed = torch.einsum("bqc,bqhw->bchw", classes.softmax(-1)[..., :-1], weights)
    tiny = torch.finfo(summed.dtype).tiny
    return (summed / summed.sum(1, keepdim=True).clamp_min(tiny)).clamp_min(tiny).log()


def mask_targets(labels: Tensor) -> tuple[list[Tensor], list[Tensor]]:
    """Per image the (n, H, W) float masks and (n,) int64 labels of the n categories present; ignored pixels: none."""
    present = [image.unique() for image in labels]
    present = [categories[categories != VOID] for categories in present]
    masks = [(image == categories[:, None, None]).float() for image, categories in zip(labels, present, strict=True)]
    return masks, present


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean over the labelled pixels of (B, C + 1, H, W) logits and (B, H, W) labels; 0 where none is labelled."""
    total = functional.cross_entropy(logits.float(), labels, ignore_index=VOID, reduction="sum")
    return total / (labels != VOID).sum().clamp(min=1)


def resize(maps: Tensor, size: tuple[int, ...]) -> Tensor:
    """(B, C, h, w) to (B, C, *size), bilinear, corners not aligned."""
    return functional.interpolate(maps, size=tuple(size), mode="bilinear", align_corners=False)


def pad_to(maps: Tensor, multiple: int, value: int) -> Tensor:
    """(..., H, W) with H and W padded at the end to multiples."""
    height, width = maps.shape[-2:]
    return functional.pad(maps, (0, -width % multiple, 0, -height % multiple), value=value)


def _deeplab(settings: DeepLabSettings, outputs: int) -> Any:
    """The library's DeepLabV3+, whose head answers at stride 4."""
    import segmentation_models_pytorch as smp  # noqa: PLC0415 - slow to import, and needed by this network alone

    try:
        return smp.DeepLabV3Plus(
            encoder_name=settings.encoder,
            encoder_weights=settings.encoder_weights,
            encoder_output_stride=settings.output_stride,
            decoder_channels=settings.decoder_channels,
            decoder_atrous_rates=settings.atrous_rates,
            decoder_aspp_dropout=settings.dropout,
            classes=outputs,
            upsampling=1,
        )
    except (KeyError, ValueError, TypeError, RuntimeError, NotImplementedError, OSError) as error:
        reason = str(error).strip("'\"").split(". ")[0].split(", supported")[0]
        raise UserError(
            f"There is no encoder {settings.encoder!r} with weights {settings.encoder_weights!r} and stride "
            f"{settings.output_stride} ({reason}); give one of segmentation_models_pytorch."
        ) from error


def _mask2former(settings: Mask2FormerSettings, outputs: int) -> Any:
    """A ``Mask2FormerForUniversalSegmentation`` with random weights, a pretrained Swin, or all pretrained."""
    from transformers import AutoConfig, Mask2FormerForUniversalSegmentation, SwinBackbone, SwinConfig  # noqa: PLC0415

    stages = ["stage1", "stage2", "stage3", "stage4"]
    if settings.pretrained is None:
        swin = SwinConfig(
            embed_dim=settings.embed_dim,
            depths=list(settings.depths),
            num_heads=list(settings.heads),
            window_size=settings.window,
            drop_path_rate=settings.drop_path,
            out_features=stages,
        )
        return Mask2FormerForUniversalSegmentation(_configuration(settings, swin, outputs))
    try:
        source = AutoConfig.from_pretrained(settings.pretrained)
        if source.model_type == "mask2former":
            return Mask2FormerForUniversalSegmentation.from_pretrained(
                settings.pretrained, num_labels=outputs, ignore_mismatched_sizes=True
            )
        if source.model_type != "swin":
            raise ValueError(f"it is a {source.model_type}")  # noqa: TRY301 - one sentence for whatever is wrong
        backbone = SwinBackbone.from_pretrained(
            settings.pretrained, out_features=stages, drop_path_rate=settings.drop_path
        )
    except (OSError, ValueError, KeyError) as error:
        raise UserError(
            f"{settings.pretrained!r} cannot be loaded as a Swin or a Mask2Former ({str(error).splitlines()[0]}); "
            "give the hub id or the folder of one."
        ) from error
    net = Mask2FormerForUniversalSegmentation(_configuration(settings, backbone.config, outputs))
    net.model.pixel_level_module.encoder.load_state_dict(backbone.state_dict())
    return net


def _configuration(settings: Mask2FormerSettings, swin: Any, outputs: int) -> Any:
    from transformers import Mask2FormerConfig  # noqa: PLC0415 - as in _mask2former

    return Mask2FormerConfig(
        backbone_config=swin,
        num_labels=outputs,
        num_queries=settings.queries,
        hidden_dim=settings.width,
        feature_size=settings.width,
        mask_feature_size=settings.width,
        encoder_layers=settings.encoder_layers,
        encoder_feedforward_dim=settings.encoder_ffn,
        decoder_layers=settings.decoder_layers + 1,  # the library counts the queries' first answer
        dim_feedforward=settings.decoder_ffn,
        num_attention_heads=settings.attention_heads,
        class_weight=settings.class_weight,
        mask_weight=settings.mask_weight,
        dice_weight=settings.dice_weight,
        no_object_weight=settings.no_object_weight,
        train_num_points=settings.points,
    )


def _from_config(config: Mapping[str, Any], outputs: int) -> Any:
    from transformers import Mask2FormerConfig, Mask2FormerForUniversalSegmentation  # noqa: PLC0415 - as in _mask2former

    described = Mask2FormerConfig.from_dict(dict(config))
    if described.num_labels != outputs:
        raise ValueError(f"it has {described.num_labels} outputs, not {outputs}")
    return Mask2FormerForUniversalSegmentation(described)
