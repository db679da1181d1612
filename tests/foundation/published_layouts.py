"""Names and shapes in the checkpoints that the authors publish, written out by hand: {name: shape}.

Nothing here asks the package how it calls things.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

Layout = dict[str, tuple[int, ...]]


def linear(name: str, outputs: int, inputs: int) -> Layout:
    return {f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)}


def norm(name: str, width: int) -> Layout:
    return {f"{name}.weight": (width,), f"{name}.bias": (width,)}


def conv(name: str, *shape: int, channels: int | None = None) -> Layout:
    """``shape`` of the weight; ``channels`` of the bias, if it has one."""
    return {f"{name}.weight": shape} | ({} if channels is None else {f"{name}.bias": (channels,)})


def merge(*parts: Layout) -> Layout:
    return {name: shape for part in parts for name, shape in part.items()}


def neck(width: int) -> Layout:
    return merge(
        conv("image_encoder.neck.0", 256, width, 1, 1),
        norm("image_encoder.neck.1", 256),
        conv("image_encoder.neck.2", 256, 256, 3, 3),
        norm("image_encoder.neck.3", 256),
    )


def attention(name: str, inner: int) -> Layout:
    sizes = {"q_proj": (inner, 256), "k_proj": (inner, 256), "v_proj": (inner, 256), "out_proj": (256, inner)}
    return merge(*(linear(f"{name}.{part}", *size) for part, size in sizes.items()))


def two_way(first: str, second: str) -> Layout:
    """The two-way transformer; ``first`` and ``second`` are the layers of its MLPs."""
    blocks = [
        merge(
            attention(f"{block}.self_attn", 256),
            attention(f"{block}.cross_attn_token_to_image", 128),
            attention(f"{block}.cross_attn_image_to_token", 128),
            linear(f"{block}.mlp.{first}", 2048, 256),
            linear(f"{block}.mlp.{second}", 256, 2048),
            *(norm(f"{block}.norm{number}", 256) for number in (1, 2, 3, 4)),
        )
        for block in ("mask_decoder.transformer.layers.0", "mask_decoder.transformer.layers.1")
    ]
    last = attention("mask_decoder.transformer.final_attn_token_to_image", 128)
    return merge(*blocks, last, norm("mask_decoder.transformer.norm_final_attn", 256))


def sam_heads() -> Layout:
    """Prompt encoder and mask decoder, the same in SAM's three sizes and MobileSAM."""
    mask = "prompt_encoder.mask_downscaling"
    return merge(
        {"prompt_encoder.pe_layer.positional_encoding_gaussian_matrix": (2, 128)},
        {f"prompt_encoder.point_embeddings.{number}.weight": (1, 256) for number in range(4)},
        {"prompt_encoder.not_a_point_embed.weight": (1, 256), "prompt_encoder.no_mask_embed.weight": (1, 256)},
        conv(f"{mask}.0", 4, 1, 2, 2, channels=4),
        norm(f"{mask}.1", 4),
        conv(f"{mask}.3", 16, 4, 2, 2, channels=16),
        norm(f"{mask}.4", 16),
        conv(f"{mask}.6", 256, 16, 1, 1, channels=256),
        two_way("lin1", "lin2"),
        {"mask_decoder.iou_token.weight": (1, 256), "mask_decoder.mask_tokens.weight": (4, 256)},
        conv("mask_decoder.output_upscaling.0", 256, 64, 2, 2, channels=64),
        norm("mask_decoder.output_upscaling.1", 64),
        conv("mask_decoder.output_upscaling.3", 64, 32, 2, 2, channels=32),
        *(
            linear(f"mask_decoder.output_hypernetworks_mlps.{token}.layers.{layer}", 32 if layer == 2 else 256, 256)
            for token in range(4)
            for layer in range(3)
        ),
        *(
            linear(f"mask_decoder.iou_prediction_head.layers.{layer}", 4 if layer == 2 else 256, 256)
            for layer in range(3)
        ),
    )


