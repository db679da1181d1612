"""A SAM small enough for tests, and a dataset of coloured rectangles to go with it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
from PIL import Image

from weakly.data.dataset import Dataset, Record
from weakly.data.images import read_image
from weakly.foundation.sam import SamSegmenter, load_segmenter
from weakly.foundation.small_sam import SmallSamConfig, build_small_sam
from weakly.labels import Boxes, Sample
from weakly.methods.base import ImageSource
from weakly.vocabulary import Vocabulary

NAMES = ("Red", "Green", "Blue")
COLOURS = ((220, 30, 30), (30, 200, 40), (40, 50, 230))
SIZES = ((40, 64), (64, 48), (50, 90), (64, 64))


def tiny_sam_folder(folder: Path, seed: int = 0) -> Path:
    """A SAM with random weights on disk: 64x64 input, 32 channels on an 8x8 grid, tokens 32 wide."""
    config = SmallSamConfig(image_size=64, width=32, stem=8, stages=(8, 16, 16, 16), blocks=(1, 1, 1, 1), mlp_dim=32)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = build_small_sam(config)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "small_sam.json").write_text(json.dumps(config.to_dict()))
    tied = "prompt_encoder.shared_embedding.positional_embedding"
    state = {k: v.detach().contiguous() for k, v in model.state_dict().items() if k != tied}
    safetensors.torch.save_file(state, folder / "model.safetensors")
    return folder


def tiny_segmenter(folder: Path, seed: int = 0) -> SamSegmenter:
    return load_segmenter(str(tiny_sam_folder(folder, seed)))


def rectangle_dataset(folder: Path, images: int = 8, *, split: str = "train", seed: int = 0) -> Dataset:
    """Images of several sizes with 0 to 3 coloured rectangles, their boxes and their polygons."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    records = []
    for index in range(images):
        height, width = SIZES[index % len(SIZES)]
        pixels = rng.integers(90, 130, (height, width, 3)).astype(np.uint8)
        count = index % 4
        boxes, labels = np.zeros((count, 4), np.float32), rng.integers(0, 3, count)
        for box, label in zip(boxes, labels, strict=True):
            x0, y0 = rng.integers(0, width - 20), rng.integers(0, height - 20)
            x1, y1 = x0 + rng.integers(8, 20), y0 + rng.integers(8, 20)
            pixels[y0:y1, x0:x1] = COLOURS[label]
            box[:] = (x0, y0, x1, y1)
        path = folder / f"{split}-{index}.png"
        Image.fromarray(pixels).save(path)
        sample = Sample(index, path, (height, width), boxes=Boxes(boxes, labels))
        truth = tuple((int(label), [_ring(box)]) for label, box in zip(labels, boxes.tolist(), strict=True))
        records.append(Record(sample, truth))
    return Dataset("rectangles", split, Vocabulary.from_names(NAMES), tuple(records))


def sources_of(dataset: Dataset) -> list[ImageSource]:
    return [source_of(sample.image_id, sample.path) for sample in dataset]


def source_of(image_id: int | str, path: Path) -> ImageSource:
    return ImageSource(image_id, path, lambda: read_image(path))


def _ring(box: list[float]) -> list[float]:
    x0, y0, x1, y1 = box
    return [x0, y0, x1, y0, x1, y1, x0, y1]
