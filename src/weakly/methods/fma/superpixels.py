"""SAMS: seed maps from automatic masks and class activation maps (FMA-WSSS, section 3.4; fma-wsss, section 5).

Automatic masks are thinned to quasi-superpixels, each gets the class its activations speak for, and the seed map is
painted from them. Symbols: S masks, P classes present in the image, (H, W) image size, (h, w) activation grid.

Memory: S * H * W bytes of boolean masks (twice that while they are filtered), P * H * W * 4 bytes of upscaled
activations, and 64 MiB of float32 masks at a time in the matrix products.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from weakly.errors import UserError
from weakly.foundation.automatic_masks import PART, SUB_PART, WHOLE, AutomaticMasks

Against = Literal["each", "union"]
Average = Literal["clamped", "signed"]
Norm = Literal["min_max", "none"]
Uncovered = Literal["prediction", "background"]

OCCUPATION_RATIO = 0.3
"""t_r of the paper."""

PUBLISHED_EPS = 1e-7
"""Added to the range of a class by the released code: activations of that size or less give background alone."""

CHUNK_VALUES = 1 << 24
"""Mask values in one matrix product; as a count of pixels also the last that float32 sums exactly."""

NOISE = 1e-5
"""Relative range of the means of a class that float32 sums alone may cause: no mask stands out."""

TABLE_4: Mapping[str, tuple[str, float | None]] = MappingProxyType(
    {
        "official_heavy": ("official_heavy", None),
        "s1": ("s1", None),
        "l2_nmsf": ("l2_nmsf", None),
        "l2_nmsf_s1": ("l2_nmsf_s1", None),
        "l2_nmsf_s1_rsw3": ("l2_nmsf_s1", OCCUPATION_RATIO),
    }
)
"""The rows of FMA-WSSS's Table 4 on superpixels: preset of the masks and occupation ratio (None: no filter)."""


class Superpixels(NamedTuple):
    """S quasi-superpixels of one image; they may overlap and leave pixels uncovered.

    Attributes:
        masks: (S, H, W) bool.
        levels: (S,) int64: 0 sub-part, 1 part, 2 whole.
    """

    masks: Tensor
    levels: Tensor


class MaskClasses(NamedTuple):
    """What S masks are.

    Attributes:
        labels: (S,) int64: 0 background, k the class of channel k - 1.
        confidence: (S,) float32, the winning score.
    """

    labels: Tensor
    confidence: Tensor


def quasi_superpixels(
    masks: AutomaticMasks,
    ratio: float | None = OCCUPATION_RATIO,
    *,
    against: Against = "each",
    device: torch.device | str = "cpu",
) -> Superpixels:
    """Decode automatic masks and drop those that larger ones occupy (:func:`occupation_filter`); None: no filter."""
    decoded, levels = torch.from_numpy(masks.masks()).to(device), torch.from_numpy(masks.levels).to(device)
    if ratio is None:
        return Superpixels(decoded, levels)
    kept = occupation_filter(decoded, levels, ratio, against=against)
    return Superpixels(decoded[kept], levels[kept])


def occupation_filter(
    masks: Tensor, levels: Tensor, ratio: float = OCCUPATION_RATIO, *, against: Against = "each"
) -> Tensor:
    """The masks that say something new: wholes, then parts, then sub-parts (fma-wsss, section 5.2, step 5).

    All wholes stay. A part stays if less than ``ratio`` of it lies in any kept mask, then a sub-part likewise; masks
    of one level do not compete. Empty masks go.

    Args:
        masks: (S, H, W) bool.
        levels: (S,) int64.
        ratio: t_r in (0, 1].
        against: ``each``: the most occupied share by a single kept mask, as released; ``union``: the share in all
            kept masks together, as the paper words it.

    Returns:
        (K,) int64 kept indices, ascending.

    Raises:
        UserError: the ratio is not in (0, 1].
    """
    if not 0 < ratio <= 1:
        raise UserError(f"The occupation ratio is {ratio}; give a fraction in (0, 1].")
    area = mask_areas(masks)
    share = intersections(masks) / area.clamp(min=1)[:, None] if against == "each" else None
    kept = (levels == WHOLE) & (area > 0)
    for level in (PART, SUB_PART):
        if share is None:
            occupied = (masks & masks[kept].any(0)).flatten(1).sum(1) / area.clamp(min=1)
        else:
            occupied = functional.pad(share[:, kept], (1, 0)).amax(1)
        kept |= (levels == level) & (occupied < ratio) & (area > 0)
    return kept.nonzero()[:, 0]


