"""Mask2Former as a student (fma-wsss, section 6); symbols as in the neighbour ``semantic_network``, Q queries."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn import functional

from weakly.errors import UserError
from weakly.methods.fma.augment import VOID
from weakly.methods.fma.semantic_network import SemanticNetwork, resize
from weakly.methods.optimisation import norm_parameters


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
