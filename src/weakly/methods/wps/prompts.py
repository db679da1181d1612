"""What box or point a student's tokens stand for: the inverse of the prompt encoder, by search."""

from __future__ import annotations

import torch
from torch import Tensor

from weakly.foundation.promptable import PromptableSegmenter
from weakly.methods.wps.settings import Supervision

COARSE, FINE = 64, 9


@torch.no_grad()
def nearest_prompts(segmenter: PromptableSegmenter, tokens: Tensor, supervision: Supervision) -> Tensor:
    """The prompts whose tokens are nearest to the student's, each token on its own.

    A grid of 64 x 64 cells over the frame, then two grids of 9 x 9 around the best: to about S / 1024 pixels.
    Memory: ``(4096 + 81 n) * T * D * 4`` bytes.

    Args:
        segmenter: whose prompt encoder is inverted.
        tokens: (n, T, D).
        supervision: what the tokens encode.

    Returns:
        (n, 4) frame boxes for ``box`` and ``point+box`` (corners sorted), (n, 2) frame points for ``point``.
    """
    if supervision == "point":
        return _nearest(segmenter, tokens[:, 0], corner=None)
    corners = tokens[:, -2:]
    first = _nearest(segmenter, corners[:, 0], corner=0)
    second = _nearest(segmenter, corners[:, 1], corner=1)
    return torch.cat([torch.minimum(first, second), torch.maximum(first, second)], dim=1)


def _nearest(segmenter: PromptableSegmenter, tokens: Tensor, corner: int | None) -> Tensor:
    """(n, 2) frame positions for (n, D) tokens of one corner (None: of a point)."""
    step = segmenter.side / COARSE
    axis = (torch.arange(COARSE, device=tokens.device) + 0.5) * step
    grid = torch.cartesian_prod(axis, axis)
    position = grid[torch.cdist(tokens, _encode(segmenter, grid, corner)).argmin(1)]
    offset = torch.linspace(-1, 1, FINE, device=tokens.device)
    window = torch.cartesian_prod(offset, offset)
    for reach in (step / 2, step / (FINE - 1)):
        candidates = position[:, None] + reach * window
        table = _encode(segmenter, candidates.flatten(0, 1), corner).view(*candidates.shape[:2], -1)
        best = (table - tokens[:, None]).square().sum(-1).argmin(1)
        position = candidates[torch.arange(len(tokens), device=tokens.device), best]
    return position


def _encode(segmenter: PromptableSegmenter, positions: Tensor, corner: int | None) -> Tensor:
    if corner is None:
        return segmenter.point_tokens(positions)[:, 0]
    return segmenter.box_tokens(positions.repeat(1, 2))[:, corner]
