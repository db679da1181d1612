"""The student of WPS-SAM: a prompter that looks at an image embedding and says what to ask the segmenter.

Symbols: B images, C_e embedding channels, (h, w) embedding grid, d width, S queries, C categories, T tokens per
prompt, D token width. Sub-module names are the boxes of the paper's Figure 3. With the paper's sizes (the defaults)
12,717,609 parameters train.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional


class Prompts(NamedTuple):
    """What the prompter says about B images.

    Attributes:
        logits: (B, S, C + 1); the last class is "no part".
        tokens: (B, S, T, D) student prompt tokens, to be decoded in place of the segmenter's own.
        boxes: (B, S, 4) centre x, centre y, width, height in shares of the frame, of a prompter that answers boxes too.
    """

    logits: Tensor
    tokens: Tensor
    boxes: Tensor | None = None


class Prompter(nn.Module):
    """Image embedding to S class scores and S prompts: strided convolutions, a DETR transformer and two heads.

    Args:
        embedding_channels: C_e, the segmenter's ``student_channels``; more channels of an embedding are not looked at.
        grid: (h, w) of the segmenter's embedding.
        token_width: D of the segmenter.
        classes: C, without background.
        queries: S.
        tokens: T: 2 for boxes or points, 3 for both.
        width: d; the hidden layer of the prompt head has 2d units.
        heads: attention heads; divides ``width``.
        layers: encoder layers and as many decoder layers.
        ffn: hidden units of the transformer's feed-forward blocks.
        downsamples: number of stride-2 convolutions; 2 turns 64x64 into 16x16.
        dropout: in the transformer; 0 in the paper.
        boxes: also answer with boxes, by a head of three layers as in DETR.
        places: (K, D) tokens of the K downsampled cells' centres, row by row. Positions then start from them instead of
            zeros and are also added to the cells' content, so that attention can read a coordinate in the very basis
            of the targets. None, as in the paper: positions only steer the attention.
    """

    def __init__(
        self,
        *,
        embedding_channels: int = 256,
        grid: tuple[int, int] = (64, 64),
        token_width: int = 256,
        classes: int = 40,
        queries: int = 25,
        tokens: int = 2,
        width: int = 256,
        heads: int = 8,
        layers: int = 6,
        ffn: int = 1024,
        downsamples: int = 2,
        dropout: float = 0.0,
        boxes: bool = False,
        places: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.placed = places is not None
        self.embedding_channels = embedding_channels
        self.token_shape = (tokens, token_width)
        self.downsample = downsampling(embedding_channels, width, downsamples)
        height, width_cells = downsampled(grid, downsamples)
        position = torch.zeros(1, width, height, width_cells)
        if places is not None:
            shared = min(width, places.shape[1])
            position[0, :shared] = places[:, :shared].T.reshape(shared, height, width_cells)
        self.position = nn.Parameter(position)
        self.queries = nn.Embedding(queries, width)
        self.encoder = Encoder(width, heads, layers, ffn, dropout)
        self.decoder = Decoder(width, heads, layers, ffn, dropout)
        self.class_head = nn.Linear(width, classes + 1)
        self.prompt_head = nn.Sequential(
            nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, tokens * token_width)
        )
        self.box_head = _mlp(width, 4, layers=3) if boxes else None
        for module in (self.encoder, self.decoder):
            for parameter in module.parameters():
                if parameter.ndim > 1:
                    nn.init.xavier_uniform_(parameter)

    def forward(self, embeddings: Tensor) -> Prompts:
        """Embeddings (B, C_e, h, w) to class logits (B, S, C + 1) and tokens (B, S, T, D)."""
        return self.answer(self.states(embeddings)[-1])

    def states(self, embeddings: Tensor) -> Tensor:
        """Embeddings (B, C_e, h, w) to the query states (L, B, S, d) after every decoder layer."""
        source = self.downsample(embeddings[:, : self.embedding_channels]).flatten(2).transpose(1, 2)
        position = self.position.flatten(2).transpose(1, 2)
        if self.placed:
            source = source + position
        memory = self.encoder(source, position)
        every: Tensor = self.decoder(memory, position, self.queries.weight[None])
        return every

    def answer(self, states: Tensor) -> Prompts:
        """Query states (B, S, d) to logits (B, S, C + 1), tokens (B, S, T, D) and, with a head for them, boxes."""
        tokens = self.prompt_head(states).unflatten(-1, self.token_shape)
        boxes = None if self.box_head is None else self.box_head(states).sigmoid()
        return Prompts(self.class_head(states), tokens, boxes)


def _mlp(width: int, outputs: int, layers: int) -> nn.Sequential:
    hidden = [module for _ in range(layers - 1) for module in (nn.Linear(width, width), nn.ReLU())]
    return nn.Sequential(*hidden, nn.Linear(width, outputs))


def downsampling(channels: int, width: int, count: int) -> nn.Sequential:
    """(B, channels, h, w) to (B, width, h / 2^count, w / 2^count): [3x3 stride 2, channel norm, GELU] x count.

    With ``count`` 0 a 1x1 convolution only changes the number of channels.
    """
    if count == 0:
        return nn.Sequential(nn.Conv2d(channels, width, 1), ChannelNorm(width), nn.GELU())
    blocks: list[nn.Module] = []
    for index in range(count):
        inputs = channels if index == 0 else width
        blocks += [nn.Conv2d(inputs, width, 3, stride=2, padding=1), ChannelNorm(width), nn.GELU()]
    return nn.Sequential(*blocks)


class ChannelNorm(nn.Module):
    """Layer norm over the channels of every pixel of (B, C, h, w), epsilon 1e-6."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, h, w) to the same shape."""
        channels_last = x.permute(0, 2, 3, 1)
        normed = functional.layer_norm(channels_last, self.weight.shape, self.weight, self.bias, 1e-6)
        return normed.permute(0, 3, 1, 2)


