"""SAM-HQ (Ke et al. 2023) behind :class:`~weakly.foundation.promptable.PromptableSegmenter`.

SAM-HQ adds to SAM one output token and a fine map of the image, on which that token's mask is drawn; its logits are
added to SAM's. The fine map is made of the embedding and of the encoder's first global layer: C / 8 channels on four
times the grid, the same for all prompts. It is therefore made once, in :meth:`SamHqSegmenter.encode`, and packed into
further channels of the embedding, all pixels of a cell one after another (``pixel_unshuffle``, nothing is lost):
C + 2 C = 3 C channels, of which a student looks at the first C. With C = 256 on a 64 x 64 grid that is 6 MiB in half
precision for every encoder; the encoder layer itself, kept instead, would be 8 (ViT-B) to 12 MiB (ViT-H).
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional
from transformers import SamHQModel

from weakly.foundation.promptable import Pad, decode_chunks
from weakly.foundation.sam_family import SamFamilySegmenter


class SamHqSegmenter(SamFamilySegmenter):
    """A frozen ``SamHQModel``.

    Prompts, frame and predicted IoU are SAM's, and so is the order of the three masks; the library sorts them by IoU.
    Masks are drawn on the pixels that the two-way transformer returns, as SAM-HQ's authors do; the library (5.23) draws
    them on those it was given, rows and columns swapped.

    Args:
        model: any ``SamHQModel``.
        name: what the user called it.
        pad: how images are padded to the square.
        chunk: prompts decoded at once. One at SAM's own size holds about 45 MiB without gradients: 32 stay under 2 GiB.
    """

    family = "sam_hq"
    maps = 3

    def __init__(self, model: SamHQModel, name: str, pad: Pad = "sam", chunk: int = 32) -> None:
        super().__init__(model, name, pad, chunk)

    @torch.no_grad()
    def encode(self, pixels: Tensor) -> Tensor:
        """(B, 3, S, S) float32 to (B, 3 C, h, w): the embedding, then the fine map on 4h x 4w, packed."""
        seen = self.model.vision_encoder(pixels.to(self.device))
        embedding, early = seen.last_hidden_state, seen.intermediate_embeddings[0].permute(0, 3, 1, 2)
        decoder = self.model.mask_decoder
        fine = decoder.encoder_conv2(decoder.activation(decoder.encoder_norm(decoder.encoder_conv1(embedding))))
        compressed = decoder.activation(decoder.compress_vit_norm(decoder.compress_vit_conv1(early)))
        fine = fine + decoder.compress_vit_conv2(compressed)
        return torch.cat([embedding, functional.pixel_unshuffle(fine, 4)], 1).float()

    def decode(
        self, embeddings: Tensor, tokens: Tensor, image_index: Tensor, *, multimask: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Mask logits (N, K, 4h, 4w), SAM's plus those of the HQ token, and SAM's predicted IoU (N, K)."""
        outputs = slice(1, 4) if multimask else slice(0, 1)
        if len(tokens) == 0:
            return self.no_masks(tokens, 3 if multimask else 1)
        decoder = self.model.mask_decoder
        image, fine = embeddings.split([self.token_width, 2 * self.token_width], 1)
        image = image + self.model.prompt_encoder.no_mask_embed.weight.view(1, -1, 1, 1)
        fine = functional.pixel_shuffle(fine, 4)
        position = self.model.get_image_wide_positional_embeddings()
        own = torch.cat([decoder.iou_token.weight, decoder.mask_tokens.weight, decoder.hq_token.weight])

        def decode(part: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
            answers, pixels = decoder.transformer(
                point_embeddings=torch.cat([own.expand(len(part), -1, -1), part], 1)[:, None],
                image_embeddings=image[index],
                image_positional_embeddings=position.expand(len(part), -1, -1, -1),
                attention_similarity=None,
            )
            answers = answers[:, 0]
            pixels = pixels[:, 0].mT.unflatten(2, self.embedding_shape[1:])
            upscaled = decoder.activation(decoder.upscale_layer_norm(decoder.upscale_conv1(pixels)))
            upscaled = decoder.activation(decoder.upscale_conv2(upscaled))
            sharper = decoder.mask_conv2(decoder.activation(decoder.mask_norm(decoder.mask_conv1(upscaled))))
            mlps = list(decoder.output_hypernetworks_mlps)
            filters = torch.stack([mlps[at](answers[:, 1 + at]) for at in range(len(mlps))[outputs]], 1)
            logits = torch.einsum("nkc,nchw->nkhw", filters, upscaled)
            sharp = decoder.hq_mask_mlp(answers[:, 1 + len(mlps)])
            logits = logits + torch.einsum("nc,nchw->nhw", sharp, sharper + fine[index])[:, None]
            return logits, decoder.iou_prediction_head(answers[:, 0])[:, outputs]

        return decode_chunks(decode, tokens, image_index, self.chunk)
