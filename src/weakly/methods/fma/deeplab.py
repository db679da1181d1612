"""DeepLabV3+ as a student (fma-wsss, section 6); symbols as in :mod:`weakly.methods.semantic_network`."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Literal

from torch import Tensor, nn

from weakly.errors import UserError
from weakly.methods.semantic_network import SemanticNetwork, cross_entropy, resize


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
