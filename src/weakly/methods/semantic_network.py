"""What networks that give every pixel a category promise, and the arithmetic they share.

Symbols: B images, C categories and background with index C, (H, W) size of the pixels, s the stride that the network
pads its input to. Labels hold C for background and 255 for pixels to ignore.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from weakly.methods.image_views import VOID


class SemanticNetwork(nn.Module, ABC):
    """A network that tells C categories and background apart at every pixel.

    Attributes:
        stride: s; inputs of other sizes are padded at the bottom and the right, outputs cut again.
        backbone: beginning of the backbone's parameter names.
        backbone_lr: learning rate of the backbone over that of the rest.
    """

    stride: ClassVar[int] = 32
    backbone: ClassVar[str]
    backbone_lr: float

    @abstractmethod
    def scores(self, pixels: Tensor) -> Tensor:
        """(B, 3, H, W) with H and W multiples of s to (B, C + 1, H, W): a softmax over them gives probabilities."""

    @abstractmethod
    def padded_loss(self, pixels: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """:meth:`loss` of a batch whose height and width are multiples of s."""

    @abstractmethod
    def architecture(self) -> dict[str, Any]:
        """JSON from which this network is made anew, without its weights."""

    def forward(self, pixels: Tensor) -> Tensor:
        """Class scores at the resolution of the pixels.

        Args:
            pixels: (B, 3, H, W) float32, normalised by ImageNet's mean and deviation; any size.

        Returns:
            (B, C + 1, H, W): logits, or log-probabilities; their softmax over dimension 1 are the probabilities.
        """
        height, width = pixels.shape[-2:]
        return self.scores(pad_to(pixels, self.stride, 0))[..., :height, :width]

    def loss(self, pixels: Tensor, labels: Tensor) -> dict[str, Tensor]:
        """What training minimises.

        Args:
            pixels: (B, 3, H, W) as in :meth:`forward`.
            labels: (B, H, W) int64: category, C for background, 255 for pixels to ignore.

        Returns:
            Scalars: ``"loss"``, and the weighted parts it is the sum of.
        """
        parts = self.padded_loss(pad_to(pixels, self.stride, 0), pad_to(labels, self.stride, VOID))
        return {"loss": torch.stack(list(parts.values())).sum(), **parts}

    def probabilities(self, outputs: Tensor, size: tuple[int, int]) -> Tensor:
        """What :meth:`forward` returned, as (B, C + 1, *size) probabilities: logits are resized, then normalised."""
        return resize(outputs.float(), size).softmax(1)

    def undecayed(self) -> set[str]:
        """Names of the parameters that weight decay leaves alone."""
        return set()


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Mean over the labelled pixels of (B, C + 1, H, W) logits and (B, H, W) labels; 0 where none is labelled."""
    total = functional.cross_entropy(logits.float(), labels, ignore_index=VOID, reduction="sum")
    return total / (labels != VOID).sum().clamp(min=1)


def resize(maps: Tensor, size: tuple[int, ...]) -> Tensor:
    """(B, C, h, w) to (B, C, *size), bilinear, corners not aligned."""
    return functional.interpolate(maps, size=tuple(size), mode="bilinear", align_corners=False)


def pad_to(maps: Tensor, multiple: int, value: int) -> Tensor:
    """(..., H, W) with H and W padded at the end to multiples."""
    height, width = maps.shape[-2:]
    return functional.pad(maps, (0, -width % multiple, 0, -height % multiple), value=value)
