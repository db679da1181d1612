"""A CLIPSeg small enough for tests, on disk, and pictures of boxes and disks whose parts have names."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from weakly.data.dataset import Dataset, Record
from weakly.foundation.clipseg import attach_decoder
from weakly.foundation.pretraining.small_clip import SmallClipConfig, build_small_clip, build_tokenizer
from weakly.labels import Sample
from weakly.methods.partclip.settings import PartClipSettings
from weakly.vocabulary import Category, Vocabulary

SIDE = 32
VOCABULARY = Vocabulary(
    tuple(
        Category(f"{whole}'s {part}", object=whole)
        for whole, part in (("box", "head"), ("box", "body"), ("disk", "head"), ("disk", "tail"), ("ring", "tail"))
    )
)
"""``ring`` is never drawn unless a test does."""

SIZES = ((40, 64), (64, 48), (30, 90), (64, 64))
COLOURS = ((220, 30, 30), (30, 200, 40), (40, 50, 230), (200, 200, 40), (30, 200, 200))


def tiny_clipseg_folder(folder: Path, seed: int = 0) -> Path:
    """Random weights: 32x32 pixels in 4x4 patches, three taps 16 wide, 8 joint dimensions, a decoder 8 wide."""
    config = SmallClipConfig(
        image_size=SIDE,
        patch_size=8,
        width=16,
        layers=3,
        heads=2,
        text_width=16,
        text_layers=1,
        text_heads=2,
        projection=8,
    )
    tokenizer = build_tokenizer()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        towers = build_small_clip(config, tokenizer)
        with torch.no_grad():  # the defaults make every attention flat and every text the same
            for parameter in towers.parameters():
                if parameter.ndim > 1:
                    parameter *= 3
        model = attach_decoder(towers, (0, 1, 2), reduce_dim=8, heads=2, hidden=16)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    told = {"size": {"height": SIDE, "width": SIDE}, "image_mean": [0.5] * 3, "image_std": [0.25] * 3}
    (folder / "preprocessor_config.json").write_text(json.dumps(told))
    return folder


def tiny_settings(clipseg: Path, **changes: Any) -> PartClipSettings:
    return replace(PartClipSettings(clipseg=str(clipseg)), **changes)


def part_dataset(folder: Path, images: int = 6, *, split: str = "train", seed: int = 0, empty: int = 0) -> Dataset:
    """Images of several sizes with one object of two parts side by side; the first ``empty`` ones show nothing."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    records = []
    for index in range(images):
        height, width = SIZES[index % len(SIZES)]
        pixels = rng.integers(90, 130, (height, width, 3)).astype(np.uint8)
        truth = []
        labels = () if index < empty else ((0, 1), (2, 3))[index % 2]
        x, y = int(rng.integers(2, 8)), int(rng.integers(2, 8))
        for label in labels:
            w, h = int(rng.integers(10, 18)), int(rng.integers(10, 18))
            pixels[y : y + h, x : x + w] = COLOURS[label]
            truth.append((label, [[x, y, x + w, y, x + w, y + h, x, y + h]]))
            x += w
        path = folder / f"{split}-{index}.png"
        Image.fromarray(pixels).save(path)
        records.append(Record(Sample(index, path, (height, width)), tuple(truth)))
    return Dataset("boxes", split, VOCABULARY, tuple(records))
