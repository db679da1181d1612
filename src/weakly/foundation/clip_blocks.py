"""CLIP's vision blocks in their parts: the attention by head, with its weights or without them, and the rest.

Symbols: B images of T = 1 + L tokens, the class token first, K channels, H heads of d = K / H channels.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor
from torch.nn import functional


class PatchAttention(NamedTuple):
    """What the patches see in one block.

    Attributes:
        normed: (B, T, K), the input of the attention.
        query: (B, H, L, d); nobody asks what the class token sees.
        key: (B, H, T, d).
        value: (B, H, T, d).
        weights: (B, H, L, T), rows sum to one.
        seen: (B, H, L, d), the values by these weights.
    """

    normed: Tensor
    query: Tensor
    key: Tensor
    value: Tensor
    weights: Tensor
    seen: Tensor


def patch_attention(attention: Any, normed: Tensor) -> PatchAttention:
    """What the patches see in the attention of a block; (B, T, K) is its input."""
    query = by_head(attention, attention.q_proj(normed[:, 1:]))
    key, value = (by_head(attention, layer(normed)) for layer in (attention.k_proj, attention.v_proj))
    weights = (attention.scale * query @ key.mT).softmax(-1)
    return PatchAttention(normed, query, key, value, weights, weights @ value)


def attend(attention: Any, normed: Tensor) -> tuple[Tensor, Tensor]:
    """(B, T, K) input to the output of the attention of a block, (B, T, K), and its weights, (B, H, T, T).

    Differentiable twice and forward too, which fused attention is not.
    """
    query, key, value = _heads(attention, normed)
    weights = (attention.scale * query @ key.mT).softmax(-1)
    return attention.out_proj((weights @ value).transpose(1, 2).flatten(2)), weights


def whole_block(block: Any, hidden: Tensor) -> Tensor:
    """(B, T, K) to the same shape, without holding the weights of the attention."""
    attention = block.self_attn
    query, key, value = _heads(attention, block.layer_norm1(hidden))
    seen = functional.scaled_dot_product_attention(query, key, value, scale=attention.scale)
    return feed_forward(block, hidden + attention.out_proj(seen.transpose(1, 2).flatten(2)))


def feed_forward(block: Any, hidden: Tensor) -> Tensor:
    """The second half of a block: (B, T, K) to the same shape, token by token."""
    out: Tensor = hidden + block.mlp(block.layer_norm2(hidden))
    return out


def by_head(attention: Any, states: Tensor) -> Tensor:
    """(..., T, K) to (..., H, T, d)."""
    return states.unflatten(-1, (attention.num_heads, -1)).transpose(-3, -2)


def _heads(attention: Any, normed: Tensor) -> list[Tensor]:
    """Queries, keys and values, (B, H, T, d) each, of the (B, T, K) input."""
    layers = (attention.q_proj, attention.k_proj, attention.v_proj)
    return [by_head(attention, layer(normed)) for layer in layers]
