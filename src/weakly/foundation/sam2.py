"""SAM 2 (its image part) and the tracker of SAM 3 behind :class:`~weakly.foundation.promptable.PromptableSegmenter`.

Both are one architecture but for the image encoder. Their mask decoder needs two finer maps beside the embedding:
C / 4 channels on twice the grid and C / 8 on four times. These are packed into further channels of the embedding, all
pixels of a cell one after another (``pixel_unshuffle``: only an order, nothing is lost), so that one tensor is all
there is to store: C + C + 2 C = 4 C channels, of which a student looks at the first C. With C = 256 on SAM 2's
64 x 64 grid 8 MiB in half precision, on SAM 3's 72 x 72 grid 10.1 MiB.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn import functional
from transformers import Sam2Model, Sam3TrackerModel

from weakly.foundation.promptable import PromptKind, decode_chunks
from weakly.foundation.sam_family import SamFamilySegmenter


class Sam2Segmenter(SamFamilySegmenter):
    """A frozen ``Sam2Model``. It stretches images to its square.

    Every prompt ends in the constant padding token, which :meth:`decode` appends. One mask is the first output's, or,
    where that one is unstable, the best of the three others, as the model is configured (``dynamic_multimask_*``).

    Args:
        model: with as many feature levels as SAM 2's.
        name: what the user called it.
        chunk: prompts decoded at once. One at SAM 2's own size holds what SAM's does, 40 MiB, and the finer maps, 12
            MiB: 32 prompts stay under 2 GiB.
    """

    family = "sam2"
    maps = 4
    token_counts: ClassVar[Mapping[PromptKind, int]] = {"box": 2, "point": 1, "point+box": 3}

    def __init__(self, model: Sam2Model | Sam3TrackerModel, name: str, chunk: int = 32) -> None:
        super().__init__(model, name, "stretch", chunk)

    @torch.no_grad()
    def encode(self, pixels: Tensor) -> Tensor:
        """(B, 3, S, S) float32 to (B, 4 C, h, w): the embedding, then the maps on 2h x 2w and on 4h x 4w, packed."""
        finest, finer, embedding = self.model.vision_encoder(pixels.to(self.device)).fpn_hidden_states[:3]
        embedding = embedding + self.model.no_memory_embedding.view(1, -1, 1, 1)  # an image has no past frames
        finer = functional.pixel_unshuffle(self.model.mask_decoder.conv_s1(finer), 2)
        finest = functional.pixel_unshuffle(self.model.mask_decoder.conv_s0(finest), 4)
        return torch.cat([embedding, finer, finest], 1).float()

    def decode(
        self, embeddings: Tensor, tokens: Tensor, image_index: Tensor, *, multimask: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Mask logits (N, K, 4h, 4w) and predicted IoU (N, K) of a ragged batch of prompts, ``chunk`` at a time."""
        if len(tokens) == 0:
            return self.no_masks(tokens, 3 if multimask else 1)
        width = self.token_width
        image, finer, finest = embeddings.split([width, width, 2 * width], 1)
        finer, finest = functional.pixel_shuffle(finer, 2), functional.pixel_shuffle(finest, 4)
        position = self.model.get_image_wide_positional_embeddings()
        encoder = self.model.prompt_encoder
        dense, padding = encoder.no_mask_embed.weight.view(1, -1, 1, 1), encoder.not_a_point_embed.weight

        def decode(part: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
            complete = torch.cat([part, padding.expand(len(part), 1, -1)], 1)
            logits, iou, _, _ = self.model.mask_decoder(
                image_embeddings=image[index],
                image_positional_embeddings=position.expand(len(part), -1, -1, -1),
                sparse_prompt_embeddings=complete[:, None],
                dense_prompt_embeddings=dense,
                multimask_output=multimask,
                high_resolution_features=[finest[index], finer[index]],
            )
            return logits[:, 0], iou[:, 0]

        return decode_chunks(decode, tokens, image_index, self.chunk)


class Sam3Segmenter(Sam2Segmenter):
    """A frozen ``Sam3TrackerModel``: what of SAM 3 answers boxes and points. Normalisation differs from SAM 2's.

    SAM 3's encoder has a fourth, coarser map, which the tracker does not use. The library (5.23) adds the embedding
    that says "no past frames" to that one, where it is lost; here it comes to the third, as SAM's authors do.
    """

    family = "sam3"
    pixel_mean = (0.5, 0.5, 0.5)
    pixel_std = (0.5, 0.5, 0.5)
