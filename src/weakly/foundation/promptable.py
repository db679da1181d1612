"""The promptable segmenter: the one face of SAM and its relatives that the methods see.

Two frames exist. *Image* coordinates are pixels of the original picture. *Frame* coordinates are pixels of the
square (S, S) input of the model after resizing and padding; a :class:`Frame` converts between them.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional

Pad = Literal["sam", "center_black", "stretch"]
"""How an image comes into the square. ``sam``: as the segmenter's authors do; SAM's normalise, then put zeros at the
bottom and right, SAM 2's and others' stretch. ``center_black``: centre on black, then normalise; for segmenters that
keep the aspect ratio. ``stretch``: both sides to S; what a segmenter is then told has no padding in it."""

PromptKind = Literal["box", "point", "point+box"]

Wanted = Callable[[Tensor], Tensor]
"""(n, 3) predicted IoU of some prompts to the (n, 3) bool masks that are worth making."""

PIXEL_MEAN = (0.485, 0.456, 0.406)
PIXEL_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True, slots=True)
class Frame:
    """Where an image of ``size`` lies inside the (side, side) model input.

    Attributes:
        size: (height, width) of the original image.
        side: S, side of the square input.
        content: (height, width) after resizing the longest side to S, rounded half up; (S, S) if stretched.
        top: rows of padding above the content.
        left: columns of padding left of the content.
    """

    size: tuple[int, int]
    side: int
    content: tuple[int, int]
    top: int = 0
    left: int = 0

    @classmethod
    def fit(cls, size: tuple[int, int], side: int, pad: Pad = "sam") -> Frame:
        """Longest side to ``side``; 375x500 at 1024 gives a content of 768x1024, stretched of 1024x1024."""
        if pad == "stretch":
            return cls(size, side, (side, side))
        scale = side / max(size)
        height, width = (max(1, int(extent * scale + 0.5)) for extent in size)
        if pad == "sam":
            return cls(size, side, (height, width))
        return cls(size, side, (height, width), (side - height) // 2, (side - width) // 2)

    def points_to_frame(self, xy: NDArray[np.floating]) -> NDArray[np.float64]:
        """(..., 2) image x, y to frame x, y: scaled by the *rounded* content size, then shifted. No clipping."""
        scale = np.array([self.content[1] / self.size[1], self.content[0] / self.size[0]])
        return np.asarray(xy, np.float64) * scale + np.array([self.left, self.top])

    def boxes_to_frame(self, xyxy: NDArray[np.floating]) -> NDArray[np.float64]:
        """(N, 4) image boxes to frame boxes."""
        return self.points_to_frame(np.asarray(xyxy).reshape(-1, 2, 2)).reshape(-1, 4)

    def points_to_image(self, xy: NDArray[np.floating]) -> NDArray[np.float64]:
        """(..., 2) frame x, y to image x, y: the inverse of :meth:`points_to_frame`."""
        scale = np.array([self.content[1] / self.size[1], self.content[0] / self.size[0]])
        return (np.asarray(xy, np.float64) - np.array([self.left, self.top])) / scale

    def resize(self, image: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """Resize (H, W[, 3]) uint8 to the content size with PIL's anti-aliased bilinear filter."""
        height, width = self.content
        return np.asarray(Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR))

    def logits_to_image(self, logits: Tensor) -> Tensor:
        """(N, h, w) mask logits over the whole frame to (N, H, W) at the original size.

        Upsamples to the frame, cuts the padding away, then resizes: SAM's own order, bilinear, no aligned corners.
        All of it is linear and separable, hence one matrix per axis: masks are never as large as the frame.
        """
        rows = self._resizing(logits.shape[-2], 0, self.top, logits.device)
        columns = self._resizing(logits.shape[-1], 1, self.left, logits.device)
        with torch.autocast(logits.device.type, enabled=False):
            return rows.T @ (logits.float() @ columns)

    def _resizing(self, pixels: int, axis: int, first: int, device: torch.device) -> Tensor:
        """(h, H) or (w, W): what every decoder pixel along an axis gives to every pixel of the image."""
        each = torch.eye(pixels, device=device)[None]
        inside = functional.interpolate(each, self.side, mode="linear")[..., first : first + self.content[axis]]
        return functional.interpolate(inside, self.size[axis], mode="linear")[0]


