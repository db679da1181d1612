"""How well names alone find the whole objects they name, and how often names of what is absent light up."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from weakly.data.menagerie.kinds import KINDS, SUPER_CATEGORIES
from weakly.data.menagerie.scene import render_scene
from weakly.foundation.clipseg import ClipSeg
from weakly.foundation.pretraining.clipseg import decode
from weakly.foundation.pretraining.measure import MEASURING_SEED

NAME_GROUPS: dict[str, tuple[str, ...]] = {
    "kinds": tuple(KINDS),
    "super-categories": tuple(name.lower() for name in SUPER_CATEGORIES),
}
NAMES: tuple[str, ...] = tuple(dict.fromkeys(name for names in NAME_GROUPS.values() for name in names))

NamedPicture: TypeAlias = tuple[NDArray[np.uint8], dict[str, NDArray[np.bool_]]]
"""An image (H, W, 3) and, for each name of what is visible on it, the mask (H, W) of all that it names."""


@dataclass(frozen=True)
class NameScores:
    """Masks at threshold 0.5 and the images' original size; the prompt is the bare name.

    Attributes:
        iou: mean over (image, name) pairs where the name is present.
        false_positives: share of the (image, name) pairs where it is absent whose mask covers 1 % of the image or more.
        lit: mean share of the image that the mask of an absent name covers.
        present: how many pairs are present.
        images: how many images.
    """

    iou: float
    false_positives: float
    lit: float
    present: int
    images: int


FALSE_FLOOR = 0.01
"""Share of the image from which on the mask of an absent name counts as a false positive."""


def world_objects(count: int, seed: int = MEASURING_SEED, size: int = 256) -> Iterator[NamedPicture]:
    """``count`` unseen worlds with the masks of every kind and super-category that is visible, however little of it."""
    for index in range(count):
        scene = render_scene(seed, index, size)
        masks: dict[str, NDArray[np.bool_]] = {}
        for number, thing in enumerate(scene.objects, 1):
            for name in (thing.kind, thing.super_category.lower()):
                masks[name] = masks.get(name, np.zeros((size, size), np.bool_)) | (scene.object_map == number)
        yield scene.image, masks


@torch.no_grad()
def measure_names(clipseg: ClipSeg, pictures: Iterable[NamedPicture]) -> dict[str, NameScores]:
    """Segment every image by every name, one image at a time: ``len(NAMES)`` masks in memory."""
    texts = clipseg.encode_text(clipseg.tokenize(NAMES), *clipseg.token_embedding_weights())
    decoder = clipseg.new_decoder().eval()
    rows: list[Tensor] = []
    for image, masks in pictures:
        logits = decode(decoder, clipseg.taps(clipseg.preprocess(image)), texts[None])
        found = functional.interpolate(logits, image.shape[:2], mode="bilinear", align_corners=False)[0].cpu() > 0
        empty = np.zeros(image.shape[:2], np.bool_)
        truth = torch.from_numpy(np.stack([masks.get(name, empty) for name in NAMES]))
        both, either = (found & truth).sum((1, 2)), (found | truth).sum((1, 2))
        rows.append(torch.stack([truth.any(2).any(1), both / either.clamp(min=1), found.float().mean((1, 2))]))
    present, iou, lit = torch.stack(rows, 1)
    return {group: _scores(present[:, columns] > 0, iou[:, columns], lit[:, columns]) for group, columns in _columns()}


def _columns() -> Iterator[tuple[str, list[int]]]:
    for group, names in NAME_GROUPS.items():
        yield group, [NAMES.index(name) for name in names]


def _scores(present: Tensor, iou: Tensor, lit: Tensor) -> NameScores:
    """Scores of (images, names) tables."""
    absent = lit[~present]
    return NameScores(
        float(iou[present].mean()),
        float((absent >= FALSE_FLOOR).float().mean()),
        float(absent.mean()),
        int(present.sum()),
        len(present),
    )
