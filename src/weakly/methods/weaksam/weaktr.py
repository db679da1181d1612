"""WeakTr: class tokens whose attention, fused by learned gates, refines the activation maps (spec weaksam, 1.1).

Symbols as in :mod:`~weakly.methods.weaksam.class_tokens`, and M = L H attention maps.

Two facts keep memory small. The gates see every map through its mean, which a softmax fixes at 1/N: they depend on the
number of tokens alone, are known before the forward pass, and maps are fused as they come. And the mean of a fine map,
which is all the gates are trained on, needs the column means of the affinities alone.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from weakly.methods.weaksam.class_tokens import ClueNetwork, Logits, NetworkMaps, VitSettings


class AttentionFusion(nn.Module):
    """Adaptive attention fusion: a gate in (0, 1) for every attention map.

    Maps are ordered by head, then by layer.

    Args:
        depth: L.
        heads: H.
        reduction: M over the number of hidden units.
    """

    def __init__(self, depth: int, heads: int, reduction: int) -> None:
        super().__init__()
        self.shape = (heads, depth)
        maps = heads * depth
        hidden = max(1, maps // reduction)
        self.squeeze = nn.Linear(maps, hidden, bias=False)
        self.excite = nn.Linear(hidden, maps, bias=False)

    def forward(self, tokens: int) -> Tensor:
        """(L, H) float32 gates of images of N = ``tokens`` tokens; they tend to 1/2 as N grows."""
        pooled = self.squeeze.weight.new_full((self.squeeze.in_features,), 1 / tokens)
        with torch.autocast(pooled.device.type, enabled=False):
            return self.excite(self.squeeze(pooled).relu()).sigmoid().view(self.shape).T


class WeakTr(ClueNetwork):
    """The network.

    Attributes:
        fusion: the gates; ``z_fine`` trains them and nothing else.

    Args:
        settings: sizes.
        classes: C.
    """

    def __init__(self, settings: VitSettings, classes: int) -> None:
        super().__init__(settings, classes)
        self.fusion = AttentionFusion(settings.depth, settings.heads, settings.reduction)

    def forward(self, pixels: Tensor) -> Logits:
        """The three logits. Of the attention, B M (C + 1) P floats are kept."""
        cross: list[Tensor] = []
        columns: list[Tensor] = []

        def observe(_: int, attention: Tensor) -> None:
            cross.append(class_rows(attention, self.classes))
            columns.append(attention[:, :, self.classes :, self.classes :].float().mean(2))

        z_cls, z_pat, coarse = self._heads(*self.encoder(pixels, observe))
        gates = self._gates(pixels)
        with torch.autocast(pixels.device.type, enabled=False):
            fused = torch.einsum("lh,lbhcp->bcp", gates, torch.stack(cross)) * coarse.flatten(2)
            spread = torch.einsum("lh,lbhp->bp", gates, torch.stack(columns))
            z_fine = (fused @ spread[:, :, None]).squeeze(2)
        return Logits(z_cls, z_pat, z_fine)

    @torch.no_grad()
    def maps(self, pixels: Tensor, cross_layers: Sequence[int] = ()) -> NetworkMaps:
        """All maps; ``cross`` and ``affinity`` are means of the gated attention over layers and heads."""
        classes, grid = self.classes, self.encoder.grid_of(pixels)
        gates = self._gates(pixels)
        fused: list[Tensor] = []
        raw: dict[int, Tensor] = {}

        def observe(layer: int, attention: Tensor) -> None:
            gated = torch.einsum("h,bhnm->bnm", gates[layer], attention.float())
            fused[:] = [gated if not fused else fused[0].add_(gated)]
            if layer + 1 in cross_layers:
                raw[layer + 1] = class_rows(attention, classes)

        z_cls, z_pat, coarse = self._heads(*self.encoder(pixels, observe))
        cross = fused[0][:, :classes, classes:].unflatten(2, grid)
        affinity = fused[0][:, classes:, classes:]
        fine = spread_maps(affinity, cross * coarse)
        return NetworkMaps(
            z_cls, z_pat, fine.mean((2, 3)), coarse, cross, fine, raw_maps(raw, cross_layers, coarse), affinity
        )

    def _gates(self, pixels: Tensor) -> Tensor:
        """(L, H) gates over M, so that the sum of gated maps is their mean."""
        height, width = self.encoder.grid_of(pixels)
        return self.fusion(self.classes + height * width) / self.fusion.squeeze.in_features


def class_rows(attention: Tensor, classes: int) -> Tensor:
    """A float32 copy of what classes see of patches: (..., N, N) to (..., C, P)."""
    return attention[..., :classes, classes:].to(torch.float32, copy=True)


def spread_maps(affinity: Tensor, maps: Tensor) -> Tensor:
    """(B, C, h, w): every patch takes the values of those it attends to, by (B, P, P) ``affinity``."""
    return (maps.flatten(2) @ affinity.mT).unflatten(2, maps.shape[2:])


def raw_maps(raw: dict[int, Tensor], layers: Sequence[int], like: Tensor) -> Tensor:
    """(B, M, C, h, w) of {layer: (B, H, C, P)}, layer by layer; M = 0 without layers. ``like`` is (B, C, h, w)."""
    if not layers:
        return like.new_zeros(len(like), 0, *like.shape[1:])
    return torch.cat([raw[layer] for layer in layers], 1).unflatten(3, like.shape[2:])
