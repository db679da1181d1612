"""What a semantic segmenter sees of an image: the random training view and the plain view (fma-wsss, section 6).

Every random number comes from the generator that is handed in, so a view is a pure function of image, labels and
generator. Label maps hold one category per pixel; :data:`VOID` is ignored in training. Memory: a few float32 copies of
the resized image.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from weakly.errors import UserError

VOID = 255
"""Label of pixels that no loss looks at."""

MEAN = np.array((123.675, 116.28, 103.53), np.float32)
"""Of ImageNet's red, green and blue, 0..255."""

STD = np.array((58.395, 57.12, 57.375), np.float32)

CROP_TRIES = 10
"""Crops drawn before one that a single category fills is taken all the same."""


@dataclass(frozen=True)
class Augmentation:
    """How a training view is drawn; the defaults are those of FMA-WSSS's second stage.

    Attributes:
        crop: side of the square view in pixels.
        short: largest short side of the resized image in pixels, times the drawn ratio.
        long: largest long side likewise.
        ratio: range of the uniformly drawn ratio.
        cat_max_ratio: a crop is drawn again while one category fills this share of its labelled pixels or more.
        flip: probability of mirroring left to right.
        photometric: distort brightness, contrast, saturation and hue.
    """

    crop: int = 512
    short: int = 512
    long: int = 2048
    ratio: tuple[float, float] = (0.5, 2.0)
    cat_max_ratio: float = 0.75
    flip: float = 0.5
    photometric: bool = True

    def __post_init__(self) -> None:
        if self.crop < 1:
            raise UserError(f"augmentation.crop is {self.crop}; give a side of at least 1 pixel.")
        check_sides("augmentation", self.short, self.long)
        if not 0 < self.ratio[0] <= self.ratio[1]:
            raise UserError(f"augmentation.ratio is {self.ratio}; give two numbers above 0, the smaller first.")
        for name in ("cat_max_ratio", "flip"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"augmentation.{name} is {getattr(self, name)}; give a number in [0, 1].")


def check_sides(section: str, short: int, long: int) -> None:
    """Refuse sides that no image can be fitted to.

    Raises:
        UserError: ``short`` is below 1 pixel or above ``long``.
    """
    if not 1 <= short <= long:
        raise UserError(f"{section}.short is {short} and {section}.long is {long}; give sides with 1 <= short <= long.")


def fit_size(size: tuple[int, int], short: float, long: float) -> tuple[int, int]:
    """(height, width) with the aspect of ``size``: short side ``short``, unless the long side would exceed ``long``."""
    factor = min(short / min(size), long / max(size))
    return max(1, round(size[0] * factor)), max(1, round(size[1] * factor))


