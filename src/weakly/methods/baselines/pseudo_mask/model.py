"""MaskFormer as a semantic segmenter (Cheng et al., NeurIPS 2021; WPS-SAM, Tables 2 and 5).

Symbols as in :mod:`weakly.methods.mask_classification`; D channels of queries and pixel embeddings.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from weakly.errors import UserError
from weakly.methods.mask_classification import Answers, MaskClassifier
from weakly.methods.student_folder import from_plain

STAGES = ("stage1", "stage2", "stage3", "stage4")
"""Of the backbone; the pixel decoder sees the maps of all four."""

SWIN_NAMES = {
    "attention.q_proj": "attention.self.query",
    "attention.k_proj": "attention.self.key",
    "attention.v_proj": "attention.self.value",
    "attention.o_proj": "attention.output.dense",
    "attention.relative_position_bias.": "attention.self.",
    "mlp.fc1": "intermediate.dense",
    "mlp.fc2": "output.dense",
}
"""Parts of parameter names in transformers' Swin, and in the Swin of its MaskFormer."""


@dataclass(frozen=True)
class MaskFormerSettings:
    """MaskFormer; the defaults are its Swin-B configuration.

    Attributes:
        pretrained: hub id or folder of a Swin, a ResNet or a whole MaskFormer to start from; its sizes then replace
            those below that describe it. None: random weights.
        backbone: kind of a random backbone; ``resnet`` has basic blocks, as ResNet-18 and 34 do.
        embed_dim: channels of its first stage; every stage has twice those of the one before.
        depths: blocks of its four stages.
        heads: attention heads of Swin's four stages.
        window: side of Swin's windows in patches of 4 px.
        drop_path: largest rate at which Swin's blocks are left out in training.
        queries: Q.
        width: D, also of the pixel decoder; a multiple of 32, the groups of its norms, and at least 64.
        decoder_layers: L.
        decoder_ffn: their hidden units.
        attention_heads: of the decoder.
        dropout: of the decoder.
        class_weight: weight of the classification in the loss; in matching it is 1.
        mask_weight: of the masks' focal loss, in matching and loss.
        dice_weight: of the masks' dice loss, in matching and loss.
        no_object_weight: weight of "no object" in the classification.
        label_stride: in training masks are compared at every n-th pixel of every n-th row; MaskFormer has 1. At 4, the
            stride of its answers, nothing has to be upscaled, and a step of a small network takes a quarter less time.
        backbone_lr: learning rate of the backbone over that of the rest.
    """

    pretrained: str | None = None
    backbone: Literal["swin", "resnet"] = "swin"
    embed_dim: int = 128
    depths: tuple[int, int, int, int] = (2, 2, 18, 2)
    heads: tuple[int, int, int, int] = (4, 8, 16, 32)
    window: int = 12
    drop_path: float = 0.3
    queries: int = 100
    width: int = 256
    decoder_layers: int = 6
    decoder_ffn: int = 2048
    attention_heads: int = 8
    dropout: float = 0.1
    class_weight: float = 1.0
    mask_weight: float = 20.0
    dice_weight: float = 1.0
    no_object_weight: float = 0.1
    label_stride: Literal[1, 2, 4] = 1
    backbone_lr: float = 0.1

    def __post_init__(self) -> None:
        if self.width < 64 or self.width % 32 or self.width % (2 * self.attention_heads):
            raise UserError(
                f"maskformer.width is {self.width}; give a multiple of 32 and of twice attention_heads="
                f"{self.attention_heads}, at least 64."
            )
        for name in ("embed_dim", "queries", "decoder_layers", "decoder_ffn"):
            if getattr(self, name) < 1:
                raise UserError(f"maskformer.{name} is {getattr(self, name)}; give a number of at least 1.")
        if self.label_stride not in (1, 2, 4):
            raise UserError(f"maskformer.label_stride is {self.label_stride}; give 1, 2 or 4.")


