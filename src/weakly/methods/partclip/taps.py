"""The frozen side of PartCLIPSeg as the feature store and the embedder see it: images in, taps of the tower out.

One image takes ``n T K`` values (n tapped blocks, T tokens, K vision width): 2.2 MB in half precision with the
published CLIPSeg at 352 pixels (3 x 485 x 768), mirrored images as much again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from weakly.data.images import read_image
from weakly.foundation.clipseg import ClipSeg, load_clipseg
from weakly.foundation.feature_build import ReadImage
from weakly.foundation.promptable import Frame

SHORT_SIDE, LONG_SIDE = 800, 1333
"""Pixels: what the release brings the shorter side of training images to, unless the longer one would exceed this."""


class TapEncoder(nn.Module):
    """A frozen CLIPSeg's vision side.

    A store keeps (C, h, w) values per image and codes them channel by channel. The channels here are those of the
    tower, one set per tap, because their ranges differ by orders of magnitude: (n K, 1, T).

    Attributes:
        clipseg: the whole of it.
        name, fingerprint, side: of it.
        embedding_shape: (n K, 1, T).
    """

    def __init__(self, clipseg: ClipSeg) -> None:
        super().__init__()
        self.clipseg = clipseg
        self.name, self.side = clipseg.name, clipseg.side
        height, width = clipseg.grid
        self.embedding_shape = (len(clipseg.layers_tapped) * clipseg.width, 1, 1 + height * width)

    @property
    def fingerprint(self) -> str:
        """Of vision weights and preprocessing."""
        return self.clipseg.fingerprint

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.clipseg.device

    def frame(self, size: tuple[int, int]) -> Frame:
        """Images of any ``size`` (height, width) fill the whole square."""
        return Frame(size, self.side, (self.side, self.side))

    def preprocess(self, images: Sequence[NDArray[np.uint8]]) -> Tensor:
        """(H, W, 3) uint8 images of any sizes to one (B, 3, S, S) float32 input on the CPU."""
        return torch.cat([self.clipseg.preprocess(image) for image in images])

    def encode(self, pixels: Tensor) -> Tensor:
        """(B, 3, S, S) float32 to (B, n K, 1, T) float32."""
        return self.clipseg.taps(pixels).mT.flatten(1, 2)[:, :, None]

    def taps(self, features: Tensor) -> Tensor:
        """(B, n K, 1, T) features to (B, n, T, K) taps."""
        return unpack_taps(features, len(self.clipseg.layers_tapped))


def unpack_taps(features: Tensor, layers: int) -> Tensor:
    """(B, n K, 1, T) features of :class:`TapEncoder` to (B, n, T, K) taps, n = ``layers``."""
    return features[:, :, 0].unflatten(1, (layers, -1)).mT.contiguous()


def frozen_encoder(name: str, side: int | None = None, device: str | None = None) -> TapEncoder:
    """The CLIPSeg of a name, loaded once per process; the last one stays in memory, on the last ``device`` asked for.

    Loading leaves the random state alone, so that a student's first weights do not depend on it.

    Args:
        name: see :func:`~weakly.foundation.clipseg.load_clipseg`.
        side: S in pixels; None: the checkpoint's own.
        device: None: where it is.
    """
    encoder = _load_once(name, side)
    return encoder if device is None else encoder.to(device)


@lru_cache(maxsize=1)
def _load_once(name: str, side: int | None) -> TapEncoder:
    with torch.random.fork_rng(devices=[]):
        clipseg = load_clipseg(name)
    if side is not None and side != clipseg.side:
        preprocessing = replace(clipseg.preprocessing, side=side)
        clipseg = ClipSeg(clipseg.model, clipseg.tokenizer, clipseg.name, preprocessing)
    return TapEncoder(clipseg)


@dataclass(frozen=True)
class View:
    """What happens to a training image between its file and the squash.

    Attributes:
        bgr: channels in reverse order.
        enlarged: shortest side to 800 pixels first, as the release does.
        mirrored: left to right.
    """

    bgr: bool = False
    enlarged: bool = False
    mirrored: bool = False

    @property
    def variant(self) -> str:
        """Name of its features in the store; empty for the image as it is."""
        named = {"bgr": self.bgr, "short800": self.enlarged, "hflip": self.mirrored}
        return "".join(name for name, applies in named.items() if applies)

    def flipped(self) -> View:
        """The same, mirrored."""
        return replace(self, mirrored=not self.mirrored)

    def reader(self) -> ReadImage:
        """Reads a file as (H, W, 3) uint8 of this view."""
        return partial(_read, self)

    def apply(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """(H, W, 3) uint8 RGB to (H', W', 3) uint8."""
        if self.enlarged:
            height, width = enlarged_size((image.shape[0], image.shape[1]))
            image = np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR))
        if self.mirrored:
            image = image[:, ::-1]
        return np.ascontiguousarray(image[..., ::-1] if self.bgr else image)


def enlarged_size(size: tuple[int, int]) -> tuple[int, int]:
    """Size with a shortest side of 800 pixels, or a longest one of 1333 where that is smaller (spec section 4)."""
    scale = min(SHORT_SIDE / min(size), LONG_SIDE / max(size))
    return max(1, int(size[0] * scale + 0.5)), max(1, int(size[1] * scale + 0.5))


def _read(view: View, path: Path) -> NDArray[Any]:
    return view.apply(read_image(path))