def resize_image(image: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    """(H, W, 3) uint8 to ``size`` (height, width), bilinear."""
    if image.shape[:2] == size:
        return image
    return cv2.resize(image, size[::-1], interpolation=cv2.INTER_LINEAR).astype(np.uint8, copy=False)


def resize_labels(labels: NDArray[np.uint8], size: tuple[int, int]) -> NDArray[np.uint8]:
    """(H, W) labels to ``size``, each pixel that of the nearest centre, as the bilinear image has its centres."""
    if labels.shape == size:
        return labels
    return cv2.resize(labels, size[::-1], interpolation=cv2.INTER_NEAREST_EXACT).astype(np.uint8, copy=False)


def to_pixels(image: NDArray[np.uint8] | NDArray[np.float32]) -> Tensor:
    """(H, W, 3) RGB in 0..255 to (3, H, W) float32, normalised by ImageNet's mean and deviation."""
    normalised = (image.astype(np.float32) - MEAN) / STD
    return torch.from_numpy(np.ascontiguousarray(normalised.transpose(2, 0, 1)))


def training_view(
    image: NDArray[np.uint8], labels: NDArray[np.uint8], augmentation: Augmentation, rng: np.random.Generator
) -> tuple[Tensor, Tensor]:
    """A random view: resized, cropped, mirrored, distorted in colour, padded at the bottom and the right.

    Args:
        image: (H, W, 3) uint8 RGB.
        labels: (H, W) uint8 categories or :data:`VOID`.
        augmentation: how views are drawn.
        rng: the only source of randomness.

    Returns:
        Normalised (3, S, S) float32 pixels, padded with 0, and (S, S) int64 labels, padded with :data:`VOID`;
        S is ``augmentation.crop``.
    """
    side = augmentation.crop
    ratio = rng.uniform(*augmentation.ratio)
    size = fit_size(labels.shape, augmentation.short * ratio, augmentation.long * ratio)
    image, labels = resize_image(image, size), resize_labels(labels, size)
    y, x = choose_crop(labels, side, augmentation.cat_max_ratio, rng)
    image, labels = image[y : y + side, x : x + side], labels[y : y + side, x : x + side]
    if rng.random() < augmentation.flip:
        image, labels = image[:, ::-1], labels[:, ::-1]
    colours = distort(image.astype(np.float32), rng) if augmentation.photometric else image
    return pad_view(to_pixels(colours), to_labels(labels), (side, side))


def plain_view(image: NDArray[np.uint8], labels: NDArray[np.uint8], short: int, long: int) -> tuple[Tensor, Tensor]:
    """The whole image at the size of :func:`fit_size`: (3, h, w) float32 pixels and (h, w) int64 labels."""
    size = fit_size(labels.shape, short, long)
    return to_pixels(resize_image(image, size)), to_labels(resize_labels(labels, size))


def to_labels(labels: NDArray[np.uint8]) -> Tensor:
    """(H, W) int64 on a tensor of its own."""
    return torch.from_numpy(labels.astype(np.int64))


def pad_view(pixels: Tensor, labels: Tensor, size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Pixels (3, h, w) and labels (h, w) padded at the bottom and the right to ``size`` with 0 and :data:`VOID`."""
    margins = (0, size[1] - labels.shape[1], 0, size[0] - labels.shape[0])
    pad = torch.nn.functional.pad
    return pad(pixels, margins), pad(labels, margins, value=VOID)


def choose_crop(
    labels: NDArray[np.uint8], side: int, cat_max_ratio: float, rng: np.random.Generator
) -> tuple[int, int]:
    """Top-left corner (y, x) of a square in which no category has ``cat_max_ratio`` of the labelled pixels.

    Up to :data:`CROP_TRIES` corners are drawn; the last is taken as it is. Where the image is smaller than the square,
    the corner is 0.
    """
    height, width = labels.shape
    y = x = 0
    for _ in range(CROP_TRIES):
        y = int(rng.integers(max(0, height - side) + 1))
        x = int(rng.integers(max(0, width - side) + 1))
        counts = np.bincount(labels[y : y + side, x : x + side].ravel(), minlength=VOID + 1)[:VOID]
        if counts.max() < cat_max_ratio * counts.sum():
            break
    return y, x


def distort(image: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.float32]:
    """Brightness, contrast, saturation and hue of a (H, W, 3) RGB image in 0..255, each with probability 1/2.

    Brightness moves by up to 32, contrast and saturation are scaled by 0.5 to 1.5, hue turns by up to 36 degrees;
    contrast comes second or last, with equal probability.
    """
    contrast_first = rng.random() < 0.5
    if rng.random() < 0.5:
        image = np.clip(image + np.float32(rng.uniform(-32, 32)), 0, 255)
    if contrast_first:
        image = _contrast(image, rng)
    image = _saturation_and_hue(image, rng)
    return image if contrast_first else _contrast(image, rng)


def _contrast(image: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.float32]:
    if rng.random() < 0.5:
        return image
    return np.clip(image * np.float32(rng.uniform(0.5, 1.5)), 0, 255)


def _saturation_and_hue(image: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.float32]:
    scale = rng.uniform(0.5, 1.5) if rng.random() < 0.5 else 1.0
    turn = rng.uniform(-36, 36) if rng.random() < 0.5 else 0.0
    if scale == 1 and turn == 0:
        return image
    hsv = cv2.cvtColor(np.ascontiguousarray(image) / np.float32(255), cv2.COLOR_RGB2HSV)
    hsv[..., 0] = np.mod(hsv[..., 0] + np.float32(turn), 360)
    hsv[..., 1] = np.minimum(hsv[..., 1] * np.float32(scale), 1)
    return np.clip(cv2.cvtColor(hsv, cv2.COLOR_HSV2RGB) * np.float32(255), 0, 255)
