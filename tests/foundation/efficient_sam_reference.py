"""EfficientSAM a second time, from its description alone: plain functions over a state dictionary, prompt by prompt.

No module of the package, no fused attention, no batches. Names are those of the published checkpoints.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional


class Weights:
    """A state dictionary seen from one of its prefixes."""

    def __init__(self, state: dict[str, Tensor], prefix: str = "") -> None:
        self.state, self.prefix = state, prefix

    def __getitem__(self, name: str) -> Tensor:
        return self.state[self.prefix + name]

    def at(self, name: str) -> Weights:
        return Weights(self.state, f"{self.prefix}{name}.")

    def count(self, name: str) -> int:
        start = f"{self.prefix}{name}."
        return len({key[len(start) :].split(".")[0] for key in self.state if key.startswith(start)})


def linear(w: Weights, x: Tensor) -> Tensor:
    return x @ w["weight"].T + w["bias"]


def layer_norm(w: Weights, x: Tensor, eps: float) -> Tensor:
    """Over the last dimension."""
    spread = x.var(-1, keepdim=True, unbiased=False)
    return (x - x.mean(-1, keepdim=True)) / (spread + eps).sqrt() * w["weight"] + w["bias"]


def attend(q: Tensor, k: Tensor, v: Tensor, heads: int) -> Tensor:
    """(Q, d), (K, d), (K, d) to (Q, d), head by head."""
    each = q.shape[1] // heads
    mixed = []
    for head in range(heads):
        part = slice(head * each, (head + 1) * each)
        mixed.append((q[:, part] @ k[:, part].T / math.sqrt(each)).softmax(-1) @ v[:, part])
    return torch.cat(mixed, 1)


def encode(state: dict[str, Tensor], pixels: Tensor, heads: int) -> Tensor:
    """(3, S, S) to (C, h, w)."""
    w = Weights(state).at("image_encoder")
    patch = w["patch_embed.proj.weight"]
    cells = functional.conv2d(pixels[None], patch, w["patch_embed.proj.bias"], stride=patch.shape[-1])[0]
    grid = cells.shape[1]
    known = math.isqrt(w["pos_embed"].shape[1] - 1)
    positions = w["pos_embed"][0, 1:].T.reshape(1, -1, known, known)
    cells = cells + functional.interpolate(positions, (grid, grid), mode="bicubic", align_corners=False)[0]
    x = cells.flatten(1).T
    for number in range(w.count("blocks")):
        block = w.at(f"blocks.{number}")
        q, k, v = linear(block.at("attn.qkv"), layer_norm(block.at("norm1"), x, 1e-6)).chunk(3, 1)
        x = x + linear(block.at("attn.proj"), attend(q, k, v, heads))
        hidden = functional.gelu(linear(block.at("mlp.fc1"), layer_norm(block.at("norm2"), x, 1e-6)))
        x = x + linear(block.at("mlp.fc2"), hidden)
    image = x.T.reshape(1, -1, grid, grid)
    for conv, norm, padding in ((0, 1, 0), (2, 3, 1)):
        image = functional.conv2d(image, w[f"neck.{conv}.weight"], padding=padding)
        image = layer_norm(w.at(f"neck.{norm}"), image.permute(0, 2, 3, 1), 1e-6).permute(0, 3, 1, 2)
    return image[0]


def place(state: dict[str, Tensor], relative: Tensor) -> Tensor:
    gaussian = state["prompt_encoder.pe_layer.positional_encoding_gaussian_matrix"]
    phase = 2 * math.pi * ((2 * relative - 1) @ gaussian)
    return torch.cat([phase.sin(), phase.cos()], -1)


def prompt(state: dict[str, Tensor], points: list[tuple[float, float, int]], side: int) -> Tensor:
    """(x, y, label) with labels 1 point, 2 and 3 corners, filled up to six with label -1 at -1, -1, to (6, C)."""
    name = {
        -1: "invalid_points",
        1: "point_embeddings",
        2: "bbox_top_left_embeddings",
        3: "bbox_bottom_right_embeddings",
    }
    points = points + [(-1.0, -1.0, -1)] * (6 - len(points))
    return torch.stack(
        [
            place(state, (torch.tensor([x, y]) + 0.5) / side) + state[f"prompt_encoder.{name[label]}.weight"][0]
            for x, y, label in points
        ]
    )


def mlp(w: Weights, x: Tensor) -> Tensor:
    for number in range(w.count("layers")):
        x = functional.gelu(linear(w.at(f"layers.{number}.0"), x))
    return linear(w.at("fc"), x)


def look(w: Weights, query: Tensor, key: Tensor, value: Tensor, heads: int) -> Tensor:
    q, k, v = (linear(w.at(name), x) for name, x in (("q_proj", query), ("k_proj", key), ("v_proj", value)))
    return linear(w.at("out_proj"), attend(q, k, v, heads))


def decode(state: dict[str, Tensor], embedding: Tensor, prompts: Tensor, heads: int) -> tuple[Tensor, Tensor]:
    """(C, h, w) and (6, C) to mask logits (3, 4h, 4w) and predicted IoU (3,)."""
    w = Weights(state).at("mask_decoder")
    channels, height, width = embedding.shape
    y, x = torch.meshgrid((torch.arange(height) + 0.5) / height, (torch.arange(width) + 0.5) / width, indexing="ij")
    key_place = place(state, torch.stack([x, y], -1)).reshape(-1, channels)
    origin = torch.cat([w["iou_token.weight"], w["mask_tokens.weight"], prompts])
    tokens, pixels = origin, embedding.flatten(1).T
    for number in range(w.count("transformer.layers")):
        layer = w.at(f"transformer.layers.{number}")
        if number:
            tokens = tokens + origin
        tokens = layer_norm(
            layer.at("norm1"), tokens + look(layer.at("self_attn"), tokens, tokens, tokens, heads), 1e-5
        )
        found = look(layer.at("cross_attn_token_to_image"), tokens + origin, pixels + key_place, pixels, heads)
        tokens = layer_norm(layer.at("norm2"), tokens + found, 1e-5)
        tokens = layer_norm(layer.at("norm3"), tokens + mlp(layer.at("mlp"), tokens), 1e-5)
        found = look(layer.at("cross_attn_image_to_token"), pixels + key_place, tokens + origin, tokens, heads)
        pixels = layer_norm(layer.at("norm4"), pixels + found, 1e-5)
    last = w.at("transformer")
    found = look(last.at("final_attn_token_to_image"), tokens + origin, pixels + key_place, pixels, heads)
    tokens = layer_norm(last.at("norm_final_attn"), tokens + found, 1e-5)
    fine = pixels.T.reshape(1, channels, height, width)
    up = w.at("final_output_upscaling_layers")
    fine = functional.conv_transpose2d(fine, up["0.0.weight"], up["0.0.bias"], stride=2)
    fine = functional.gelu(functional.group_norm(fine, 1, up["0.1.weight"], up["0.1.bias"]))
    fine = functional.gelu(functional.conv_transpose2d(fine, up["1.0.weight"], up["1.0.bias"], stride=2))
    masks = [
        (mlp(w.at(f"output_hypernetworks_mlps.{number}"), tokens[1 + number])[:, None, None] * fine[0]).sum(0)
        for number in (1, 2, 3)
    ]
    return torch.stack(masks), mlp(w.at("iou_prediction_head"), tokens[0])[1:]
