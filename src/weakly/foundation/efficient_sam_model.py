"""EfficientSAM's network (Xiong et al. 2023): a small plain ViT before a prompt encoder and decoder much like SAM's.

Sub-modules and parameters have the names of the published checkpoints. What differs from SAM: global attention in every
ViT block, no dense prompt, GELU and GroupNorm in the decoder, and in the two-way transformer every self-attention has a
residual connection and takes its values from tokens with their positions added.

Symbols: B images, N prompts, T tokens, L = h w pixels of the grid, C channels (also the token width).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial
from typing import cast

import torch
from timm.layers.norm import LayerNorm2d
from timm.layers.patch_embed import PatchEmbed
from timm.models.vision_transformer import Block
from torch import Tensor, nn
from torch.nn import functional


@dataclass(frozen=True)
class EfficientSamConfig:
    """Sizes of an EfficientSAM; the defaults are those of the published ViT-T.

    Attributes:
        vit_width: channels of the ViT; 192 for ViT-T, 384 for ViT-S. Heads are 64 wide.
        depth: blocks of the ViT.
        image_size: S.
        patch_size: side of a cell of the grid in pixels.
        width: C.
        mlp_dim: hidden width of the decoder's MLPs.
        heads: attention heads of the decoder.
        head_width: channels per head of the ViT.
    """

    vit_width: int = 192
    depth: int = 12
    image_size: int = 1024
    patch_size: int = 16
    width: int = 256
    mlp_dim: int = 2048
    heads: int = 8
    head_width: int = 64

    @property
    def grid(self) -> int:
        """Cells along a side: h = w."""
        return self.image_size // self.patch_size


class ImageEncoder(nn.Module):
    """(B, 3, S, S) to (B, C, h, w): a ViT without class token or last norm, then SAM's neck."""

    def __init__(self, config: EfficientSamConfig) -> None:
        super().__init__()
        width = config.vit_width
        norm = cast("type[nn.Module]", partial(nn.LayerNorm, eps=1e-6))
        self.patch_embed = PatchEmbed(config.image_size, config.patch_size, 3, width)
        # On the grid of the input: positions of a checkpoint are resized once, when they are loaded.
        self.pos_embed = nn.Parameter(torch.zeros(1, config.grid**2, width))
        self.blocks = nn.Sequential(
            *(Block(width, width // config.head_width, qkv_bias=True, norm_layer=norm) for _ in range(config.depth))
        )
        self.neck = nn.Sequential(
            nn.Conv2d(width, config.width, 1, bias=False),
            LayerNorm2d(config.width),
            nn.Conv2d(config.width, config.width, 3, padding=1, bias=False),
            LayerNorm2d(config.width),
        )
        self.grid = config.grid

    def forward(self, pixels: Tensor) -> Tensor:
        """(B, 3, S, S) to (B, C, h, w)."""
        seen = self.blocks(self.patch_embed(pixels) + self.pos_embed)
        embedding: Tensor = self.neck(seen.mT.unflatten(2, (self.grid, self.grid)))
        return embedding


def resized_positions(published: Tensor, grid: int) -> Tensor:
    """(1, 1 + n n, width), class token first, to (1, grid * grid, width), bicubic."""
    known = math.isqrt(published.shape[1] - 1)
    square = published[:, 1:].mT.unflatten(2, (known, known))
    if known != grid:
        square = functional.interpolate(square, (grid, grid), mode="bicubic")
    return square.flatten(2).mT.contiguous()


class GaussianEncoding(nn.Module):
    """SAM's encoding of positions by a (2, C / 2) matrix that is drawn once and never trained."""

    positional_encoding_gaussian_matrix: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("positional_encoding_gaussian_matrix", torch.randn(2, width // 2))

    def forward(self, relative: Tensor) -> Tensor:
        """(..., 2) x, y, both in [0, 1] over the frame, to (..., C)."""
        phase = (2 * relative - 1) @ self.positional_encoding_gaussian_matrix * (2 * math.pi)
        return torch.cat([phase.sin(), phase.cos()], -1)


class PromptEncoder(nn.Module):
    """Positions to tokens: their encoding plus what the position is."""

    def __init__(self, config: EfficientSamConfig) -> None:
        super().__init__()
        self.pe_layer = GaussianEncoding(config.width)
        self.invalid_points = nn.Embedding(1, config.width)
        self.point_embeddings = nn.Embedding(1, config.width)
        self.bbox_top_left_embeddings = nn.Embedding(1, config.width)
        self.bbox_bottom_right_embeddings = nn.Embedding(1, config.width)
        self.side, self.grid = config.image_size, config.grid

    def place(self, xy: Tensor) -> Tensor:
        """(..., 2) frame pixels to (..., C)."""
        encoded: Tensor = self.pe_layer((xy + 0.5) / self.side)
        return encoded

    def points(self, xy: Tensor) -> Tensor:
        """(N, 2) foreground points to (N, 1, C)."""
        return self.place(xy)[:, None] + self.point_embeddings.weight

    def boxes(self, xyxy: Tensor) -> Tensor:
        """(N, 4) boxes to (N, 2, C), the corners."""
        corners = torch.cat([self.bbox_top_left_embeddings.weight, self.bbox_bottom_right_embeddings.weight])
        return self.place(xyxy.view(-1, 2, 2)) + corners

    def padding(self) -> Tensor:
        """(1, C): what stands in the place of a point that is not there; its coordinate is -1, -1."""
        invalid = self.invalid_points.weight
        return self.place(invalid.new_full((1, 2), -1.0)) + invalid

    def pixels(self) -> Tensor:
        """(L, C): the encoding of the grid's cells, row by row."""
        axis = (torch.arange(self.grid, device=self.invalid_points.weight.device) + 0.5) / self.grid
        y, x = torch.meshgrid(axis, axis, indexing="ij")
        encoded: Tensor = self.pe_layer(torch.stack([x, y], -1))
        return encoded.flatten(0, 1)


class Attention(nn.Module):
    """Multi-head attention whose heads share ``inner`` channels."""

    def __init__(self, width: int, inner: int, heads: int) -> None:
        super().__init__()
        self.q_proj, self.k_proj, self.v_proj = (nn.Linear(width, inner) for _ in range(3))
        self.out_proj = nn.Linear(inner, width)
        self.heads = heads

    def forward(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """(N, Q, C), (N, K, C) and (N, K, C) to (N, Q, C)."""
        q, k, v = (
            project(x).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for project, x in ((self.q_proj, query), (self.k_proj, key), (self.v_proj, value))
        )
        mixed = functional.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        answer: Tensor = self.out_proj(mixed)
        return answer


class Mlp(nn.Module):
    """``hidden`` layers of linear map and GELU, then a linear map."""

    def __init__(self, inputs: int, inner: int, outputs: int, hidden: int) -> None:
        super().__init__()
        widths = [inputs] + [inner] * (hidden - 1)
        self.layers = nn.Sequential(*(nn.Sequential(nn.Linear(width, inner), nn.GELU()) for width in widths))
        self.fc = nn.Linear(inner, outputs)

    def forward(self, x: Tensor) -> Tensor:
        """(..., inputs) to (..., outputs)."""
        answer: Tensor = self.fc(self.layers(x))
        return answer


class TwoWayBlock(nn.Module):
    """Tokens look at one another and at the pixels, pass an MLP, and are looked at by the pixels."""

    def __init__(self, width: int, mlp_dim: int, heads: int) -> None:
        super().__init__()
        self.self_attn = Attention(width, width, heads)
        self.cross_attn_token_to_image = Attention(width, width // 2, heads)
        self.mlp = Mlp(width, mlp_dim, width, 1)
        self.cross_attn_image_to_token = Attention(width, width // 2, heads)
        self.norm1, self.norm2, self.norm3, self.norm4 = (nn.LayerNorm(width) for _ in range(4))

    def forward(self, tokens: Tensor, pixels: Tensor, origin: Tensor, position: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens (N, T, C), pixels (N, L, C) and the positions of both, (N, T, C) and (L, C), to tokens and pixels."""
        tokens = self.norm1(tokens + self.self_attn(tokens, tokens, tokens))
        placed = pixels + position
        tokens = self.norm2(tokens + self.cross_attn_token_to_image(tokens + origin, placed, pixels))
        tokens = self.norm3(tokens + self.mlp(tokens))
        pixels = self.norm4(pixels + self.cross_attn_image_to_token(placed, tokens + origin, tokens))
        return tokens, pixels


class TwoWayTransformer(nn.Module):
    """Two blocks and a last look at the pixels."""

    def __init__(self, config: EfficientSamConfig) -> None:
        super().__init__()
        self.layers = nn.ModuleList(TwoWayBlock(config.width, config.mlp_dim, config.heads) for _ in range(2))
        self.final_attn_token_to_image = Attention(config.width, config.width // 2, config.heads)
        self.norm_final_attn = nn.LayerNorm(config.width)

    def forward(self, tokens: Tensor, pixels: Tensor, position: Tensor) -> tuple[Tensor, Tensor]:
        """Tokens (N, T, C) and pixels (N, L, C) at positions (L, C) to tokens and pixels."""
        origin = tokens
        for number, layer in enumerate(self.layers):
            tokens, pixels = layer(tokens + origin if number else tokens, pixels, origin, position)
        found = self.final_attn_token_to_image(tokens + origin, pixels + position, pixels)
        return self.norm_final_attn(tokens + found), pixels


class MaskDecoder(nn.Module):
    """Image and prompts to the filters and the pixels of four masks, and their predicted IoU."""

    def __init__(self, config: EfficientSamConfig) -> None:
        super().__init__()
        width, fine = config.width, (config.width // 4, config.width // 8)
        self.transformer = TwoWayTransformer(config)
        self.iou_token, self.mask_tokens = nn.Embedding(1, width), nn.Embedding(4, width)
        self.final_output_upscaling_layers = nn.Sequential(
            nn.Sequential(nn.ConvTranspose2d(width, fine[0], 2, stride=2), nn.GroupNorm(1, fine[0]), nn.GELU()),
            nn.Sequential(nn.ConvTranspose2d(fine[0], fine[1], 2, stride=2), nn.Identity(), nn.GELU()),
        )
        self.output_hypernetworks_mlps = nn.ModuleList(Mlp(width, width, fine[1], 2) for _ in range(4))
        self.iou_prediction_head = Mlp(width, width, 4, 2)

    def forward(self, image: Tensor, prompts: Tensor, position: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Embeddings (N, C, h, w), prompt tokens (N, T, C) and the cells' encoding (L, C).

        Returns:
            Filters (N, 3, C / 8) of the masks 1 to 3 (mask 0 is never asked for, as in the published code), fine pixels
            (N, C / 8, 4h, 4w) and predicted IoU (N, 3).
        """
        own = torch.cat([self.iou_token.weight, self.mask_tokens.weight])
        tokens = torch.cat([own.expand(len(prompts), -1, -1), prompts], 1)
        answers, pixels = self.transformer(tokens, image.flatten(2).mT, position)
        fine = self.final_output_upscaling_layers(pixels.mT.unflatten(2, image.shape[2:]))
        filters = [mlp(answers[:, 1 + at]) for at, mlp in enumerate(self.output_hypernetworks_mlps) if at]
        return torch.stack(filters, 1), fine, self.iou_prediction_head(answers[:, 0])[:, 1:]


class EfficientSam(nn.Module):
    """Encoder, prompt encoder and decoder."""

    def __init__(self, config: EfficientSamConfig) -> None:
        super().__init__()
        self.image_encoder = ImageEncoder(config)
        self.prompt_encoder = PromptEncoder(config)
        self.mask_decoder = MaskDecoder(config)
