"""SAM's mask decoder for many prompts on one image, where most masks are not wanted.

The weights and the answers are those of ``transformers.SamMaskDecoder``, up to rounding; the work is less:

- The first block's tokens look at an image that no prompt has touched: one pass over it serves all prompts.
- A prompt has T = 7 tokens, an image L = h w = 4,096 pixels at SAM's own size. Instead of projecting the pixels to
  keys, values or queries, C to C / 2 channels each, the projections are folded into the tokens:
  ``(W_q t) (W_k x) = (W_k^T W_q t) x``. H heads make H T = 56 folded tokens, fewer than C / 2 = 128 channels.
- Predicted IoU is known before the masks are: pixels are upscaled for the prompts of wanted masks alone.
- A transposed 2 x 2 convolution with stride 2 is a linear layer per pixel; channels stay last.
- Prompts go through in groups whose pixels fit into a processor's cache.

Symbols: N prompts, n of them in a group, T tokens (IoU, four masks, the prompt's), L pixels, C channels, H heads.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional
from transformers.models.sam.modeling_sam import SamAttention, SamMaskDecoder, SamTwoWayAttentionBlock

from weakly.foundation.promptable import Wanted

CACHE_BYTES = 4 << 20
"""Pixels of the prompts that a CPU decodes at once."""

UPSCALED_PARTS = 8
"""Parts of the image that a CPU upscales one after another."""


@torch.no_grad()
def decode_wanted(
    decoder: SamMaskDecoder, image: Tensor, position: Tensor, prompts: Tensor, wanted: Wanted, chunk: int = 64
) -> tuple[Tensor, Tensor, Tensor]:
    """Three masks per prompt, of which only the wanted are made.

    Args:
        decoder: its weights.
        image: (C, h, w) embedding, the dense prompt added.
        position: (C, h, w) positional encoding of the embedding's pixels.
        prompts: (N, t, C) tokens, N > 0.
        wanted: which masks to make.
        chunk: prompts whose pixels are held at once, at most.

    Returns:
        (R,) int64 ascending indices of the wanted masks along 3 N, their logits (R, 4h, 4w), and the predicted IoU
        (N, 3) of all.
    """
    grid = (image.shape[1], image.shape[2])
    pixels, position = image.flatten(1).T.contiguous(), position.flatten(1).T.contiguous()
    outputs = torch.cat([decoder.iou_token.weight, decoder.mask_tokens.weight])
    prompts = torch.cat([outputs.expand(len(prompts), -1, -1), prompts], 1)
    tokens = _look_at_shared(decoder.transformer.layers[0], prompts, pixels, position)
    group = chunk if pixels.is_cuda else min(chunk, max(1, CACHE_BYTES // (pixels.numel() * pixels.element_size())))
    chosen, logits, iou = [], [], []
    for part, origin in zip(tokens.split(group), prompts.split(group), strict=True):
        answers, seen = _two_ways(decoder, part, origin, pixels, position)
        iou.append(decoder.iou_prediction_head(answers[:, 0])[:, 1:])
        chosen.append(wanted(iou[-1]))
        rows = chosen[-1].any(1)
        masks = _mask_logits(decoder, answers[rows], seen[rows], grid)
        logits.append(masks[chosen[-1][rows]])
    return torch.cat(chosen).flatten().nonzero()[:, 0], torch.cat(logits), torch.cat(iou)


def _look_at_shared(block: SamTwoWayAttentionBlock, prompts: Tensor, pixels: Tensor, position: Tensor) -> Tensor:
    """The token side of the first block: (N, T, C), all prompts in one pass over the same (L, C) pixels."""
    tokens = block.layer_norm1(block.self_attn(*[prompts[None]] * 3)[0][0])
    query = (tokens + prompts).flatten(0, 1)[None, None]  # tokens do not see one another here: one prompt's, as it were
    found = block.cross_attn_token_to_image(query, (pixels + position)[None, None], pixels[None, None])[0]
    tokens = block.layer_norm2(tokens + found.view_as(tokens))
    answer: Tensor = block.layer_norm3(tokens + block.mlp(tokens))
    return answer


def _two_ways(
    decoder: SamMaskDecoder, tokens: Tensor, prompts: Tensor, pixels: Tensor, position: Tensor
) -> tuple[Tensor, Tensor]:
    """The rest of the two-way transformer.

    Args:
        decoder: its weights.
        tokens: (n, T, C) of :func:`_look_at_shared`.
        prompts: (n, T, C), what is added to the tokens in every attention.
        pixels: (L, C) of the image.
        position: (L, C), what is added to the pixels in every attention.

    Returns:
        The tokens (n, T, C) and the pixels (n, L, C) that belong to each prompt.
    """
    transformer = decoder.transformer
    first, *later = transformer.layers
    placed = pixels + position
    pixels = first.layer_norm4(_look_at_tokens(first.cross_attn_image_to_token, pixels, placed, tokens, prompts))
    for block in later:
        query = tokens + prompts
        tokens = block.layer_norm1(tokens + block.self_attn(query[None], query[None], tokens[None])[0][0])
        placed = pixels + position
        found = _look_at_pixels(block.cross_attn_token_to_image, tokens + prompts, placed, pixels)
        tokens = block.layer_norm2(tokens + found)
        tokens = block.layer_norm3(tokens + block.mlp(tokens))
        pixels = block.layer_norm4(_look_at_tokens(block.cross_attn_image_to_token, pixels, placed, tokens, prompts))
    found = _look_at_pixels(transformer.final_attn_token_to_image, tokens + prompts, pixels + position, pixels)
    return transformer.layer_norm_final_attn(tokens + found), pixels


def _look_at_pixels(attention: SamAttention, query: Tensor, placed: Tensor, pixels: Tensor) -> Tensor:
    """(n, T, C): what tokens (n, T, C) gather from pixels (n, L, C), keys being the ``placed`` pixels."""
    heads = attention.num_attention_heads
    folded = _fold(_by_head(attention.q_proj(query), heads), attention.k_proj.weight) * attention.scaling
    # The bias of the keys adds the same to all pixels, which no softmax sees.
    weights = (folded @ placed.mT).softmax(-1)
    gathered = (weights @ pixels).unflatten(1, (heads, -1))
    values = torch.einsum("nhtc,hdc->nthd", gathered, attention.v_proj.weight.unflatten(0, (heads, -1)))
    answer: Tensor = attention.out_proj(values.flatten(2) + attention.v_proj.bias)
    return answer


def _look_at_tokens(attention: SamAttention, pixels: Tensor, placed: Tensor, tokens: Tensor, prompts: Tensor) -> Tensor:
    """(n, L, C): pixels plus what they gather from tokens (n, T, C); pixels are (n, L, C), or (L, C) shared by all."""
    heads = attention.num_attention_heads
    keys = _by_head(attention.k_proj(tokens + prompts), heads) * attention.scaling
    bias = keys @ attention.q_proj.bias.view(heads, -1, 1)
    scores = _fold(keys, attention.q_proj.weight) @ placed.mT + bias.flatten(1, 2)
    weights = scores.unflatten(1, (heads, -1)).softmax(2).flatten(1, 2)
    values = _fold(_by_head(attention.v_proj(tokens), heads), attention.out_proj.weight.T)
    values = values + attention.out_proj.bias / heads  # the weights of every head add up to one
    return torch.baddbmm(pixels.expand(len(tokens), -1, -1), weights.mT, values)


def _by_head(projected: Tensor, heads: int) -> Tensor:
    """(n, T, H d) to (n, H, T, d)."""
    return projected.unflatten(-1, (heads, -1)).transpose(1, 2)


def _fold(tokens: Tensor, weight: Tensor) -> Tensor:
    """(n, H, T, d) tokens times their head's rows of an (H d, C) weight: (n, H T, C)."""
    return torch.einsum("nhtd,hdc->nhtc", tokens, weight.unflatten(0, (tokens.shape[1], -1))).flatten(1, 2)


