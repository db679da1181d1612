"""The decoder's wide layers, a slice of tokens at a time.

``W2 ReLU(W1 x + b1) + b2`` is 32 times as wide inside as outside, for as many tokens as images, prompts and patches
multiplied. What is inside is never held whole: it is made slice by slice in one buffer, and made again for the
gradients. On a processor a slice stays in its cache, where ReLU costs next to nothing.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

HIDDEN_FLOATS = {"cpu": 2**19}
"""Activations held at once, by device: 2 MiB where caches are small; elsewhere :data:`OTHER_HIDDEN_FLOATS`."""

OTHER_HIDDEN_FLOATS = 2**24
"""64 MiB where starting a kernel costs more than memory."""


def feed_forward(first: nn.Linear, second: nn.Linear, tokens: Tensor) -> Tensor:
    """``second(ReLU(first(tokens)))``, differentiable once in tokens, weights and biases.

    Two slices of activations are held besides inputs and outputs, in the backward pass too.

    Args:
        first: d to h.
        second: h to d.
        tokens: (..., d).

    Returns:
        (..., d), of the dtype that autocast gives linear layers.
    """
    device = tokens.device.type
    dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else tokens.dtype
    weights = (weight.to(dtype) for weight in (first.weight, first.bias, second.weight, second.bias))
    result = _Sliced.apply(tokens.flatten(0, -2).to(dtype), *weights)
    return cast("Tensor", result).view(*tokens.shape[:-1], second.out_features)


class _Sliced(torch.autograd.Function):
    """(M, d) tokens to the same shape. With a = ReLU(W1 x + b1): da = (dy W2) where a > 0, dx = da W1."""

    @staticmethod
    def forward(ctx: Any, tokens: Tensor, w1: Tensor, b1: Tensor, w2: Tensor, b2: Tensor) -> Tensor:
        ctx.save_for_backward(tokens, w1, b1, w2)
        size = _slice_of(tokens, w1)
        result, inside = tokens.new_empty(len(tokens), len(w2)), _buffer(tokens, w1, size)
        for given, out in zip(tokens.split(size), result.split(size), strict=True):
            torch.addmm(b2, _activations(given, w1, b1, inside), w2.T, out=out)
        return result

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, ...]:
        tokens, w1, b1, w2 = ctx.saved_tensors
        size = _slice_of(tokens, w1)
        inside, back = _buffer(tokens, w1, size), _buffer(tokens, w1, size)
        of_tokens = torch.empty_like(tokens)
        # Sums over slices are float32 at least: there are as many slices as a sum has terms elsewhere.
        exact = torch.promote_types(tokens.dtype, torch.float32)
        of_w1, of_b1, of_w2 = (torch.zeros_like(weight, dtype=exact) for weight in (w1, b1, w2))
        pieces = zip(tokens.split(size), gradient.split(size), of_tokens.split(size), strict=True)
        for given, wanted, out in pieces:
            active = _activations(given, w1, b1, inside)
            of_w2 += wanted.T @ active
            slope = torch.mm(wanted, w2, out=back[: len(given)])
            torch.ops.aten.threshold_backward(slope, active, 0, grad_input=slope)
            of_w1 += slope.T @ given
            of_b1 += slope.sum(0)
            torch.mm(slope, w1, out=out)
        of_b2 = gradient.sum(0)
        return of_tokens, of_w1.to(w1.dtype), of_b1.to(b1.dtype), of_w2.to(w2.dtype), of_b2


def _activations(tokens: Tensor, weight: Tensor, bias: Tensor, buffer: Tensor) -> Tensor:
    """ReLU(W x + b) of some tokens, in the first rows of a buffer."""
    return torch.addmm(bias, tokens, weight.T, out=buffer[: len(tokens)]).relu_()


def _slice_of(tokens: Tensor, weight: Tensor) -> int:
    return max(1, HIDDEN_FLOATS.get(tokens.device.type, OTHER_HIDDEN_FLOATS) // len(weight))


def _buffer(tokens: Tensor, weight: Tensor, size: int) -> Tensor:
    return tokens.new_empty(min(size, len(tokens)), len(weight))
