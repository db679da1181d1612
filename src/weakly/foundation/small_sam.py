"""The bundled SAM's architecture: Hugging Face's ``SamModel`` with a small convolutional image encoder.

Prompt encoder and mask decoder are SAM's own classes at width 128; only the ViT is replaced, because on a CPU a
convolutional pyramid learns and runs many times faster. Everything downstream sees an ordinary ``SamModel``.
"""

from __future__ import annotations

import itertools
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers import SamConfig, SamMaskDecoderConfig, SamModel, SamPromptEncoderConfig, SamVisionConfig
from transformers.modeling_outputs import BaseModelOutput


@dataclass(frozen=True)
class SmallSamConfig:
    """Sizes of the bundled SAM.

    Attributes:
        image_size: S, side of the square input in pixels, a multiple of the coarsest stride.
        width: embedding channels and token width.
        stem: channels at stride 2.
        stages: channels at strides 4, 8, 16, 32; the embedding is made at stride 8.
        blocks: residual blocks per stage.
        mlp_dim: hidden width of the mask decoder's MLPs.
    """

    image_size: int = 256
    width: int = 128
    stem: int = 32
    stages: tuple[int, int, int, int] = (64, 128, 192, 256)
    blocks: tuple[int, int, int, int] = (1, 2, 3, 2)
    mlp_dim: int = 512

    stride = 8
    coarsest = 32

    def to_dict(self) -> dict[str, Any]:
        """As in ``small_sam.json``."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> SmallSamConfig:
        """The inverse of :meth:`to_dict`, also after JSON has made lists of the tuples.

        Raises:
            TypeError: a key is none of the attributes.
        """
        fields: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in values.items()}
        return cls(**fields)


def norm(channels: int) -> nn.GroupNorm:
    """Normalisation that is the same for a batch of one and a batch of many."""
    return nn.GroupNorm(8, channels)


class ResidualBlock(nn.Module):
    """x + conv(act(norm(conv(act(norm(x)))))), both convolutions 3x3 with ``channels`` channels."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm1, self.conv1 = norm(channels), nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.norm2, self.conv2 = norm(channels), nn.Conv2d(channels, channels, 3, padding=1)
        nn.init.zeros_(self.conv2.weight)

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels, h, w) to the same shape."""
        change: Tensor = self.conv1(functional.gelu(self.norm1(x)))
        return x + self.conv2(functional.gelu(self.norm2(change)))


class PyramidEncoder(nn.Module):
    """(B, 3, S, S) to (B, width, S/8, S/8): four residual stages, then a top-down pass that ends at stride 8.

    The stride-4 stage reaches the embedding through a space-to-depth projection, so that boundaries finer than the
    embedding's grid survive.
    """

    def __init__(self, config: SmallSamConfig) -> None:
        super().__init__()
        channels = (config.stem, *config.stages)
        self.stem = nn.Conv2d(3, config.stem, 3, stride=2, padding=1)
        self.down = nn.ModuleList(
            nn.Conv2d(before, after, 3, stride=2, padding=1) for before, after in itertools.pairwise(channels)
        )
        self.stages = nn.ModuleList(
            nn.Sequential(*(ResidualBlock(width) for _ in range(count)))
            for width, count in zip(config.stages, config.blocks, strict=True)
        )
        self.fine = nn.Conv2d(config.stages[0], config.width, 2, stride=2)
        self.lateral = nn.ModuleList(nn.Conv2d(width, config.width, 1) for width in config.stages[1:])
        self.merge = nn.ModuleList(ResidualBlock(config.width) for _ in range(2))
        self.neck = nn.Sequential(norm(config.width), nn.Conv2d(config.width, config.width, 3, padding=1))
        self.out_norm = norm(config.width)

    def embed(self, pixels: Tensor) -> Tensor:
        """(B, 3, S, S) to (B, width, S/8, S/8)."""
        x = self.stem(pixels.contiguous(memory_format=torch.channels_last))
        levels = []
        for down, stage in zip(self.down, self.stages, strict=True):
            x = stage(down(functional.gelu(x)))
            levels.append(x)
        s4, s8, s16, s32 = levels
        top = self.lateral[2](s32)
        top = self.merge[1](functional.interpolate(top, scale_factor=2.0, mode="nearest") + self.lateral[1](s16))
        top = functional.interpolate(top, scale_factor=2.0, mode="nearest") + self.lateral[0](s8) + self.fine(s4)
        embedding: Tensor = self.out_norm(self.neck(self.merge[0](top)))
        return embedding

    def forward(self, pixel_values: Tensor, **_: object) -> BaseModelOutput:
        """The interface of ``SamModel.vision_encoder``."""
        return BaseModelOutput(last_hidden_state=self.embed(pixel_values))


def build_small_sam(config: SmallSamConfig) -> SamModel:
    """A ``SamModel`` with random weights and the pyramid as its ``vision_encoder``.

    Weights are drawn as in SAM, not as the library does: the positional Gaussian matrix from N(0, 1) and fixed (the
    library scales it by half the encoder width and trains it), layers by torch's own rule (the library's N(0, 0.02)
    leaves a decoder this narrow almost silent, and it takes thousands of steps to wake up).
    """
    patch = config.stride
    vision = SamVisionConfig(
        hidden_size=config.width,
        output_channels=config.width,
        num_hidden_layers=0,
        num_attention_heads=8,
        image_size=config.image_size,
        patch_size=patch,
        num_pos_feats=config.width // 2,
        global_attn_indexes=[],
    )
    prompt = SamPromptEncoderConfig(hidden_size=config.width, image_size=config.image_size, patch_size=patch)
    decoder = SamMaskDecoderConfig(
        hidden_size=config.width, mlp_dim=config.mlp_dim, iou_head_hidden_dim=config.width, num_attention_heads=4
    )
    model = SamModel(
        SamConfig(
            vision_config=vision.to_dict(),
            prompt_encoder_config=prompt.to_dict(),
            mask_decoder_config=decoder.to_dict(),
        )
    )
    model.vision_encoder = PyramidEncoder(config)
    for module in (*model.prompt_encoder.modules(), *model.mask_decoder.modules()):
        if isinstance(module, nn.Linear | nn.Conv2d | nn.ConvTranspose2d | nn.Embedding):
            module.reset_parameters()
    gaussian = torch.randn(2, config.width // 2)
    for embedding in (model.shared_image_embedding, model.prompt_encoder.shared_embedding):
        embedding.positional_embedding = nn.Parameter(gaussian, requires_grad=False)
    return model