class Attention(nn.Module):
    """Multi-head attention with separate queries, keys and values; parameters as in ``nn.MultiheadAttention``."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        if width % heads:
            raise ValueError(f"width {width} is no multiple of the number of heads {heads}")
        self.heads, self.dropout = heads, dropout
        self.in_proj_weight = nn.Parameter(torch.empty(3 * width, width))
        self.in_proj_bias = nn.Parameter(torch.zeros(3 * width))
        self.out_proj = nn.Linear(width, width)
        nn.init.zeros_(self.out_proj.bias)

    def forward(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """Query (B, Q, d), key and value (B, K, d) to (B, Q, d)."""
        weights, biases = self.in_proj_weight.chunk(3), self.in_proj_bias.chunk(3)
        q, k, v = (
            functional.linear(x, weight, bias).view(*x.shape[:2], self.heads, -1).transpose(1, 2)
            for x, weight, bias in zip((query, key, value), weights, biases, strict=True)
        )
        dropout = self.dropout if self.training else 0.0
        mixed = functional.scaled_dot_product_attention(q, k, v, dropout_p=dropout)
        return self.out_proj(mixed.transpose(1, 2).flatten(2))


class EncoderLayer(nn.Module):
    """Post-norm: self-attention with positions on queries and keys, then a ReLU feed-forward block."""

    def __init__(self, width: int, heads: int, ffn: int, dropout: float) -> None:
        super().__init__()
        self.self_attn = Attention(width, heads, dropout)
        self.linear1, self.linear2 = nn.Linear(width, ffn), nn.Linear(ffn, width)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, position: Tensor) -> Tensor:
        """Cells (B, K, d) and positions (1, K, d) to cells."""
        placed = x + position
        x = self.norm1(x + self.dropout(self.self_attn(placed, placed, x)))
        hidden = self.dropout(functional.relu(self.linear1(x)))
        return self.norm2(x + self.dropout(self.linear2(hidden)))


class DecoderLayer(nn.Module):
    """Post-norm: self-attention among the queries, attention to the image, a ReLU feed-forward block."""

    def __init__(self, width: int, heads: int, ffn: int, dropout: float) -> None:
        super().__init__()
        self.self_attn = Attention(width, heads, dropout)
        self.multihead_attn = Attention(width, heads, dropout)
        self.linear1, self.linear2 = nn.Linear(width, ffn), nn.Linear(ffn, width)
        self.norm1, self.norm2, self.norm3 = (nn.LayerNorm(width) for _ in range(3))
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, memory: Tensor, placed_memory: Tensor, queries: Tensor) -> Tensor:
        """States (B, S, d), memory without and with positions (B, K, d) and queries (1, S, d) to states."""
        asking = x + queries
        x = self.norm1(x + self.dropout(self.self_attn(asking, asking, x)))
        x = self.norm2(x + self.dropout(self.multihead_attn(x + queries, placed_memory, memory)))
        hidden = self.dropout(functional.relu(self.linear1(x)))
        return self.norm3(x + self.dropout(self.linear2(hidden)))


class Encoder(nn.Module):
    """A stack of :class:`EncoderLayer`, without a final norm."""

    def __init__(self, width: int, heads: int, layers: int, ffn: int, dropout: float) -> None:
        super().__init__()
        self.layers = nn.ModuleList(EncoderLayer(width, heads, ffn, dropout) for _ in range(layers))

    def forward(self, source: Tensor, position: Tensor) -> Tensor:
        """Source (B, K, d) and positions (1, K, d) to memory (B, K, d)."""
        for layer in self.layers:
            source = layer(source, position)
        return source


class Decoder(nn.Module):
    """A stack of L :class:`DecoderLayer` that starts from zeros, and one output norm for all of them."""

    def __init__(self, width: int, heads: int, layers: int, ffn: int, dropout: float) -> None:
        super().__init__()
        self.layers = nn.ModuleList(DecoderLayer(width, heads, ffn, dropout) for _ in range(layers))
        self.norm = nn.LayerNorm(width)

    def forward(self, memory: Tensor, position: Tensor, queries: Tensor) -> Tensor:
        """Memory (B, K, d), its positions (1, K, d) and queries (1, S, d) to query states (L, B, S, d)."""
        placed_memory = memory + position
        states = queries.new_zeros(memory.shape[0], *queries.shape[1:])
        every = []
        for layer in self.layers:
            states = layer(states, memory, placed_memory, queries)
            every.append(states)
        return self.norm(torch.stack(every))


def downsampled(grid: tuple[int, int], times: int) -> tuple[int, int]:
    """Rows and columns of a grid after ``times`` stride-2 convolutions."""
    rows, columns = grid
    for _ in range(times):
        rows, columns = (rows + 1) // 2, (columns + 1) // 2
    return rows, columns
