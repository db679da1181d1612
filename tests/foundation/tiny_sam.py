"""A SAM of the library that a test can afford, and a picture for it."""

from __future__ import annotations

import numpy as np
import torch
from transformers import SamConfig, SamMaskDecoderConfig, SamModel, SamPromptEncoderConfig, SamVisionConfig


def tiny_sam(seed: int = 0) -> SamModel:
    """The library's own SAM with a two-layer ViT: 64x64 input, 32 channels on an 8x8 grid."""
    torch.manual_seed(seed)
    sizes = {"image_size": 64, "patch_size": 8}
    vision = SamVisionConfig(
        **sizes,
        hidden_size=32,
        output_channels=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_pos_feats=16,
        global_attn_indexes=[1],
        window_size=4,
        mlp_dim=64,
        initializer_range=0.02,  # the library's 1e-10 makes embeddings of zeros
    )
    prompt = SamPromptEncoderConfig(**sizes, hidden_size=32, mask_input_channels=4)
    decoder = SamMaskDecoderConfig(hidden_size=32, mlp_dim=64, iou_head_hidden_dim=16, num_attention_heads=8)
    model = SamModel(
        SamConfig(
            vision_config=vision.to_dict(),
            prompt_encoder_config=prompt.to_dict(),
            mask_decoder_config=decoder.to_dict(),
        )
    )
    with torch.no_grad():  # biases and positions of a trained model are not zero
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1 or "pos" in name:
                parameter += torch.randn(parameter.shape) / 2
    return model


def random_image(height: int, width: int) -> np.ndarray:
    return np.random.default_rng(height).integers(0, 256, (height, width, 3)).astype(np.uint8)
