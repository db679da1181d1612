"""Mask2Former as a student (fma-wsss, section 6); symbols as in :mod:`weakly.methods.mask_classification`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from weakly.errors import UserError
from weakly.methods.mask_classification import Answers, MaskClassifier


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


class Mask2Former(MaskClassifier):
    """Mask2Former as a semantic segmenter: one target mask per category present, background among them.

    Args:
        net: a ``Mask2FormerForUniversalSegmentation`` of C + 1 labels.
        settings: it was made of.
    """

    kind: ClassVar[str] = "mask2former"
    backbone: ClassVar[str] = "net.model.pixel_level_module.encoder."
    undecayed_parts: ClassVar[tuple[str, ...]] = (
        *MaskClassifier.undecayed_parts,
        "queries_features",
        "level_embed",
    )

    def __init__(self, net: Any, settings: Mask2FormerSettings) -> None:
        super().__init__(net, settings)
        for name, parameter in net.named_parameters():  # Swin's last norm, which the library's backbone never uses
            if name.endswith(("swin.layernorm.weight", "swin.layernorm.bias")):
                parameter.requires_grad_(False)

    def answers(self, pixels: Tensor, *, earlier: bool) -> list[Answers]:
        """After the decoder's last layer; with ``earlier``, also before its first one and after every other."""
        outputs = self.net(pixel_values=pixels, output_auxiliary_logits=earlier)
        layers = outputs.auxiliary_logits if earlier else ()
        before = [Answers(layer["masks_queries_logits"], layer["class_queries_logits"]) for layer in layers]
        return [*before, Answers(outputs.masks_queries_logits, outputs.class_queries_logits)]


def build_mask2former(settings: Mask2FormerSettings, classes: int) -> Mask2Former:
    """Mask2Former of C categories and background, with random weights or pretrained ones.

    Raises:
        UserError: the pretrained weights are unknown or cannot be fetched.
    """
    return Mask2Former(_net(settings, classes + 1), settings)


def rebuild_mask2former(settings: Mask2FormerSettings, config: Mapping[str, Any], classes: int) -> Mask2Former:
    """Mask2Former of a stored configuration, with random weights; fetches nothing.

    Raises:
        ValueError: the configuration is of another number of categories.
    """
    return Mask2Former(_from_config(config, classes + 1), settings)


def _net(settings: Mask2FormerSettings, outputs: int) -> Any:
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
    from transformers import Mask2FormerConfig  # noqa: PLC0415 - as in _net

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
    from transformers import Mask2FormerConfig, Mask2FormerForUniversalSegmentation  # noqa: PLC0415 - as in _net

    described = Mask2FormerConfig.from_dict(dict(config))
    if described.num_labels != outputs:
        raise ValueError(f"it has {described.num_labels} outputs, not {outputs}")
    return Mask2FormerForUniversalSegmentation(described)
