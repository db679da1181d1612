"""CLIPSeg's head as matrix products: transposed convolutions that write every pixel once.

Kernels of the head's transposed convolutions are as long as their strides, so a position writes a block of its own: a
linear layer. Blocks of blocks stay beside each other until the last layer, and one copy puts all pixels in their place.
A library's transposed convolution, which must add what overlaps, takes two to four times as long on a processor.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional


def read_maps(head: nn.Module, features: Tensor, grid: tuple[int, int]) -> Tensor:
    """What ``head(features.mT.unflatten(2, grid))`` gives, up to rounding.

    Args:
        head: a transposed convolution, or a sequence of layers of which the first ones may be others.
        features: (M, L, d) of an h x w grid, L = h w.
        grid: (h, w).

    Returns:
        (M, C, h s, w s), s the product of all strides and C the channels of the last layer.
    """
    maps = features.mT.unflatten(2, grid)
    layers = list(head) if isinstance(head, nn.Sequential) else [head]
    first = next((n for n, layer in enumerate(layers) if isinstance(layer, nn.ConvTranspose2d)), len(layers))
    if not all(_writes_once(layer) for layer in layers[first:]):
        whole: Tensor = head(maps)
        return whole
    blocks = nn.Sequential(*layers[:first])(maps).movedim(1, -1)
    for layer in layers[first:]:  # ReLU in place: what a linear layer has just made is read by nothing else
        blocks = _write_blocks(layer, blocks) if isinstance(layer, nn.ConvTranspose2d) else blocks.relu_()
    return _in_place(blocks)


def _writes_once(layer: nn.Module) -> bool:
    """Whether a layer gives every position a block of its own, or works on every number alone."""
    if not isinstance(layer, nn.ConvTranspose2d):
        return isinstance(layer, nn.ReLU)
    apart = layer.kernel_size == layer.stride and layer.dilation == (1, 1) and layer.groups == 1
    return apart and layer.padding == (0, 0) == layer.output_padding


def _write_blocks(layer: nn.ConvTranspose2d, blocks: Tensor) -> Tensor:
    """(..., C_in) to (..., k, k, C_out)."""
    height, width = layer.kernel_size
    weight = layer.weight.permute(2, 3, 1, 0).flatten(0, 2)
    bias = None if layer.bias is None else layer.bias.repeat(height * width)
    return functional.linear(blocks, weight, bias).unflatten(-1, (height, width, layer.out_channels))


def _in_place(blocks: Tensor) -> Tensor:
    """(M, h, w, k, k, ..., C), blocks of blocks, to (M, C, h k ..., w k ...)."""
    rows, columns = range(1, blocks.ndim - 1, 2), range(2, blocks.ndim - 1, 2)
    ordered = blocks.permute(0, blocks.ndim - 1, *rows, *columns)
    return ordered.flatten(2, 1 + len(rows)).flatten(3)
