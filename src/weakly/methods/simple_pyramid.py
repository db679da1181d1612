"""A feature pyramid on the one map of a plain encoder, such as an image embedding of SAM."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence

from torch import Tensor, nn
from torch.nn import functional

from weakly.methods.resnet import group_norm
from weakly.methods.two_stage import level_names


class SimplePyramid(nn.Module):
    """(B, C, h, w) to maps of ``width`` channels at several scales of (h, w): deconvolution, identity, pooling.

    The simple feature pyramid of plain detectors (ViTDet): every level is made from the same map and no level from
    another. It suits as a backbone of torchvision's detectors.

    Args:
        channels: of the embedding that are looked at, the first ones.
        width: channels of the maps; a multiple of 32.
        scales: of the maps' sides to h and w, finest first: powers of two. 4 is two deconvolutions, 1/4 two poolings.

    Attributes:
        out_channels: ``width``; what torchvision asks a backbone for.
    """

    def __init__(self, channels: int, width: int, scales: Sequence[float] = (4, 2, 1, 0.5, 0.25)) -> None:
        super().__init__()
        self.channels = channels
        self.out_channels = width
        self.levels = nn.ModuleDict(
            {
                name: nn.Sequential(*_resampling(channels, scale), *_lateral(channels, width))
                for name, scale in zip(level_names(len(scales)), scales, strict=True)
            }
        )

    def forward(self, embeddings: Tensor) -> OrderedDict[str, Tensor]:
        """Embeddings (B, C, h, w) to the maps by name, finest first."""
        return OrderedDict((name, level(embeddings[:, : self.channels])) for name, level in self.levels.items())


class _Half(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return functional.max_pool2d(x, 2, ceil_mode=True)


def _resampling(channels: int, scale: float) -> list[nn.Module]:
    """Layers that change the sides of a map by ``scale`` and keep its channels."""
    layers: list[nn.Module] = []
    while scale > 1:
        layers += [nn.ConvTranspose2d(channels, channels, 2, stride=2), nn.GroupNorm(1, channels), nn.GELU()]
        scale /= 2
    while scale < 1:
        layers.append(_Half())
        scale *= 2
    return layers


def _lateral(channels: int, width: int) -> list[nn.Module]:
    return [
        nn.Conv2d(channels, width, 1, bias=False),
        group_norm(width),
        nn.Conv2d(width, width, 3, padding=1, bias=False),
        group_norm(width),
    ]
