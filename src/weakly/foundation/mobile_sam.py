"""MobileSAM (Zhang et al. 2023): SAM's prompt encoder and mask decoder behind a TinyViT with 6 M parameters.

All but the image encoder is SAM's, so the whole is a ``SamModel`` with timm's TinyViT in place of the ViT, and
:class:`~weakly.foundation.sam.SamSegmenter` serves it. Only the checkpoint speaks of MobileSAM.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from timm.models.tiny_vit import TinyVit
from torch import Tensor, nn
from transformers import SamConfig, SamMaskDecoderConfig, SamModel, SamPromptEncoderConfig, SamVisionConfig
from transformers.modeling_outputs import BaseModelOutput
from transformers.models.sam.modeling_sam import SamVisionNeck

from weakly.foundation.checkpoint_files import rename
from weakly.foundation.sam_checkpoint import RENAMES, fill_sam

# (MobileSAM, ours). MobileSAM shrinks the grid at the end of a layer, timm at the beginning of the next stage.
MOBILE_RENAMES: tuple[tuple[str, str], ...] = (
    ("image_encoder.patch_embed.seq.0", "vision_encoder.patch_embed.conv1"),
    ("image_encoder.patch_embed.seq.2", "vision_encoder.patch_embed.conv2"),
    ("image_encoder.layers.0.downsample", "vision_encoder.stages.1.downsample"),
    ("image_encoder.layers.1.downsample", "vision_encoder.stages.2.downsample"),
    ("image_encoder.layers.2.downsample", "vision_encoder.stages.3.downsample"),
    ("image_encoder.layers", "vision_encoder.stages"),
    *RENAMES,
)

UNUSED = ("image_encoder.norm_head.", "image_encoder.head.")
"""The classifier that TinyViT was trained with."""


@dataclass(frozen=True)
class MobileSamConfig:
    """Sizes of a MobileSAM; the defaults are those of the one published model.

    Attributes:
        image_size: S; the embedding's grid is S / 16.
        width: embedding channels and token width.
        stages: channels of the four stages.
        depths: blocks per stage.
        heads: attention heads per stage.
        windows: side of the attention windows per stage.
        mlp_dim: hidden width of the mask decoder's MLPs.
    """

    image_size: int = 1024
    width: int = 256
    stages: tuple[int, int, int, int] = (64, 128, 160, 320)
    depths: tuple[int, int, int, int] = (2, 2, 6, 2)
    heads: tuple[int, int, int, int] = (2, 4, 5, 10)
    windows: tuple[int, int, int, int] = (7, 7, 14, 7)
    mlp_dim: int = 2048


class TinyVitEncoder(nn.Module):
    """timm's TinyViT with SAM's neck; its last stage keeps the grid instead of halving it, hence stride 16."""

    def __init__(self, config: MobileSamConfig, vision: SamVisionConfig) -> None:
        super().__init__()
        vit = TinyVit(
            num_classes=0,
            embed_dims=config.stages,
            depths=config.depths,
            num_heads=config.heads,
            window_sizes=config.windows,
            drop_path_rate=0.0,
        )
        merging: Any = vit.stages[3].downsample
        merging.conv2.conv.stride = (1, 1)
        self.patch_embed, self.stages = vit.patch_embed, vit.stages
        self.neck = SamVisionNeck(vision)

    def forward(self, pixel_values: Tensor, **_: object) -> BaseModelOutput:
        """The interface of ``SamModel.vision_encoder``: (B, 3, S, S) to (B, C, S / 16, S / 16)."""
        seen = self.stages(self.patch_embed(pixel_values))
        return BaseModelOutput(last_hidden_state=self.neck(seen.permute(0, 2, 3, 1)))


def build_mobile_sam(config: MobileSamConfig) -> SamModel:
    """A ``SamModel`` with random weights and a TinyViT as its ``vision_encoder``."""
    sizes = {"image_size": config.image_size, "patch_size": 16}
    vision = SamVisionConfig(
        **sizes,
        hidden_size=config.stages[-1],
        output_channels=config.width,
        num_hidden_layers=0,
        num_attention_heads=config.heads[-1],
        num_pos_feats=config.width // 2,
        global_attn_indexes=[],
    )
    prompt = SamPromptEncoderConfig(**sizes, hidden_size=config.width)
    decoder = SamMaskDecoderConfig(
        hidden_size=config.width, mlp_dim=config.mlp_dim, iou_head_hidden_dim=config.width, num_attention_heads=8
    )
    model = SamModel(
        SamConfig(
            vision_config=vision.to_dict(),
            prompt_encoder_config=prompt.to_dict(),
            mask_decoder_config=decoder.to_dict(),
        )
    )
    model.vision_encoder = TinyVitEncoder(config, vision)
    return model


def mobile_sam_from_state(state: Mapping[str, Tensor], path: Path, config: MobileSamConfig | None = None) -> SamModel:
    """The model of a published ``mobile_sam.pt``.

    Args:
        state: weights under MobileSAM's names.
        path: where they come from, for messages.
        config: the published model's if absent.

    Raises:
        UserError: a parameter is missing, unknown or of another shape.
    """
    renamed = {_our_name(key): value for key, value in state.items() if not key.startswith(UNUSED)}
    model = build_mobile_sam(config or MobileSamConfig())
    fill_sam(model, renamed, path, "MobileSAM")
    return model


def _our_name(key: str) -> str:
    name = rename(key, MOBILE_RENAMES)
    inside = name.startswith("vision_encoder.")
    return name.replace(".c.weight", ".conv.weight") if inside else name
