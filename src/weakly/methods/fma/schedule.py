"""The learning rate of the prompts (spec fma-wsss section 2.4)."""

from __future__ import annotations

import math


def learning_rate(step: int, *, total: int, warmup: int, peak: float = 1e-3, warm: float = 1e-5) -> float:
    """The rate of update ``step`` (0 is the first): constant at first, then half a cosine from ``peak`` towards 0.

    Args:
        step: number of updates done before this one; after ``total`` the rate is 0.
        total: updates of the whole run.
        warmup: updates at the constant rate ``warm``.
        peak: rate after the warm-up.
        warm: rate during the warm-up.
    """
    if step < warmup:
        return warm
    progress = min(1.0, (step - warmup) / max(1, total - warmup))
    return peak / 2 * (1 + math.cos(math.pi * progress))
