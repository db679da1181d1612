"""MCTformer: class tokens whose attention refines the activation maps, without learned gates (spec weaksam, 1.4).

Symbols as in :mod:`~weakly.methods.weaksam.class_tokens`. Class and patch positions are parts of one table here; they
were two in the original, with the same values.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from weakly.methods.weaksam.class_tokens import ClueNetwork, Logits, NetworkMaps
from weakly.methods.weaksam.weaktr import class_rows, raw_maps, spread_maps

CROSS_LAYERS = 3
"""Last layers whose class-to-patch attention is fused."""


class Mctformer(ClueNetwork):
    """The network: the heads of MCTformer's second version, its attention averaged over heads.

    Args:
        settings: sizes.
        classes: C.
    """

    def forward(self, pixels: Tensor) -> Logits:
        """``z_cls`` and ``z_pat``; attention is not trained on."""
        z_cls, z_pat, _ = self._heads(*self.encoder(pixels))
        return Logits(z_cls, z_pat)

    @torch.no_grad()
    def maps(self, pixels: Tensor, cross_layers: Sequence[int] = ()) -> NetworkMaps:
        """All maps: ``cross`` is the mean of the last three layers, ``affinity`` the sum of all."""
        classes, grid, depth = self.classes, self.encoder.grid_of(pixels), self.encoder.depth
        cross: list[Tensor] = []
        affinity: list[Tensor] = []
        raw: dict[int, Tensor] = {}

        def observe(layer: int, attention: Tensor) -> None:
            mean = attention.float().mean(1)
            patches = mean[:, classes:, classes:]
            affinity[:] = [patches.clone() if not affinity else affinity[0].add_(patches)]
            if layer >= depth - CROSS_LAYERS:
                cross.append(class_rows(mean, classes))
            if layer + 1 in cross_layers:
                raw[layer + 1] = class_rows(attention, classes)

        z_cls, z_pat, coarse = self._heads(*self.encoder(pixels, observe))
        fused = torch.stack(cross).mean(0).unflatten(2, grid)
        fine = spread_maps(affinity[0], fused * coarse)
        return NetworkMaps(z_cls, z_pat, None, coarse, fused, fine, raw_maps(raw, cross_layers, coarse), affinity[0])
