"""The concrete drop block: a small network learns which parts of a RoI to hide from the detector (weaksam, 3.3).

It hides what the detector leans on, so that the detector learns the rest of the object. Only in training.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import log

import torch
from torch import Tensor, nn
from torch.nn import functional

from weakly.errors import UserError


@dataclass(frozen=True)
class DropBlockSettings:
    """The concrete drop block.

    Attributes:
        share: tau, the largest expected share of hidden cells, their overlap left out of account.
        block: side in cells of a hidden square; odd.
        temperature: of the Gumbel softmax.
    """

    share: float = 0.3
    block: int = 3
    temperature: float = 0.01

    def __post_init__(self) -> None:
        if not 0 < self.share <= 1:
            raise UserError(f"drop_block.share is {self.share}; give a fraction above 0 and at most 1.")
        if self.block < 1 or self.block % 2 == 0:
            raise UserError(f"drop_block.block is {self.block}; give an odd number of cells, at least 1.")
        if not self.temperature > 0:
            raise UserError(f"drop_block.temperature is {self.temperature}; give a number above 0.")


class ConcreteDropBlock(nn.Module):
    """A residual block says where squares are hidden; Gumbel noise decides; a straight-through estimate teaches it.

    Its norms use the statistics of the batch alone: it is never evaluated.

    Args:
        channels: D of the pooled features.
        settings: how much is hidden.
    """

    def __init__(self, channels: int, settings: DropBlockSettings) -> None:
        super().__init__()
        self.settings = settings
        self.residual = nn.Sequential(
            nn.Conv2d(channels, channels, 3, padding=1, bias=False),
            nn.BatchNorm2d(channels, track_running_stats=False),
            nn.ReLU(),
            nn.Conv2d(channels, 2, 3, padding=1, bias=False),
            nn.BatchNorm2d(2, track_running_stats=False),
        )
        self.shortcut = nn.Conv2d(channels, 2, 1)

    def forward(self, pooled: Tensor) -> Tensor:
        """(R, D, h, w) with squares hidden and the rest made up for it; unchanged in evaluation."""
        return hide(pooled, self.keep(pooled)) if self.training else pooled

    def keep(self, pooled: Tensor) -> Tensor:
        """(R, 1, h, w): 1 for cells that stay, 0 for hidden ones; its gradient reaches the weights, not ``pooled``."""
        pooled = pooled.detach()
        gate = self.residual(pooled) + self.shortcut(pooled)
        settings = self.settings
        # A square hides block^2 cells; the logarithm of the sigmoid stays finite where the sigmoid itself is 0.
        log_hidden = functional.logsigmoid(gate[:, :1]) + log(settings.share / settings.block**2)
        logits = torch.cat([log_hidden, torch.log1p(-log_hidden.exp().clamp(max=1 - 1e-6))], 1)
        centres = functional.gumbel_softmax(logits, tau=settings.temperature, hard=True, dim=1)[:, :1]
        return 1 - functional.max_pool2d(centres, settings.block, stride=1, padding=settings.block // 2)


def hide(pooled: Tensor, keep: Tensor) -> Tensor:
    """(R, D, h, w) features times the cells to keep (R, 1, h, w), scaled so that the mask has mean 1 over all RoIs."""
    return pooled * keep * (keep.numel() / keep.sum().clamp(min=1))