def classify(
    cam: Tensor,
    masks: Tensor,
    *,
    alpha: float = 0.6,
    average: Average = "clamped",
    norm: Norm = "min_max",
    eps: float | None = None,
) -> MaskClasses:
    """The class of every mask from class activations (fma-wsss, section 5.4).

    Activations are averaged over each mask, each class is brought to [0, 1] over the masks, and the background scores
    (1 - best class)^alpha. So the best mask of a class is never background, and a single mask always is. An empty
    mask is background.

    Args:
        cam: (P, h, w) activations of the classes present, signed, any scale; upscaled bilinearly.
        masks: (S, H, W) bool.
        alpha: of the background; larger means more foreground.
        average: ``clamped``: of the positive activations, as released; ``signed``: of all, then clamped.
        norm: ``min_max`` over the masks of a class, or ``none`` for activations that are scores in [0, 1].
        eps: added to the range of a class; None: scale-free. :data:`PUBLISHED_EPS` is the released code's.

    Raises:
        UserError: alpha is not positive.
    """
    _check_alpha(alpha)
    maps = _upscale(cam.float(), masks)
    scores = mask_means(maps.clamp(min=0) if average == "clamped" else maps, masks).clamp(min=0)
    if norm == "min_max":
        scores = _min_max(scores, mask_areas(masks) > 0, eps)
    best = functional.pad(scores, (1, 0)).amax(1)
    return _winner((1 - best).clamp(min=0) ** alpha, scores)


def seed_map(
    cam: Tensor,
    categories: Sequence[int],
    superpixels: Superpixels,
    *,
    alpha: float = 0.6,
    average: Average = "clamped",
    norm: Norm = "min_max",
    eps: float | None = None,
) -> Tensor:
    """The seed map of one image (fma-wsss, sections 5.4 and 5.5).

    Without superpixels everything is background: the caller knows the image and should warn.

    Args:
        cam: (P, h, w) activations.
        categories: P category indices of the channels, 0 to 253.
        superpixels: of the image.
        alpha: see :func:`classify`, as the other options.
        average: see :func:`classify`.
        norm: see :func:`classify`.
        eps: see :func:`classify`.

    Returns:
        (H, W) uint8: 0 background, c + 1 category c.

    Raises:
        ValueError: channels and categories differ in number, or a category does not fit.
    """
    if len(cam) != len(categories) or not all(0 <= category <= 253 for category in categories):
        raise ValueError(f"{len(cam)} channels for categories {list(categories)}, which must lie in 0 to 253")
    masks, levels = superpixels
    classes = classify(cam, masks, alpha=alpha, average=average, norm=norm, eps=eps)
    values = torch.tensor([0, *(category + 1 for category in categories)], device=masks.device)[classes.labels]
    background = torch.zeros(masks.shape[1:], dtype=torch.uint8, device=masks.device)
    return paint(background, masks, levels, values, classes.confidence)


def vote(labels: Tensor, superpixels: Superpixels) -> Tensor:
    """Masks by overlap with a label map (the ``Voting`` of Table 4; Chen et al., arXiv 2305.05803).

    A mask takes the label that most of its pixels have; of equals the smaller label, so background first. A class is
    the union of its masks, where two classes meet the one with the larger share of its mask stays. A class that wins no
    mask keeps its pixels where no mask of another class is. Activations have no say, levels neither.

    Args:
        labels: (H, W) integers: 0 background, j the j-th class.
        superpixels: S masks of the image.

    Returns:
        (H, W) uint8 labels.
    """
    masks, _ = superpixels
    labels = labels.to(masks.device).long()
    count = int(labels.max()) + 1
    shares, votes = mask_means(functional.one_hot(labels, count).movedim(-1, 0).float(), masks).max(1)
    votes = votes.where(masks.flatten(1).any(1), 0)
    won = torch.zeros(count, dtype=torch.bool, device=masks.device).index_fill(0, votes, value=True)
    canvas = labels.where(~won[labels], 0).to(torch.uint8)
    chosen = votes > 0
    same_level = torch.zeros(int(chosen.sum()), dtype=torch.int64, device=masks.device)
    return paint(canvas, masks[chosen], same_level, votes[chosen], shares[chosen])


