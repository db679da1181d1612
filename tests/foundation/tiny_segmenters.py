"""The networks of every family, small enough for tests: 32 channels on an 8x8 grid, random weights that matter."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from transformers import (
    Sam2Config,
    Sam2HieraDetConfig,
    Sam2MaskDecoderConfig,
    Sam2Model,
    Sam2PromptEncoderConfig,
    Sam2VisionConfig,
    Sam3TrackerConfig,
    Sam3TrackerMaskDecoderConfig,
    Sam3TrackerModel,
    Sam3TrackerPromptEncoderConfig,
    Sam3VisionConfig,
    SamConfig,
    SamHQConfig,
    SamHQMaskDecoderConfig,
    SamHQModel,
    SamHQPromptEncoderConfig,
    SamHQVisionConfig,
    SamMaskDecoderConfig,
    SamModel,
    SamPromptEncoderConfig,
    SamVisionConfig,
)
from transformers.models.sam3.configuration_sam3 import Sam3ViTConfig

from weakly.foundation.efficient_sam_model import EfficientSam, EfficientSamConfig
from weakly.foundation.mobile_sam import MobileSamConfig, build_mobile_sam

SIZES = {"image_size": 64, "patch_size": 8}
PROMPT = {"hidden_size": 32, "mask_input_channels": 4}
DECODER = {"hidden_size": 32, "mlp_dim": 64, "iou_head_hidden_dim": 16}
VIT = {
    **SIZES,
    "hidden_size": 32,
    "output_channels": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_pos_feats": 16,
    "global_attn_indexes": [1],
    "window_size": 4,
    "mlp_dim": 64,
}
TINY_MOBILE = MobileSamConfig(
    image_size=128, width=32, stages=(8, 16, 32, 32), depths=(1, 1, 2, 1), heads=(1, 2, 2, 4), windows=(3, 3, 4, 3),
    mlp_dim=64,
)  # fmt: skip
TINY_EFFICIENT = EfficientSamConfig(
    vit_width=32, depth=2, image_size=64, patch_size=8, width=32, mlp_dim=64, heads=8, head_width=16
)


def awake(network: Callable[..., nn.Module], *arguments: Any, seed: int) -> Any:
    """A network whose weights are drawn as torch does it; the libraries' leave a decoder this narrow almost silent."""
    torch.manual_seed(seed)
    model = network(*arguments)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.Linear | nn.Conv2d | nn.ConvTranspose2d | nn.Embedding):
                module.reset_parameters()
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1 or "pos_embed" in name or "position" in name or "no_memory" in name:
                parameter += torch.randn(parameter.shape) / 2
        for name, value in model.named_buffers():
            if name.endswith("running_mean"):
                value.normal_(0, 0.1)
            if name.endswith("running_var"):  # of what such convolutions make of their input: a third, at most
                value.uniform_(0.2, 0.4)
    return model.eval()


def tiny_sam(seed: int = 0) -> SamModel:
    config = SamConfig(
        vision_config=SamVisionConfig(**VIT).to_dict(),
        prompt_encoder_config=SamPromptEncoderConfig(**SIZES, **PROMPT).to_dict(),
        mask_decoder_config=SamMaskDecoderConfig(**DECODER).to_dict(),
    )
    return awake(SamModel, config, seed=seed)


def tiny_sam_hq(seed: int = 0) -> SamHQModel:
    config = SamHQConfig(
        vision_config=SamHQVisionConfig(**VIT).to_dict(),
        prompt_encoder_config=SamHQPromptEncoderConfig(**SIZES, **PROMPT).to_dict(),
        mask_decoder_config=SamHQMaskDecoderConfig(**DECODER, vit_dim=32).to_dict(),
    )
    return awake(SamHQModel, config, seed=seed)


def tiny_sam2(seed: int = 0) -> Sam2Model:
    """Cells of 8 pixels, although SAM 2's encoder begins at 4: its first convolution has stride 2 here."""
    backbone = Sam2HieraDetConfig(
        hidden_size=8,
        image_size=[64, 64],
        patch_kernel_size=[3, 3],
        patch_stride=[2, 2],
        patch_padding=[1, 1],
        window_positional_embedding_background_size=[4, 4],
        blocks_per_stage=[1, 1, 2, 1],
        embed_dim_per_stage=[8, 16, 32, 64],
        num_attention_heads_per_stage=[1, 1, 2, 4],
        window_size_per_stage=[4, 4, 4, 2],
        global_attention_blocks=[3],
    )
    vision = Sam2VisionConfig(
        backbone_config=backbone.to_dict(),
        backbone_channel_list=[64, 32, 16, 8],
        backbone_feature_sizes=[[32, 32], [16, 16], [8, 8]],
        fpn_hidden_size=32,
    )
    config = Sam2Config(
        vision_config=vision.to_dict(),
        prompt_encoder_config=Sam2PromptEncoderConfig(**SIZES, **PROMPT).to_dict(),
        mask_decoder_config=Sam2MaskDecoderConfig(**DECODER).to_dict(),
    )
    return awake(Sam2Model, config, seed=seed)


def tiny_sam3(seed: int = 0, scale_factors: tuple[float, ...] = (4.0, 2.0, 1.0, 0.5)) -> Sam3TrackerModel:
    """With SAM 3's patches of 7 pixels, halved, and its four scales."""
    sizes = {"image_size": 56, "patch_size": 7}
    backbone = Sam3ViTConfig(
        **sizes,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        window_size=4,
        global_attn_indexes=[1],
        pretrain_image_size=28,
    )
    vision = Sam3VisionConfig(
        backbone_config=backbone.to_dict(),
        fpn_hidden_size=32,
        backbone_feature_sizes=[[32, 32], [16, 16], [8, 8]],
        scale_factors=list(scale_factors),
    )
    config = Sam3TrackerConfig(
        vision_config=vision.to_dict(),
        prompt_encoder_config=Sam3TrackerPromptEncoderConfig(**sizes, **PROMPT).to_dict(),
        mask_decoder_config=Sam3TrackerMaskDecoderConfig(**DECODER).to_dict(),
    )
    return awake(Sam3TrackerModel, config, seed=seed)


def tiny_mobile_sam(seed: int = 0) -> SamModel:
    return awake(build_mobile_sam, TINY_MOBILE, seed=seed)


def tiny_efficient_sam(seed: int = 0) -> EfficientSam:
    return awake(EfficientSam, TINY_EFFICIENT, seed=seed)
