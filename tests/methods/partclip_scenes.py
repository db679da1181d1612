"""Label maps of a small vocabulary, and a student whose attention is not flat, for tests of PartCLIPSeg's losses."""

from __future__ import annotations

import torch
from tiny_clipseg import GRID, SIDE
from torch import Tensor

from weakly.foundation.clipseg import ClipSeg
from weakly.methods.partclip.attention import Regions, find_objects, find_regions, region_attention
from weakly.methods.partclip.attention_losses import AttentionLoss, attention_loss
from weakly.methods.partclip.model import Decoded, NameEmbeddings, PartClipSeg
from weakly.methods.partclip.names import PartNames

NAMES = PartNames.from_classes(
    ["dog's head", "dog's body", "fish's tail", "dog's tail", "bird's head", "fish's fin", "bird's wing"]
)
BIRD, DOG, FISH, NO_OBJECT = range(4)
NO_CLASS = len(NAMES)
TOKENS = GRID[0] * GRID[1]

RELEASED = {"sep_loss": "hard", "enh_loss": "official", "part_scope": "image"}
NOTHING = AttentionLoss(torch.zeros(()), torch.zeros(()))

Maps = tuple[Tensor, Tensor]


def empty(images: int) -> Maps:
    """Classes and objects of images that show nothing."""
    return torch.full((images, SIDE, SIDE), NO_CLASS), torch.full((images, SIDE, SIDE), NO_OBJECT)


def paint(maps: Maps, image: int, label: int, box: tuple[int, int, int, int]) -> None:
    """A class and its object in the pixels of a box x0, y0, x1, y1."""
    x0, y0, x1, y1 = box
    maps[0][image, y0:y1, x0:x1] = label
    maps[1][image, y0:y1, x0:x1] = NAMES.object_of[label]


def two_images() -> Maps:
    """A dog of two parts inside a ring without a part; a bird beside a fish, and background for a part-less object."""
    maps = empty(2)
    maps[1][0, 8:80, 8:90] = DOG
    paint(maps, 0, 0, (16, 16, 40, 40))
    paint(maps, 0, 1, (40, 20, 80, 70))
    paint(maps, 1, 4, (0, 0, 30, 20))
    paint(maps, 1, 6, (0, 20, 30, 60))
    paint(maps, 1, 2, (50, 10, 70, 96))
    return maps


def random_maps(seed: int) -> Maps:
    """Up to five boxes of parts and one of an object without, in each of two images; always some background."""
    generator = torch.Generator().manual_seed(seed)
    maps = empty(2)
    for image in range(2):
        for index in range(int(torch.randint(1, 6, (), generator=generator))):
            x0, y0 = torch.randint(0, 80, (2,), generator=generator).tolist()
            x1, y1 = torch.randint(1, 50, (2,), generator=generator).tolist()
            box = (x0, y0, min(SIDE, x0 + x1), min(SIDE, y0 + y1))
            paint(maps, image, int(torch.randint(len(NAMES), (), generator=generator)), box)
            if index == 0:
                maps[0][image, box[1] : box[3], box[0] : box[2]] = NO_CLASS
        maps[0][image, -1, -1], maps[1][image, -1, -1] = NO_CLASS, NO_OBJECT
    return maps


def embeddings() -> NameEmbeddings:
    parts, objects = len(NAMES.parts), len(NAMES.objects)
    return NameEmbeddings(
        torch.zeros(parts + objects + 1, 4),
        torch.tensor([*NAMES.part_of, parts + objects]),
        torch.tensor([*(parts + owner for owner in NAMES.object_of), parts + objects]),
        parts,
        objects,
    )


def train(clipseg: ClipSeg, seed: int = 0, **arguments: str) -> tuple[PartClipSeg, Tensor]:
    torch.manual_seed(seed)
    model = PartClipSeg(clipseg, **arguments)
    with torch.no_grad():
        for layer in model.decoder.layers:  # attention that is not flat
            layer.self_attn.q_proj.weight *= 3
            layer.self_attn.k_proj.weight *= 3
    return model, torch.randn(2, 3, SIDE, SIDE)


def looks(model: PartClipSeg, decoded: Decoded, names: NameEmbeddings, parts: Regions, pooling: str) -> Tensor:
    prompts = torch.stack([names.part_prompt[parts.label], names.object_prompt[parts.label]], 1)
    return region_attention(model.decoder.layers[-1].self_attn, decoded.trunk.last_input, parts, prompts, pooling)


def attention_step(
    model: PartClipSeg, decoded: Decoded, names: NameEmbeddings, maps: Maps, pooling: str, **switches: str
) -> AttentionLoss:
    parts = find_regions(maps[0], NO_CLASS, GRID, pooling)
    objects = find_objects(maps[1], NO_OBJECT, GRID, pooling, switches.get("part_scope", "object"))
    v = looks(model, decoded, names, parts, pooling)
    return attention_loss(v, parts, objects, names.object_of, GRID, len(maps[0]), **switches)