def _mask_logits(decoder: SamMaskDecoder, tokens: Tensor, pixels: Tensor, grid: tuple[int, int]) -> Tensor:
    """(n, 3, 4h, 4w) logits of the three masks, from tokens (n, T, C) and pixels (n, L, C)."""
    mlps = list(decoder.output_hypernetworks_mlps)[1:]
    filters = torch.stack([mlp(tokens[:, 2 + index]) for index, mlp in enumerate(mlps)], 2)
    # Upscaled pixels take several times the memory: a part of the image at a time stays in the cache.
    parts = pixels.chunk(1 if pixels.is_cuda else UPSCALED_PARTS, 1)
    logits = torch.cat([_upscaled(decoder, part) @ filters for part in parts], 1)
    fine = logits.view(len(tokens), *grid, 2, 2, 2, 2, len(mlps)).permute(0, 7, 1, 3, 5, 2, 4, 6)
    return fine.reshape(len(tokens), len(mlps), 4 * grid[0], 4 * grid[1])


def _upscaled(decoder: SamMaskDecoder, pixels: Tensor) -> Tensor:
    """(n, L, C) pixels to the 4 x 4 finer ones of each, as 2 x 2 times 2 x 2: (n, 16 L, C / 8)."""
    norm = decoder.upscale_layer_norm
    fine = _doubled(decoder.upscale_conv1, pixels)
    fine = functional.layer_norm(fine, fine.shape[-1:], norm.weight, norm.bias, norm.eps)
    return decoder.activation(_doubled(decoder.upscale_conv2, decoder.activation(fine))).flatten(1, 3)


def _doubled(conv: nn.ConvTranspose2d, pixels: Tensor) -> Tensor:
    """(n, ..., C) pixels to the 2 x 2 finer ones of each, row by row: (n, ..., 4, C')."""
    weight = conv.weight.permute(2, 3, 1, 0).flatten(0, 2)
    bias = None if conv.bias is None else conv.bias.repeat(4)
    return functional.linear(pixels, weight, bias).unflatten(-1, (4, -1))
