"""Peak extraction beside its definition: square windows, then the steps of the paper one point at a time."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from side_by_side import Times, in_turn
from weakly.methods.weaksam.peaks import PeakRule, Points, peak_points

WANTED = 10.0
"""Times faster that we want to be at 129 pixels."""


def compare_peaks(size: tuple[int, int], maps: int, kernel: int, seed: int, device: torch.device) -> dict[str, Any]:
    """Time both sides, one map after the other, and compare their points."""
    rule = PeakRule(kernel=kernel)
    times: Times = {"two_dimensional": [], "weakly": []}
    same, count = True, 0
    for turn, map_ in enumerate(smooth_maps(size, maps, seed).to(device)):
        sides = {
            "two_dimensional": lambda map_=map_: two_dimensional(map_, rule),
            "weakly": lambda map_=map_: peak_points(map_[None], [0], rule),
        }
        reference, ours = in_turn(sides, turn, times, device)
        same &= bool(np.array_equal(reference, ours))
        count += len(ours)
    return {
        "maps": maps,
        "kernel": kernel,
        **mean_times(times, "two_dimensional", WANTED),
        "points": count,
        "same": same,
    }


def two_dimensional(map_: Tensor, rule: PeakRule) -> Points:
    """(n, 5) points of one (H, W) map by the definition (weaksam, section 2.1)."""
    radius = (rule.kernel - 1) // 2
    pooled = functional.max_pool2d(map_[None, None], rule.kernel, 1, radius)[0, 0]
    values, places = torch.where(pooled == map_, map_, 0).flatten().topk(min(rule.topk, map_.numel()))
    kept: list[tuple[int, int, float]] = []
    for value, place in zip(values.tolist(), places.tolist(), strict=True):
        y, x = divmod(place, map_.shape[1])
        if value < rule.tau:
            break
        if all(abs(x - other_x) + abs(y - other_y) >= radius for other_x, other_y, _ in kept):
            kept.append((x, y, value))
    return np.array([(x, y, 0, value, 0) for x, y, value in kept], np.float32).reshape(-1, 5)


def smooth_maps(size: tuple[int, int], count: int, seed: int) -> Tensor:
    """(M, H, W) random maps in [0, 1], as smooth as maps of 16-pixel patches that were upscaled."""
    coarse = [max(2, extent // 16) for extent in size]
    noise = torch.rand(count, 1, *coarse, generator=torch.Generator().manual_seed(seed))
    maps = functional.interpolate(noise, size, mode="bicubic")[:, 0]
    low, high = maps.amin((1, 2), keepdim=True), maps.amax((1, 2), keepdim=True)
    return (maps - low) / (high - low)


def mean_times(times: Times, other: str, wanted: float | None) -> dict[str, Any]:
    """Mean seconds per call, and how many times faster ``weakly`` is than the ``other`` side."""
    wall = {name: float(np.mean([each.wall for each in values])) for name, values in times.items()}
    cpu = {name: float(np.mean([each.cpu for each in values])) for name, values in times.items()}
    return {
        "seconds": wall,
        "cpu_seconds": cpu,
        "times_faster": wall[other] / wall["weakly"],
        "times_faster_by_cpu": cpu[other] / cpu["weakly"],
        "wanted": wanted,
    }
