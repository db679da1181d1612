"""Zero-shot tags: how well names alone find the pictures that show what they name."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import islice
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from transformers import CLIPModel, CLIPTokenizer

from weakly.data.menagerie.kinds import KINDS, PART_NAMES, SUPER_CATEGORIES
from weakly.data.menagerie.scene import render_scene
from weakly.foundation.pretraining.captioned import normalised, resized
from weakly.foundation.pretraining.captions import ORIGAMI
from weakly.foundation.pretraining.measure import MEASURING_SEED
from weakly.foundation.pretraining.small_clip import image_features, text_features, tokenise

TaggedPicture: TypeAlias = tuple[NDArray[np.uint8], frozenset[str]]
"""An image (H, W, 3) and the lower-case names of all that is visible on it."""

_KINDS = tuple(KINDS)
_SUPER_CATEGORIES = tuple(name.lower() for name in SUPER_CATEGORIES)
_PARTS = tuple(name.lower() for name in PART_NAMES)
TAG_GROUPS: dict[str, tuple[str, ...]] = {
    "all of these": tuple(dict.fromkeys(_KINDS + _SUPER_CATEGORIES + _PARTS)),
    "kinds and super-categories": _KINDS + _SUPER_CATEGORIES,
    "kinds": _KINDS,
    "super-categories": _SUPER_CATEGORIES,
    "parts": _PARTS,
}


@dataclass(frozen=True)
class TagScores:
    """Mean average precision over tags, images ranked by similarity to the tag's prompt.

    Attributes:
        patches: from the mean patch token, as FMA pools.
        cls: from the class token, as CLIP pools.
        tags: how many tags occur.
        images: how many images.
    """

    patches: float
    cls: float
    tags: int
    images: int


def world_tags(count: int, seed: int = MEASURING_SEED, size: int = 256) -> Iterator[TaggedPicture]:
    """``count`` unseen worlds with the kinds, super-categories and parts that are visible, however little of them."""
    for index in range(count):
        scene = render_scene(seed, index, size)
        names = {PART_NAMES[part.category] for part in scene.parts}
        names |= {name for thing in scene.objects for name in (thing.kind, thing.super_category)}
        yield scene.image, frozenset(name.lower() for name in names)


@torch.no_grad()
def measure_tags(
    model: CLIPModel,
    tokenizer: CLIPTokenizer,
    pictures: Iterable[TaggedPicture],
    *,
    template: str = ORIGAMI,
    batch: int = 32,
) -> dict[str, TagScores]:
    """Average precision of every tag group, by both poolings; ``batch`` pictures in memory at a time.

    Args:
        model: in evaluation mode.
        tokenizer: the model's.
        pictures: images with all their tags; resized to the model's size.
        template: one prompt for every tag.
        batch: pictures per pass.
    """
    size = model.config.vision_config.image_size
    stream, poolings, tags = iter(pictures), list[Tensor](), list[frozenset[str]]()
    while chunk := list(islice(stream, batch)):
        images = torch.from_numpy(np.stack([resized(image, size) for image, _ in chunk]))
        pixels = normalised(images.permute(0, 3, 1, 2).float() / 255)
        poolings.append(torch.stack(image_features(model, pixels.to(model.device))))
        tags.extend(names for _, names in chunk)
    features = torch.cat(poolings, 1)
    scores = {}
    for group, names in TAG_GROUPS.items():
        prompts = tokenise(tokenizer, [template.format(name) for name in names]).to(model.device)
        similarity = (features @ text_features(model, prompts).T).cpu()
        truth = torch.tensor([[name in seen for name in names] for seen in tags])
        occurring = truth.any(0)
        patches, cls = (float(average_precision(s, truth)[occurring].mean()) for s in similarity)
        scores[group] = TagScores(patches, cls, int(occurring.sum()), len(tags))
    return scores


def average_precision(scores: Tensor, truth: Tensor) -> Tensor:
    """(T,) mean of the precision at the rank of each true image, of (N, T) scores; 0 where nothing is true.

    Equal scores keep the images' order.
    """
    ranked = truth.gather(0, torch.sort(scores, dim=0, descending=True, stable=True).indices).double()
    precision = ranked.cumsum(0) / torch.arange(1, len(ranked) + 1, dtype=torch.float64)[:, None]
    return (precision * ranked).sum(0) / ranked.sum(0).clamp(min=1)