def refine(
    probabilities: Tensor,
    superpixels: Superpixels,
    *,
    alpha: float = 1.0,
    uncovered: Uncovered = "prediction",
) -> Tensor:
    """SAMS as post-processing of a segmentation network (fma-wsss, section 6).

    Only classes that win a pixel somewhere compete; each mask goes to the class of the largest mean probability, the
    background's raised to ``alpha``. Unlike the released code, the background competes even if it wins no pixel (else
    all labels shift by one), and pixels outside all masks keep the network's prediction.

    Args:
        probabilities: (C + 1, H, W), not negative, background first; maps that do not sum to 1, as Mask2Former's, are
            divided by their sum, never soft-maxed again.
        superpixels: of the image.
        alpha: larger means more foreground.
        uncovered: ``prediction``, or ``background`` as released.

    Returns:
        (H, W) int64 classes, 0 background.

    Raises:
        UserError: alpha is not positive.
    """
    _check_alpha(alpha)
    masks, levels = superpixels
    probabilities = probabilities.float()
    prediction = probabilities.argmax(0)
    present = prediction.unique()
    channels = torch.cat([present.new_zeros(1), present[present > 0]])
    total = probabilities.sum(0).clamp(min=torch.finfo(torch.float32).tiny)
    means = mask_means(probabilities[channels] / total, masks)
    labels, confidence = _winner(means[:, 0] ** alpha, means[:, 1:])
    canvas = prediction if uncovered == "prediction" else torch.zeros_like(prediction)
    return paint(canvas, masks, levels, channels[labels], confidence)


def paint(canvas: Tensor, masks: Tensor, levels: Tensor, values: Tensor, confidence: Tensor) -> Tensor:
    """Paint masks over a copy of ``canvas`` by ascending level, then confidence; of equals the later one stays.

    One mask after the other: no memory beyond the map.

    Args:
        canvas: (H, W) integers, what stays where no mask is.
        masks: (S, H, W) bool.
        levels: (S,) int64.
        values: (S,) what each mask paints.
        confidence: (S,) float32.
    """
    canvas = canvas.clone()
    order = confidence.argsort(stable=True)
    order = order[levels[order].argsort(stable=True)]
    for index, value in zip(order.tolist(), values[order].tolist(), strict=True):
        canvas.masked_fill_(masks[index], value)
    return canvas


def intersections(masks: Tensor) -> Tensor:
    """(S, S) float64: pixels that masks (S, H, W) share; exact. One matrix product per 64 MiB of masks."""
    total = torch.zeros(len(masks), len(masks), dtype=torch.float64, device=masks.device)
    for _, part in _pixel_chunks(masks):
        total += part @ part.T
    return total


def mask_areas(masks: Tensor) -> Tensor:
    """(S,) int64 pixels of masks (S, H, W)."""
    return masks.flatten(1).sum(1)


def mask_means(maps: Tensor, masks: Tensor) -> Tensor:
    """(S, P) float32: mean of maps (P, H, W) over masks (S, H, W); 0 over an empty mask."""
    total = torch.zeros(len(masks), len(maps), dtype=torch.float64, device=masks.device)
    flat = maps.to(masks.device).flatten(1)
    for pixels, part in _pixel_chunks(masks):
        total += part @ flat[:, pixels].T
    return (total / mask_areas(masks).clamp(min=1)[:, None]).float()


def _upscale(cam: Tensor, masks: Tensor) -> Tensor:
    """(P, H, W) bilinear activations at the size of the masks; an image without classes has none."""
    if len(cam) == 0:
        return cam.new_zeros(0, *masks.shape[1:])
    return functional.interpolate(cam[None], masks.shape[1:], mode="bilinear")[0]


def _pixel_chunks(masks: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Slices of the flattened pixels, with the masks there as (S, pixels) float32."""
    flat = masks.flatten(1)
    step = max(1, CHUNK_VALUES // max(1, len(flat)))
    for start in range(0, flat.shape[1], step):
        pixels = slice(start, start + step)
        yield pixels, flat[:, pixels].float()


def _min_max(means: Tensor, filled: Tensor, eps: float | None) -> Tensor:
    """(S, P) means to [0, 1] per class over the non-empty masks; a class that tells no mask apart scores 0."""
    if not filled.any():
        return torch.zeros_like(means)
    low, high = means[filled].amin(0), means[filled].amax(0)
    above = (means - low).clamp(min=0)
    if eps is not None:
        return above / (high - low + eps)
    distinct = high - low > NOISE * high
    return torch.where(distinct, above / torch.where(distinct, high - low, 1), 0)


def _winner(background: Tensor, scores: Tensor) -> MaskClasses:
    """The best of background (S,) and classes (S, P); ties go to the background, then to the earlier class."""
    everything = torch.cat([background[:, None], scores], 1)
    labels = everything.argmax(1)
    return MaskClasses(labels, everything.gather(1, labels[:, None])[:, 0])


def _check_alpha(alpha: float) -> None:
    if not alpha > 0:
        raise UserError(f"The background exponent alpha is {alpha}; give a number above 0.")
