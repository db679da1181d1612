"""What SAM, SAM-HQ, SAM 2 and SAM 3's tracker share in the ``transformers`` library: prompts, sizes and identity."""

from __future__ import annotations

from functools import cached_property
from typing import Any, ClassVar

import torch
from torch import Tensor

from weakly.foundation.promptable import Pad, PromptableSegmenter, PromptKind, weights_fingerprint


class SamFamilySegmenter(PromptableSegmenter):
    """A frozen model with a ``prompt_encoder`` like ``SamModel``'s; :meth:`encode` and :meth:`decode` are to be added.

    An embedding has ``maps`` times as many channels as a token is wide: C for the embedding proper, which is what a
    student looks at, and maybe more for the decoder.

    Args:
        model: of the library, on the CPU or elsewhere.
        name: what the user called it.
        pad: how images come into the square.
        chunk: prompts decoded at once.
    """

    family: ClassVar[str]
    maps: ClassVar[int] = 1

    def __init__(self, model: Any, name: str, pad: Pad, chunk: int) -> None:
        super().__init__()
        self.model = model.float()
        self.name = name
        self.pad = pad
        self.chunk = chunk
        prompt = model.config.prompt_encoder_config
        grid = prompt.image_size // prompt.patch_size
        self.side = int(prompt.image_size)
        self.token_width = int(prompt.hidden_size)
        self.embedding_shape = (self.maps * self.token_width, grid, grid)
        self.freeze()

    @property
    def student_channels(self) -> int:
        """The embedding proper, as many channels as a token is wide."""
        return self.token_width

    @cached_property
    def fingerprint(self) -> str:
        """Hex SHA-256 over every named weight (fp32 bytes), the family, the input side and the padding."""
        return weights_fingerprint(f"{self.family}|{self.side}|{self.pad}", self.model)

    def box_tokens(self, boxes: Tensor) -> Tensor:
        """(N, 4) frame boxes to (N, 2, D): one token per corner, ``PE(corner) + L2`` and ``+ L3``."""
        return self._tokens("box", None, boxes)

    def point_tokens(self, points: Tensor, boxes: Tensor | None = None) -> Tensor:
        """(N, 2) foreground points to (N, T, D), ``PE(point) + L1`` first; with boxes (N, 3, D)."""
        return self._tokens("point" if boxes is None else "point+box", points, boxes)

    @torch.no_grad()
    def _tokens(self, kind: PromptKind, points: Tensor | None, boxes: Tensor | None) -> Tensor:
        """Tokens (N, T, D) of the model's own prompt encoder, less those after the first T, which are constant."""
        count = self.token_counts[kind]
        asked = boxes if points is None else points
        if asked is None or len(asked) == 0:
            return torch.zeros(0, count, self.token_width, device=self.device)
        xy = labels = corners = None
        if points is not None:
            xy = points.to(self.device, torch.float32)[:, None, None]
            labels = torch.ones(xy.shape[:3], dtype=torch.int64, device=self.device)
        if boxes is not None:
            corners = boxes.to(self.device, torch.float32)[:, None]
        sparse, _ = self.model.prompt_encoder(xy, labels, corners, None)
        tokens: Tensor = sparse[:, 0, :count]
        return tokens
