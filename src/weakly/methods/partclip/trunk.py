"""What PartCLIPSeg and its baseline share: an adapted image, prompts that learn, and CLIPSeg's decoder run on both.

Symbols: B images, D taps, T = 1 + L tokens (class token first) of an h x w grid, K_v vision width, E joint width,
d decoder width, n prompts, S the side of images and masks in pixels.

Departures from ``transformers``' decoder, none of which changes a value (spec partclipseg section 10): taps are adapted
and reduced once per image and not once per prompt, attention never shows its weights, and wide layers run in slices
that the backward pass computes again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from weakly.errors import UserError
from weakly.foundation.clipseg import ClipSeg
from weakly.foundation.clipseg_head import read_maps
from weakly.methods.partclip.feed_forward import feed_forward

BackgroundVector = Literal["learned", "frozen"]
"""The embedding of the background prompt learns, or stays as it was drawn, as in the release (D10)."""

ADAPTER_SHARE = 0.2


class Trunk(NamedTuple):
    """What the decoder says about B images and n prompts, before any head.

    Attributes:
        features: (B, n, L, d) output of the last layer, without the class token.
        last_input: (B, n, T, d) input of the last layer, from which its attention follows.
    """

    features: Tensor
    last_input: Tensor

    def join(self, other: Trunk) -> Trunk:
        """The prompts of both, those of ``other`` last."""
        return Trunk(*(torch.cat(pair, 1) for pair in zip(self, other, strict=True)))


class VisualAdapter(nn.Module):
    """``0.8 a + 0.2 ReLU(W2 ReLU(W1 a))`` of every token, without biases (spec section 1.3).

    Args:
        width: K_v; the hidden layer is a quarter of it.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.down = nn.Linear(width, width // 4, bias=False)
        self.up = nn.Linear(width // 4, width, bias=False)

    def forward(self, tokens: Tensor) -> Tensor:
        """(..., K_v) to the same shape."""
        adapted = functional.relu(self.up(functional.relu(self.down(tokens))))
        return torch.lerp(tokens, adapted.to(tokens.dtype), ADAPTER_SHARE)


class ClipSegStudent(nn.Module):
    """The trainable side of a CLIPSeg: adapter, decoder, the text tower's two tables, and a background prompt.

    Holds no frozen tower. New weights are drawn from torch's global random state.

    Attributes:
        adapter: of the taps.
        decoder: a ``CLIPSegDecoder``: ``reduces``, ``film_mul``, ``film_add``, ``layers`` and the head
            ``transposed_convolution``.
        token_embedding: (V, W) table.
        position_embedding: (context, W) table.
        background: (E,) embedding of the background prompt.
        grid: (h, w) of the taps.
        side: S.

    Args:
        clipseg: its decoder and tables are copied.
        background_vector: see :data:`BackgroundVector`.

    Raises:
        UserError: the decoder is conditioned after its first layer.
    """

    def __init__(self, clipseg: ClipSeg, *, background_vector: BackgroundVector = "learned") -> None:
        super().__init__()
        self.grid = clipseg.grid
        self.side = clipseg.side
        self.adapter = VisualAdapter(clipseg.width)
        self.decoder: Any = clipseg.new_decoder()
        if self.decoder.conditional_layer != 0:
            raise UserError(
                f"CLIPSeg {clipseg.name!r} is conditioned at layer {self.decoder.conditional_layer} of its decoder; "
                "give a checkpoint with conditional_layer 0."
            )
        token, position = clipseg.token_embedding_weights()
        self.token_embedding = nn.Embedding.from_pretrained(token.clone(), freeze=False)
        self.position_embedding = nn.Embedding.from_pretrained(position.clone(), freeze=False)
        drawn = torch.randn(clipseg.joint_width) * clipseg.joint_width**-0.5
        self.background = nn.Parameter(drawn, requires_grad=background_vector == "learned")

    def encode_prompts(self, clipseg: ClipSeg, ids: Tensor) -> Tensor:
        """Tokens to prompts: the frozen text tower over the student's own tables (spec section 1.4).

        Args:
            clipseg: the one this student was made of.
            ids: (n - 1, context) int64 of ``clipseg.tokenize``; on the CPU no GPU is waited for.

        Returns:
            (n, E) float32, the background last; not normalised, differentiable in the tables.
        """
        texts = clipseg.encode_text(ids, self.token_embedding.weight, self.position_embedding.weight)
        return torch.cat([texts, self.background[None]])

    def reduce(self, taps: Tensor) -> Tensor:
        """(B, D, T, K_v) taps, shallowest first, to the (D, B, T, d) inputs of the decoder's layers, deepest first."""
        adapted = self.adapter(taps).flip(1).unbind(1)
        return torch.stack([linear(tap) for linear, tap in zip(self.decoder.reduces, adapted, strict=True)])

    def run(self, reduced: Tensor, embeddings: Tensor) -> Trunk:
        """The decoder on every pair of an image and a prompt (spec section 1.5).

        Under autograd it keeps about ten tensors of B n T d floats per layer; attention weights and feed-forward
        activations, 4 T and 32 times as wide per token, are not kept.

        Args:
            reduced: (D, B, T, d) of :meth:`reduce`.
            embeddings: (n, E).
        """
        decoder = self.decoder
        images, prompts = reduced.shape[1], len(embeddings)
        scale, shift = decoder.film_mul(embeddings)[:, None], decoder.film_add(embeddings)[:, None]
        hidden = scale * reduced[0][:, None] + shift
        for index, layer in enumerate(decoder.layers):
            last_input = hidden if index == 0 else hidden + reduced[index][:, None]
            hidden = decoder_layer(layer, last_input.flatten(0, 1)).unflatten(0, (images, prompts))
        return Trunk(hidden[:, :, 1:], last_input)

    def prompt_logits(self, trunk: Trunk, rows: Tensor | slice = slice(None)) -> Tensor:
        """(B, m, S, S) mask logits of some of the n prompts, by the decoder's own head (spec section 1.6)."""
        return self.masks(self.decoder.transposed_convolution, trunk.features[:, rows])

    def masks(self, head: nn.Module, features: Tensor) -> Tensor:
        """(B, m, L, d) features to (B, m, S, S) logits."""
        maps = read_maps(head, features.flatten(0, 1), self.grid)
        if maps.shape[-1] != self.side:  # the library's refined head has S pixels where a patch has 16, and only there
            maps = functional.interpolate(maps, (self.side, self.side), mode="bilinear", align_corners=False)
        return maps.squeeze(1).unflatten(0, features.shape[:2])


def decoder_layer(layer: Any, tokens: Tensor) -> Tensor:
    """A post-norm ``CLIPSegDecoderLayer`` on (M, T, d) sequences."""
    tokens = layer.layer_norm1(tokens + attend(layer.self_attn, tokens))
    return layer.layer_norm2(tokens + feed_forward(layer.mlp.fc1, layer.mlp.fc2, tokens))


def attend(attention: Any, tokens: Tensor) -> Tensor:
    """A ``CLIPSegAttention`` on (M, T, d) sequences, without holding its weights."""
    query, key, value = (
        split_heads(attention, projection(tokens))
        for projection in (attention.q_proj, attention.k_proj, attention.v_proj)
    )
    mixed = functional.scaled_dot_product_attention(query, key, value, scale=attention.scale)
    return attention.out_proj(mixed.transpose(-3, -2).flatten(-2))


def split_heads(attention: Any, tokens: Tensor) -> Tensor:
    """(..., T, d) to (..., heads, T, d / heads)."""
    return tokens.unflatten(-1, (attention.num_heads, -1)).transpose(-3, -2)


def recomputed(function: Callable[..., Tensor], *inputs: Tensor) -> Tensor:
    """``function(*inputs)`` whose inner activations are not kept for the backward pass but computed again there."""
    if not torch.is_grad_enabled():
        return function(*inputs)
    result: Tensor = checkpoint(function, *inputs, use_reentrant=False, preserve_rng_state=False)
    return result


def in_chunks(logits_of: Callable[[Tensor], Tensor], channels: Tensor, chunk: int) -> Tensor:
    """(B, C, S, S) logits of ``channels``, ``chunk`` of them at a time.

    Besides the result, B chunk S^2 times about ten floats are held: the head is widest just before its end, with
    two floats per pixel and map.

    Args:
        logits_of: (c,) channels to (B, c, S, S).
        channels: (C,) int64.
        chunk: c at most.
    """
    return torch.cat([recomputed(logits_of, part) for part in channels.split(chunk)], 1)


def prompt_texts(*groups: Sequence[str]) -> list[str]:
    """What the text tower reads: the bare words, no template; underscores become spaces (spec section 1.4)."""
    return [text.replace("_", " ") for group in groups for text in group]
