"""EfficientSAM (Xiong et al. 2023) behind :class:`~weakly.foundation.promptable.PromptableSegmenter`."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

from weakly.errors import UserError
from weakly.foundation.checkpoint_files import fill
from weakly.foundation.efficient_sam_model import EfficientSam, EfficientSamConfig, resized_positions
from weakly.foundation.promptable import PromptableSegmenter, PromptKind, decode_chunks, weights_fingerprint

PROMPT_TOKENS = 6
"""What the decoder always gets; tokens that a prompt does not fill are constant padding."""

POSITIONS = "image_encoder.pos_embed"


class EfficientSamSegmenter(PromptableSegmenter):
    """A frozen EfficientSAM. It stretches images to its square.

    A prompt's one to three tokens are completed by constant padding to six. The published code always makes three masks
    and takes the one with the highest predicted IoU; so does :meth:`decode` where one is asked for.

    Args:
        model: the network.
        config: its sizes.
        name: what the user called it.
        chunk: prompts decoded at once. One at 1024 pixels holds about 40 MiB of activations.
    """

    token_counts: ClassVar[Mapping[PromptKind, int]] = {"box": 2, "point": 1, "point+box": 3}

    def __init__(self, model: EfficientSam, config: EfficientSamConfig, name: str, chunk: int = 64) -> None:
        super().__init__()
        self.model = model.float()
        self.name = name
        self.pad = "stretch"
        self.chunk = chunk
        self.side = config.image_size
        self.token_width = config.width
        self.embedding_shape = (config.width, config.grid, config.grid)
        self.freeze()

    @cached_property
    def fingerprint(self) -> str:
        """Hex SHA-256 over every named weight (fp32 bytes), the family, the input side and the padding."""
        return weights_fingerprint(f"efficient_sam|{self.side}|{self.pad}", self.model)

    @torch.no_grad()
    def encode(self, pixels: Tensor) -> Tensor:
        """(B, 3, S, S) float32 to embeddings (B, C, h, w)."""
        embedding: Tensor = self.model.image_encoder(pixels.to(self.device))
        return embedding.contiguous()

    @torch.no_grad()
    def box_tokens(self, boxes: Tensor) -> Tensor:
        """(N, 4) frame boxes to (N, 2, D): one token per corner."""
        return self.model.prompt_encoder.boxes(boxes.to(self.device, torch.float32))

    @torch.no_grad()
    def point_tokens(self, points: Tensor, boxes: Tensor | None = None) -> Tensor:
        """(N, 2) foreground points to (N, 1, D); with boxes (N, 3, D), point and two corners."""
        tokens = self.model.prompt_encoder.points(points.to(self.device, torch.float32))
        return tokens if boxes is None else torch.cat([tokens, self.box_tokens(boxes)], 1)

    def decode(
        self, embeddings: Tensor, tokens: Tensor, image_index: Tensor, *, multimask: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Mask logits (N, K, 4h, 4w) and predicted IoU (N, K) of a ragged batch of prompts, ``chunk`` at a time."""
        if len(tokens) == 0:
            return self.no_masks(tokens, 3 if multimask else 1)
        position, padding = self.model.prompt_encoder.pixels(), self.model.prompt_encoder.padding()

        def decode(part: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
            complete = torch.cat([part, padding.expand(len(part), PROMPT_TOKENS - part.shape[1], -1)], 1)
            filters, fine, iou = self.model.mask_decoder(embeddings[index], complete, position)
            if not multimask:
                best = iou.argmax(1, keepdim=True)
                iou, filters = iou.gather(1, best), filters.take_along_dim(best[..., None], 1)
            return torch.einsum("nkc,nchw->nkhw", filters, fine), iou

        return decode_chunks(decode, tokens, image_index, self.chunk)


def efficient_sam_from_state(
    state: Mapping[str, Tensor], path: Path, config: EfficientSamConfig | None = None
) -> tuple[EfficientSam, EfficientSamConfig]:
    """The model of a published ``efficient_sam_vit{t,s}.pt`` and its sizes.

    Args:
        state: weights under the published names.
        path: where they come from, for messages.
        config: 1024 pixels, with the ViT as wide and as deep as the weights say, if absent.

    Raises:
        UserError: a parameter is missing, unknown or of another shape.
    """
    positions = state.get(POSITIONS)
    if positions is None or positions.ndim != 3:
        raise UserError(f"{path} lacks parameter {POSITIONS}; give an unmodified EfficientSAM checkpoint.")
    if config is None:
        depth = len({key.split(".")[2] for key in state if key.startswith("image_encoder.blocks.")})
        config = EfficientSamConfig(vit_width=positions.shape[2], depth=depth)
    with torch.device("meta"):
        model = EfficientSam(config)
    fill(model, {**state, POSITIONS: resized_positions(positions, config.grid)}, path, "EfficientSAM")
    return model, config