class MaskFormer(MaskClassifier):
    """MaskFormer as a semantic segmenter: one target mask per category present, background among them.

    Args:
        net: a ``MaskFormerForInstanceSegmentation`` of C + 1 labels.
        settings: it was made of.
    """

    kind: ClassVar[str] = "maskformer"
    backbone: ClassVar[str] = "net.model.pixel_level_module.encoder."

    def __init__(self, net: Any, settings: MaskFormerSettings) -> None:
        super().__init__(net, settings)
        for name, parameter in net.named_parameters():  # Swin's last norm, which the library's backbone never uses
            if name.endswith(("encoder.model.layernorm.weight", "encoder.model.layernorm.bias")):
                parameter.requires_grad_(False)

    def answers(self, pixels: Tensor, *, earlier: bool) -> list[Answers]:
        """After the decoder's last layer; with ``earlier``, also after every other.

        The paper's auxiliary losses read every layer through the decoder's norm and the same heads. The library's own
        read the layers before the last without the norm.
        """
        model = self.net.model
        features = model.pixel_level_module(pixels)
        decoded = model.transformer_module(features.encoder_last_hidden_state, earlier)
        # The library's list begins with the queries before the first layer and ends with the normed last one.
        before = decoded.hidden_states[1:-1] if earlier else ()
        states = torch.stack([*map(model.transformer_module.decoder.layernorm, before), decoded.last_hidden_state])
        masks = torch.einsum("lbqd,bdhw->lbqhw", self.net.mask_embedder(states), features.decoder_last_hidden_state)
        return [Answers(*layer) for layer in zip(masks, self.net.class_predictor(states), strict=True)]

    def padded_loss(self, pixels: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """As :meth:`MaskClassifier.padded_loss`, on every ``label_stride``-th pixel of the labels."""
        stride = self.settings.label_stride
        return super().padded_loss(pixels, labels[:, stride // 2 :: stride, stride // 2 :: stride])


def build_maskformer(settings: MaskFormerSettings, classes: int) -> MaskFormer:
    """MaskFormer of C categories and background, with random weights or pretrained ones.

    Raises:
        UserError: the pretrained weights are unknown or cannot be fetched.
    """
    return MaskFormer(_net(settings, classes + 1), settings)


def rebuild_maskformer(architecture: Mapping[str, Any], classes: int) -> MaskFormer:
    """The network that :meth:`MaskFormer.architecture` describes, with random weights; fetches nothing.

    Raises:
        ValueError: it is of another number of categories.
    """
    from transformers import MaskFormerConfig, MaskFormerForInstanceSegmentation  # noqa: PLC0415 - slow to import

    settings = from_plain(MaskFormerSettings, architecture["settings"])
    config: dict[str, Any] = dict(architecture["config"])
    if config["backbone_config"]["model_type"] == "maskformer-swin":  # the library's variant, which it makes of a Swin
        config["backbone_config"] = {**config["backbone_config"], "model_type": "swin"}
    described = MaskFormerConfig.from_dict(config)
    if described.num_labels != classes + 1:
        raise ValueError(f"it has {described.num_labels} outputs, not {classes + 1}")
    return MaskFormer(MaskFormerForInstanceSegmentation(described), settings)


def _net(settings: MaskFormerSettings, outputs: int) -> Any:
    """A ``MaskFormerForInstanceSegmentation`` with random weights, a pretrained backbone, or all pretrained."""
    from transformers import AutoConfig, MaskFormerForInstanceSegmentation  # noqa: PLC0415 - slow to import

    if settings.pretrained is None:
        return MaskFormerForInstanceSegmentation(_configuration(settings, _backbone(settings), outputs))
    try:
        source = AutoConfig.from_pretrained(settings.pretrained)
        if source.model_type == "maskformer":
            return MaskFormerForInstanceSegmentation.from_pretrained(
                settings.pretrained, num_labels=outputs, ignore_mismatched_sizes=True
            )
        state = _trained_state(settings.pretrained, source.model_type)
    except (OSError, ValueError, KeyError) as error:
        raise UserError(
            f"{settings.pretrained!r} cannot be loaded as a Swin, a ResNet or a MaskFormer "
            f"({str(error).splitlines()[0]}); give the hub id or the folder of one."
        ) from error
    source.drop_path_rate = settings.drop_path
    source.out_features = list(STAGES)
    net = MaskFormerForInstanceSegmentation(_configuration(settings, source, outputs))
    encoder = net.model.pixel_level_module.encoder
    if source.model_type == "resnet":
        encoder.load_state_dict(state)
    else:
        _load_swin(encoder.model, state)
    return net


def _trained_state(name: str, kind: str) -> dict[str, Tensor]:
    """Weights of a Swin or a ResNet, by the library's names.

    Raises:
        ValueError: it is another network, or not all its weights are there.
    """
    from transformers import ResNetBackbone, SwinModel  # noqa: PLC0415 - slow to import

    if kind not in ("swin", "resnet"):
        raise ValueError(f"it is a {kind}")
    loader = partial(SwinModel.from_pretrained, add_pooling_layer=False)
    trained, loading = (loader if kind == "swin" else ResNetBackbone.from_pretrained)(name, output_loading_info=True)
    if loading["missing_keys"]:  # the library would go on with random weights
        raise ValueError(f"its weights lack {min(loading['missing_keys'])}")
    state: dict[str, Tensor] = trained.state_dict()
    return state


def _load_swin(encoder: Any, state: Mapping[str, Tensor]) -> None:
    """Fill MaskFormer's own Swin, whose layers have older names, from the library's Swin.

    The norms that MaskFormer puts behind every stage are not in it; no trained Swin has them.
    """
    renamed = {}
    for name, value in state.items():
        ours = name
        for new, old in SWIN_NAMES.items():
            ours = ours.replace(new, old)
        renamed[ours] = value
    missing, unexpected = encoder.load_state_dict(renamed, strict=False)
    lost = [name for name in missing if not name.endswith("relative_position_index")]  # computed, not learned
    if lost or unexpected:
        raise RuntimeError(f"transformers names Swin's layers otherwise than expected: {[*lost, *unexpected][0]}")


def _backbone(settings: MaskFormerSettings) -> Any:
    """The library's configuration of a random backbone."""
    from transformers import ResNetConfig, SwinConfig  # noqa: PLC0415 - slow to import

    if settings.backbone == "resnet":
        return ResNetConfig(
            embedding_size=settings.embed_dim,
            hidden_sizes=[settings.embed_dim << stage for stage in range(len(STAGES))],
            depths=list(settings.depths),
            layer_type="basic",
            out_features=list(STAGES),
        )
    return SwinConfig(
        embed_dim=settings.embed_dim,
        depths=list(settings.depths),
        num_heads=list(settings.heads),
        window_size=settings.window,
        drop_path_rate=settings.drop_path,
        out_features=list(STAGES),
    )


def _configuration(settings: MaskFormerSettings, backbone: Any, outputs: int) -> Any:
    from transformers import DetrConfig, MaskFormerConfig  # noqa: PLC0415 - slow to import

    decoder = DetrConfig(
        num_queries=settings.queries,
        decoder_layers=settings.decoder_layers,
        decoder_ffn_dim=settings.decoder_ffn,
        decoder_attention_heads=settings.attention_heads,
        encoder_attention_heads=settings.attention_heads,
        d_model=settings.width,
        dropout=settings.dropout,
    )
    return MaskFormerConfig(
        backbone_config=backbone,
        decoder_config=decoder,
        fpn_feature_size=settings.width,
        mask_feature_size=settings.width,
        num_labels=outputs,
        cross_entropy_weight=settings.class_weight,
        mask_weight=settings.mask_weight,
        dice_weight=settings.dice_weight,
        no_object_weight=settings.no_object_weight,
    )
