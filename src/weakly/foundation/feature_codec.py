"""How features are stored: exactly, in half precision, or as one byte per value, and what that costs.

A coded batch is a dictionary of tensors whose first dimension is the image, so that the same row selection works for
every coding:

========  ==========================================================================  =====================
dtype     tensors                                                                     bytes per image
========  ==========================================================================  =====================
float32   ``features`` (n, C, h, w) float32                                           4 C h w
float16   ``features`` (n, C, h, w) float16                                           2 C h w
int8      ``features`` (n, C, h, w) uint8, ``low`` and ``scale`` (n, C) float32       C h w + 8 C
========  ==========================================================================  =====================

The byte coding is affine per image and channel: ``value = low + scale * code`` with ``low`` the channel's minimum and
``scale`` = (maximum - minimum) / 255. Its error is at most half a step, ``scale / 2``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

import torch
from torch import Tensor

FeatureDtype = Literal["float32", "float16", "int8"]
FEATURE_DTYPES: tuple[FeatureDtype, ...] = get_args(FeatureDtype)

Shape: TypeAlias = tuple[int, int, int]
"""(C, h, w) of the features of one image."""

Coded: TypeAlias = dict[str, Tensor]
"""A coded batch of n images: every tensor has n rows."""


@dataclass(frozen=True, slots=True)
class Drift:
    """How far coded features are from the exact ones, over all values of all images added up.

    Attributes:
        max_abs: largest absolute difference of one value.
        squared_error: sum of squared differences.
        squared_norm: sum of squared exact values.
    """

    max_abs: float = 0.0
    squared_error: float = 0.0
    squared_norm: float = 0.0

    @property
    def relative_l2(self) -> float:
        """||decoded - exact|| / ||exact||; 0 for no features at all."""
        return math.sqrt(self.squared_error / self.squared_norm) if self.squared_norm else 0.0

    def __add__(self, other: Drift) -> Drift:
        return Drift(
            max(self.max_abs, other.max_abs),
            self.squared_error + other.squared_error,
            self.squared_norm + other.squared_norm,
        )

    def __str__(self) -> str:
        return f"largest difference {self.max_abs:.2e}, relative L2 {self.relative_l2:.2e}"


def layout(dtype: FeatureDtype, shape: Shape, images: int) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
    """Element type and shape of every tensor of a coded batch of ``images`` images."""
    channels = shape[0]
    if dtype == "int8":
        return {
            "features": (torch.uint8, (images, *shape)),
            "low": (torch.float32, (images, channels)),
            "scale": (torch.float32, (images, channels)),
        }
    return {"features": (torch.float32 if dtype == "float32" else torch.float16, (images, *shape))}


def empty(dtype: FeatureDtype, shape: Shape, images: int, device: torch.device | str = "cpu") -> Coded:
    """An uninitialised coded batch."""
    return {
        name: torch.empty(size, dtype=kind, device=device)
        for name, (kind, size) in layout(dtype, shape, images).items()
    }


def image_bytes(dtype: FeatureDtype, shape: Shape) -> int:
    """Bytes of one coded image: C h w times 4 or 2, or C h w + 8 C for int8."""
    return sum(kind.itemsize * math.prod(size) for kind, size in layout(dtype, shape, 1).values())


def encode(features: Tensor, dtype: FeatureDtype) -> Coded:
    """Code exact features.

    Args:
        features: (n, C, h, w) float32.
        dtype: the coding.

    Returns:
        A coded batch on the device of ``features``. Values beyond +-65504 become infinite in float16.
    """
    if dtype == "float32":
        return {"features": features.contiguous()}
    if dtype == "float16":
        return {"features": features.half().contiguous()}
    low, high = features.amin(dim=(2, 3)), features.amax(dim=(2, 3))
    scale = (high - low) / 255
    step = torch.where(scale > 0, scale, 1.0)  # a constant channel is all zeros over `low`
    codes = ((features - low[..., None, None]) / step[..., None, None]).round().clamp(0, 255)
    return {"features": codes.to(torch.uint8).contiguous(), "low": low.contiguous(), "scale": scale.contiguous()}


def decode(coded: Coded) -> Tensor:
    """A coded batch to (n, C, h, w) float32 on the same device. Stored float32 features come back bit for bit."""
    values = coded["features"].float()
    if "scale" not in coded:
        return values
    return values * coded["scale"][..., None, None] + coded["low"][..., None, None]


def rows(coded: Coded, indices: Tensor) -> Coded:
    """The images at ``indices`` (B,) int64, on the same device: one gather per tensor."""
    return {name: tensor.index_select(0, indices) for name, tensor in coded.items()}


def drift(features: Tensor, dtype: FeatureDtype) -> Drift:
    """What coding ``features`` (n, C, h, w) float32 as ``dtype`` and back changes."""
    return difference(features, decode(encode(features, dtype)))


def difference(exact: Tensor, decoded: Tensor) -> Drift:
    """The :class:`Drift` between exact and decoded features of one shape, summed in float64."""
    if not exact.numel():
        return Drift()
    exact = exact.double()
    error = decoded.double() - exact
    return Drift(float(error.abs().max()), float(error.square().sum()), float(exact.square().sum()))