class PromptableSegmenter(nn.Module, ABC):
    """A frozen model that encodes an image once and answers prompts about it.

    Everything is fp32 at the interface; every parameter has ``requires_grad=False`` and the module stays in eval
    mode, also under ``train()``. Symbols: B images, N prompts over all images, S input side, C embedding channels,
    (h, w) embedding grid, T prompt tokens, D token width.

    Attributes:
        name: what the user called it, e.g. ``"bundled"`` or ``"facebook/sam-vit-base"``.
        side: S.
        pad: how images come into the square.
        embedding_shape: (C, h, w) of one image embedding, all that :meth:`decode` needs to know of the image.
        token_width: D.
        token_counts: T by kind of prompt: the tokens that :meth:`box_tokens` and :meth:`point_tokens` make and a
            student learns. Constant tokens that :meth:`decode` appends by itself do not count.
        pixel_mean: of the red, green and blue channel in [0, 1], subtracted from images.
        pixel_std: by which they are then divided.
    """

    name: str
    side: int
    pad: Pad
    embedding_shape: tuple[int, int, int]
    token_width: int
    token_counts: ClassVar[Mapping[PromptKind, int]] = {"box": 2, "point": 2, "point+box": 3}
    pixel_mean: ClassVar[tuple[float, float, float]] = PIXEL_MEAN
    pixel_std: ClassVar[tuple[float, float, float]] = PIXEL_STD

    @property
    def student_channels(self) -> int:
        """Channels that a student looks at, the first of an embedding; any others are for the decoder alone."""
        return self.embedding_shape[0]

    def freeze(self) -> None:
        """No gradients, eval mode, for good."""
        self.requires_grad_(False)
        super().train(False)

    def train(self, mode: bool = True) -> PromptableSegmenter:  # noqa: ARG002 - frozen means frozen
        """Ignored: a frozen model has no training mode."""
        return self

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.parameters()).device

    def frame(self, size: tuple[int, int]) -> Frame:
        """The frame of an image of ``size`` (height, width)."""
        return Frame.fit(size, self.side, self.pad)

    def preprocess(self, images: Sequence[NDArray[np.uint8]]) -> Tensor:
        """(H, W, 3) uint8 RGB images of any sizes to one (B, 3, S, S) float32 input on the CPU."""
        mean = torch.tensor(self.pixel_mean).view(3, 1, 1)
        std = torch.tensor(self.pixel_std).view(3, 1, 1)
        batch = torch.zeros(len(images), 3, self.side, self.side)
        if self.pad == "center_black":
            batch += -mean / std
        for row, image in zip(batch, images, strict=True):
            frame = self.frame(image.shape[:2])
            height, width = frame.content
            pixels = torch.from_numpy(frame.resize(image).copy()).permute(2, 0, 1).float() / 255
            row[:, frame.top : frame.top + height, frame.left : frame.left + width] = (pixels - mean) / std
        return batch

    @property
    @abstractmethod
    def fingerprint(self) -> str:
        """Hex SHA-256 over the frozen weights and the preprocessing: the identity of every feature it makes."""

    @abstractmethod
    def encode(self, pixels: Tensor) -> Tensor:
        """(B, 3, S, S) float32 to embeddings (B, C, h, w) float32."""

    @abstractmethod
    def box_tokens(self, boxes: Tensor) -> Tensor:
        """(N, 4) frame boxes ``x0, y0, x1, y1`` to (N, 2, D) tokens."""

    @abstractmethod
    def point_tokens(self, points: Tensor, boxes: Tensor | None = None) -> Tensor:
        """(N, 2) foreground frame points to (N, T, D) tokens: the point and, where T is 2, the padding token.

        With ``boxes`` (N, 4) also given: (N, 3, D), point and two corners, no padding token.
        """

    @abstractmethod
    def decode(
        self, embeddings: Tensor, tokens: Tensor, image_index: Tensor, *, multimask: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Masks for a ragged batch of prompts.

        Args:
            embeddings: (B, C, h, w) of :meth:`encode`.
            tokens: (N, T, D), from :meth:`box_tokens`, :meth:`point_tokens` or a student.
            image_index: (N,) int64, the embedding each prompt belongs to.
            multimask: three masks per prompt (whole, part, sub-part) instead of one.

        Returns:
            Mask logits (N, K, 4h, 4w) over the whole frame and predicted IoU (N, K); K = 3 with ``multimask``, else 1.
            Differentiable in ``tokens`` and ``embeddings``.
        """

    def no_masks(self, tokens: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """What :meth:`decode` returns for no prompts: (0, count, 4h, 4w) and (0, count)."""
        _, height, width = self.embedding_shape
        return tokens.new_zeros(0, count, 4 * height, 4 * width), tokens.new_zeros(0, count)

    @torch.no_grad()
    def decode_wanted(self, embedding: Tensor, tokens: Tensor, wanted: Wanted) -> tuple[Tensor, Tensor, Tensor]:
        """Masks for many prompts on one image, of which few pass a test of predicted IoU; without gradients.

        Here all masks are made, and the others dropped. A segmenter that knows predicted IoU before it has masks saves
        the rest.

        Args:
            embedding: (1, C, h, w) of :meth:`encode`.
            tokens: (N, T, D), as for :meth:`decode`.
            wanted: called with the predicted IoU of some prompts at a time; says which masks to make.

        Returns:
            (R,) int64 ascending indices of the wanted along the 3 N masks, their logits (R, 4h, 4w), and the predicted
            IoU (N, 3) of all masks.
        """
        image_index = torch.zeros(len(tokens), dtype=torch.int64, device=tokens.device)
        logits, iou = self.decode(embedding, tokens, image_index, multimask=True)
        chosen = wanted(iou).flatten().nonzero()[:, 0]
        return chosen, logits.flatten(0, 1)[chosen], iou


def decode_chunks(
    decode: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]], tokens: Tensor, image_index: Tensor, chunk: int
) -> tuple[Tensor, Tensor]:
    """``decode(tokens, image_index)`` on ``chunk`` of N > 0 prompts at a time: logits (N, K, 4h, 4w), IoU (N, K)."""
    parts = zip(tokens.split(chunk), image_index.split(chunk), strict=True)
    masks, scores = zip(*(decode(part, index) for part, index in parts), strict=True)
    return torch.cat(masks), torch.cat(scores)


def weights_fingerprint(preprocessing: str, model: nn.Module) -> str:
    """Hex SHA-256 over ``preprocessing`` and every named weight (bytes on the CPU)."""
    digest = hashlib.sha256(preprocessing.encode())
    for key, value in sorted(model.state_dict().items()):
        digest.update(key.encode())
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
