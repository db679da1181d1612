"""Peaks of class maps: the points that are asked of the promptable segmenter (weaksam, sections 2.1 and 2.2).

A point is a row ``x, y, class, score, map`` of a (n, 5) float32 array: column and row of a pixel of the maps, category
index, the map's value there, and the index of the map (of a head of a layer). Symbols: M maps, (H, W) their size.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from weakly.errors import UserError

Points: TypeAlias = NDArray[np.float32]
"""(n, 5) float32 rows ``x, y, class, score, map``."""

NO_MAP = -1
"""Map of a point that stands for points of several maps."""

MAP_PIXELS = 1 << 24
"""Pixels of maps pooled at once: about 4 fp32 arrays of as many pixels are alive, 256 MiB."""

KMEANS_ROUNDS = 300
"""Most rounds of k-means; a few dozen are usual."""


@dataclass(frozen=True)
class PeakRule:
    """What a peak of a map in [0, 1] is; the defaults are those of class activation maps.

    Attributes:
        kernel: odd side in pixels of the window of which a peak is the largest value; peaks nearer than
            (kernel - 1) / 2 pixels in Manhattan distance to a better one go.
        tau: least value.
        topk: most peaks of one map, before near ones go.
    """

    kernel: int = 17
    tau: float = 0.9
    topk: int = 25

    def __post_init__(self) -> None:
        if self.kernel < 1 or self.kernel % 2 == 0:
            raise UserError(f"The kernel of peaks is {self.kernel}; give an odd number of pixels, such as 17.")
        if not 0 < self.tau <= 1:
            raise UserError(f"The tau of peaks is {self.tau}; give a value of at most 1 and above 0, such as 0.9.")
        if self.topk < 1:
            raise UserError(f"The topk of peaks is {self.topk}; give a whole number of at least 1.")


@dataclass(frozen=True)
class CrossRule(PeakRule):
    """What a point of the attention maps of one image is.

    Attributes:
        kernel: see :class:`PeakRule`; attention maps of many heads have many small peaks.
        tau: see :class:`PeakRule`.
        topk: see :class:`PeakRule`.
        cluster_div: points per cluster.
        clustered: points are the centres of clusters; false: the peaks themselves.
    """

    kernel: int = 129
    cluster_div: int = 5
    clustered: bool = True

    def __post_init__(self) -> None:
        PeakRule.__post_init__(self)
        if self.cluster_div < 1:
            raise UserError(f"The cluster_div of peaks is {self.cluster_div}; give a whole number of at least 1.")


@dataclass(frozen=True)
class PeakSettings:
    """How points are found; the defaults are the published ones, for images of about 500 pixels.

    Attributes:
        cam: of coarse and of fine activation maps.
        cross: of class-to-patch attention maps.
    """

    cam: PeakRule = field(default_factory=PeakRule)
    cross: CrossRule = field(default_factory=CrossRule)


def peak_points(
    maps: Tensor, classes: Sequence[int] | NDArray[np.int64], rule: PeakRule, map_ids: Sequence[int] | None = None
) -> Points:
    """The peaks of every map (weaksam, section 2.1).

    Per map: pixels that are the largest of the window around them and at least ``tau``; the ``topk`` largest of them,
    of equal ones the first in reading order; those that no larger one lies near.

    Memory: the maps, 256 MiB (or four times one map, if that is more), and one byte per pixel of as many maps.

    Args:
        maps: (M, H, W), each normalised to [0, 1].
        classes: M category indices.
        rule: what a peak is.
        map_ids: M indices for the last column; 0 if absent.

    Returns:
        (n, 5) points, map after map, in each by descending value; possibly none.

    Raises:
        ValueError: classes or map_ids are not M.
    """
    map_ids = [0] * len(maps) if map_ids is None else map_ids
    if not len(maps) == len(classes) == len(map_ids):
        raise ValueError(f"{len(maps)} maps, {len(classes)} classes and {len(map_ids)} map indices")
    if maps.numel() == 0:
        return np.zeros((0, 5), np.float32)
    per_chunk = max(1, MAP_PIXELS // maps[0].numel())
    found = [_best(part.float(), rule) for part in maps.split(per_chunk)]
    rows = np.concatenate([part[0] + index * per_chunk for index, part in enumerate(found)])
    xy, scores = (np.concatenate([part[column] for part in found]) for column in (1, 2))
    kept = _apart(rows, xy, (rule.kernel - 1) / 2)
    columns = (xy, np.asarray(classes)[rows, None], scores[:, None], np.asarray(map_ids)[rows, None])
    return np.concatenate(columns, 1)[kept].astype(np.float32)


def cross_points(maps: Tensor, classes: Sequence[int] | NDArray[np.int64], rule: CrossRule) -> Points:
    """The points of the attention maps of one image (weaksam, section 2.2).

    Args:
        maps: (M, P, H, W): M maps of P classes, each normalised to [0, 1].
        classes: P category indices.
        rule: what a peak is and whether peaks are clustered.

    Returns:
        (n, 5) points; if clustered, without class (0), score (1) or map (-1).
    """
    count, present = maps.shape[:2]
    classes_of_maps, map_ids = np.tile(np.asarray(classes, np.int64), count), np.repeat(np.arange(count), present)
    points = peak_points(maps.flatten(0, 1), classes_of_maps, rule, map_ids.tolist())
    return cluster(points, rule.cluster_div) if rule.clustered else points


def cluster(points: Points, per_cluster: int = 5, seed: int = 0) -> Points:
    """Centres of max(1, n // per_cluster) clusters, their fractions cut off; none of no points.

    Fewer clusters than that if the points are fewer places.
    """
    if len(points) == 0:
        return np.zeros((0, 5), np.float32)
    centres = np.trunc(kmeans(points[:, :2], max(1, len(points) // per_cluster), seed))
    return np.concatenate([centres, np.tile([0.0, 1.0, NO_MAP], (len(centres), 1))], 1).astype(np.float32)


def kmeans(points: NDArray[np.floating], count: int, seed: int = 0) -> NDArray[np.float64]:
    """Lloyd's algorithm from k-means++ centres.

    Args:
        points: (n, d), at least one.
        count: clusters wanted.
        seed: of the centres to begin with.

    Returns:
        (k, d) centres; k is less than ``count`` where points coincide.
    """
    places = points.astype(np.float64)
    centres = _spread_centres(places, count, np.random.default_rng(seed))
    assigned = np.full(len(places), -1)
    for _ in range(KMEANS_ROUNDS):
        nearest = _squared_distances(places, centres).argmin(1)
        if (nearest == assigned).all():
            break
        assigned = nearest
        members = np.arange(len(centres))[:, None] == assigned
        sizes = members.sum(1, keepdims=True)
        centres = np.where(sizes > 0, members @ places / np.maximum(sizes, 1), centres)
    return centres[np.unique(assigned)]


def window_max(maps: Tensor, kernel: int) -> Tensor:
    """Largest value of the kernel x kernel window around every pixel of (..., H, W), ending at the border.

    First along rows, then along columns; along each by doubling, since the maximum over 2 s pixels is that of two
    windows of s: 2 log2(kernel) comparisons per pixel instead of kernel squared, and the same values exactly.
    """
    radius = (kernel - 1) // 2
    wide = _sliding_max(functional.pad(maps, (radius, radius), value=-torch.inf), kernel, -1)
    return _sliding_max(functional.pad(wide, (0, 0, radius, radius), value=-torch.inf), kernel, -2)


def _sliding_max(values: Tensor, window: int, axis: int) -> Tensor:
    """Maximum of every ``window`` neighbours along an axis, which becomes ``window - 1`` shorter."""
    covered = 1
    while covered < window:
        step = min(covered, window - covered)
        length = values.shape[axis] - step
        values = torch.maximum(values.narrow(axis, 0, length), values.narrow(axis, step, length))
        covered += step
    return values


def _best(maps: Tensor, rule: PeakRule) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.float64]]:
    """Map (n,), x and y (n, 2) and value (n,) of the ``topk`` peaks of every map of (M, H, W)."""
    rows, y, x = ((window_max(maps, rule.kernel) == maps) & (maps >= rule.tau)).nonzero(as_tuple=True)
    values = maps[rows, y, x]
    order = values.argsort(descending=True, stable=True)
    order = order[rows[order].argsort(stable=True)]  # by map, in each by value
    rank = torch.arange(len(order), device=maps.device) - torch.searchsorted(rows, rows)  # rows ascend as they are
    best = order[rank < rule.topk]
    xy = torch.stack([x, y], 1)[best]
    return rows[best].cpu().numpy(), xy.double().cpu().numpy(), values[best].double().cpu().numpy()


def _apart(rows: NDArray[np.int64], xy: NDArray[np.float64], least: float) -> NDArray[np.bool_]:
    """(n,) bool: points at a Manhattan distance of at least ``least`` from every better kept one of their map.

    Args:
        rows: (n,) the map of each point, ascending; the points of a map are in descending order.
        xy: (n, 2).
        least: in pixels.
    """
    if len(rows) == 0:
        return np.zeros(0, bool)
    maps, first, counts = np.unique(rows, return_index=True, return_counts=True)
    place = np.arange(len(rows)) - np.repeat(first, counts)
    row = np.repeat(np.arange(len(maps)), counts)
    padded = np.full((len(maps), counts.max(), 2), np.nan)
    padded[row, place] = xy
    near = np.abs(padded[:, :, None] - padded[:, None]).sum(-1) < least  # false against padding
    kept = np.ones(near.shape[:2], bool)
    for later in range(1, near.shape[1]):  # whether a point stays depends on all before it
        kept[:, later] = ~(near[:, later, :later] & kept[:, :later]).any(1)
    return kept[row, place]


def _spread_centres(points: NDArray[np.float64], count: int, rng: np.random.Generator) -> NDArray[np.float64]:
    """(k, d) k-means++ centres: each a point, drawn by its squared distance to the nearest before it."""
    chosen = [int(rng.integers(len(points)))]
    nearest = _squared_distances(points, points[chosen])[:, 0]
    while len(chosen) < count and nearest.max() > 0:
        chosen.append(int(rng.choice(len(points), p=nearest / nearest.sum())))
        nearest = np.minimum(nearest, _squared_distances(points, points[chosen[-1:]])[:, 0])
    return points[chosen]


def _squared_distances(points: NDArray[np.float64], centres: NDArray[np.float64]) -> NDArray[np.float64]:
    """(n, k) squared Euclidean distances."""
    distances: NDArray[np.float64] = ((points[:, None] - centres) ** 2).sum(-1)
    return distances