def sam(width: int, depth: int, heads: int, global_blocks: tuple[int, ...]) -> Layout:
    """``sam_vit_{b,l,h}_*.pth``."""
    parts = [{"image_encoder.pos_embed": (1, 64, 64, width)}]
    parts.append(conv("image_encoder.patch_embed.proj", width, 3, 16, 16, channels=width))
    for number in range(depth):
        block, reach = f"image_encoder.blocks.{number}", 127 if number in global_blocks else 27
        parts += [
            norm(f"{block}.norm1", width),
            {f"{block}.attn.rel_pos_h": (reach, width // heads), f"{block}.attn.rel_pos_w": (reach, width // heads)},
            linear(f"{block}.attn.qkv", 3 * width, width),
            linear(f"{block}.attn.proj", width, width),
            norm(f"{block}.norm2", width),
            linear(f"{block}.mlp.lin1", 4 * width, width),
            linear(f"{block}.mlp.lin2", width, 4 * width),
        ]
    return merge(*parts, neck(width), sam_heads())


def conv_bn(name: str, outputs: int, inputs: int, side: int) -> Layout:
    batch = {f"{name}.bn.{part}": (outputs,) for part in ("weight", "bias", "running_mean", "running_var")}
    return {f"{name}.c.weight": (outputs, inputs, side, side), **batch, f"{name}.bn.num_batches_tracked": ()}


def mobile_sam() -> Layout:
    """``mobile_sam.pt``."""
    widths, depths, heads, windows = (64, 128, 160, 320), (2, 2, 6, 2), (2, 4, 5, 10), (7, 7, 14, 7)
    stem = "image_encoder.patch_embed.seq"
    parts = [conv_bn(f"{stem}.0", 32, 3, 3), conv_bn(f"{stem}.2", 64, 32, 3)]
    for stage, width in enumerate(widths):
        layer = f"image_encoder.layers.{stage}"
        for number in range(depths[stage]):
            block = f"{layer}.blocks.{number}"
            if stage == 0:
                parts += [conv_bn(f"{block}.conv1", 4 * width, width, 1), conv_bn(f"{block}.conv2", 4 * width, 1, 3)]
                parts.append(conv_bn(f"{block}.conv3", width, 4 * width, 1))
                continue
            parts += [
                {f"{block}.attn.attention_biases": (heads[stage], windows[stage] ** 2)},
                norm(f"{block}.attn.norm", width),
                linear(f"{block}.attn.qkv", 3 * width, width),
                linear(f"{block}.attn.proj", width, width),
                norm(f"{block}.mlp.norm", width),
                linear(f"{block}.mlp.fc1", 4 * width, width),
                linear(f"{block}.mlp.fc2", width, 4 * width),
                conv_bn(f"{block}.local_conv", width, 1, 3),
            ]
        if stage < 3:
            after = widths[stage + 1]
            parts += [
                conv_bn(f"{layer}.downsample.conv1", after, width, 1),
                conv_bn(f"{layer}.downsample.conv2", after, 1, 3),
                conv_bn(f"{layer}.downsample.conv3", after, after, 1),
            ]
    parts += [norm("image_encoder.norm_head", 320), linear("image_encoder.head", 1000, 320)]
    return merge(*parts, neck(320), sam_heads())


def efficient_sam(width: int) -> Layout:
    """``efficient_sam_vit{t,s}.pt``; there, all of it lies under ``model``."""
    parts = [{"image_encoder.pos_embed": (1, 197, width)}]
    parts.append(conv("image_encoder.patch_embed.proj", width, 3, 16, 16, channels=width))
    for number in range(12):
        block = f"image_encoder.blocks.{number}"
        parts += [
            norm(f"{block}.norm1", width),
            linear(f"{block}.attn.qkv", 3 * width, width),
            linear(f"{block}.attn.proj", width, width),
            norm(f"{block}.norm2", width),
            linear(f"{block}.mlp.fc1", 4 * width, width),
            linear(f"{block}.mlp.fc2", width, 4 * width),
        ]
    decoder = "mask_decoder"
    parts += [
        {"prompt_encoder.pe_layer.positional_encoding_gaussian_matrix": (2, 128)},
        {"prompt_encoder.invalid_points.weight": (1, 256), "prompt_encoder.point_embeddings.weight": (1, 256)},
        {"prompt_encoder.bbox_top_left_embeddings.weight": (1, 256)},
        {"prompt_encoder.bbox_bottom_right_embeddings.weight": (1, 256)},
        two_way("layers.0.0", "fc"),
        {f"{decoder}.iou_token.weight": (1, 256), f"{decoder}.mask_tokens.weight": (4, 256)},
        conv(f"{decoder}.final_output_upscaling_layers.0.0", 256, 64, 2, 2, channels=64),
        norm(f"{decoder}.final_output_upscaling_layers.0.1", 64),
        conv(f"{decoder}.final_output_upscaling_layers.1.0", 64, 32, 2, 2, channels=32),
    ]
    for mlp, outputs in [(f"output_hypernetworks_mlps.{token}", 32) for token in range(4)] + [
        ("iou_prediction_head", 4)
    ]:
        parts += [linear(f"{decoder}.{mlp}.layers.{layer}.0", 256, 256) for layer in range(2)]
        parts.append(linear(f"{decoder}.{mlp}.fc", outputs, 256))
    return merge(*parts, neck(width))


def drawn(layout: Layout, seed: int = 0) -> dict[str, Tensor]:
    """Random weights that keep the size of what passes through them."""
    generator = torch.Generator().manual_seed(seed)
    state = {}
    for name, shape in layout.items():
        if name.endswith("num_batches_tracked"):
            state[name] = torch.tensor(1000)
        elif name.endswith("running_var") or (len(shape) == 1 and name.endswith("weight")):
            state[name] = torch.rand(shape, generator=generator) / 2 + 0.75
        else:
            scale = 0.1 if len(shape) == 1 or "embed" in name else 1 / math.sqrt(math.prod(shape[1:]))
            state[name] = torch.randn(shape, generator=generator) * (1.0 if "gaussian" in name else scale)
    return state


def parameters(layout: Layout) -> int:
    """Trained values: no running statistics, no Gaussian matrix."""
    fixed = ("running_mean", "running_var", "num_batches_tracked", "gaussian_matrix")
    return sum(math.prod(shape) for name, shape in layout.items() if not name.endswith(fixed))
