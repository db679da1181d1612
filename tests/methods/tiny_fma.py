"""FMA-WSSS on models with random weights: settings that run in a second, and the pieces tests put together."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from tiny_clip import tiny_clip
from tiny_segmenter import NAMES, tiny_sam_folder

from weakly.data.dataset import Dataset, Record
from weakly.foundation.mask_settings import AutomaticMaskSettings
from weakly.labels import Tags
from weakly.methods.fma.deeplab import DeepLabSettings
from weakly.methods.fma.settings import (
    ClipEsSettings,
    FmaSettings,
    PromptSettings,
    SegmentationPromptSettings,
    ViewSettings,
)
from weakly.methods.image_views import Augmentation
from weakly.methods.semantic_predictor import Inference

MASKS = AutomaticMaskSettings(
    points_per_side=3,
    crop_layers=0,
    nms_threshold=1.0,
    crop_nms_threshold=1.0,
    iou_threshold=0.0,
    whole_iou_offset=1.0,
    stability_threshold=0.0,
    min_region=4,
    level_of="area",
)
"""So permissive that a SAM with random weights finds masks."""

VIEWS = ViewSettings(count=2, crop=32, long=(40, 60))
CLASSIFICATION = PromptSettings(iterations=8, warmup=2, batch_size=4, length=4, lr=0.05)
SEGMENTATION = SegmentationPromptSettings(iterations=6, warmup=2, batch_size=4, length=4, lr=0.05)
DEEPLAB = DeepLabSettings("resnet18", output_stride=16, decoder_channels=16, atrous_rates=(1, 2, 3), aux_channels=8)


def tiny_clip_folder(folder: Path) -> Path:
    """The small CLIP with random weights on disk, in Hugging Face form."""
    clip = tiny_clip()
    clip.model.save_pretrained(folder)
    clip.tokenizer.save_pretrained(folder)
    return folder


def tiny_settings(models: Path, **changes: Any) -> FmaSettings:
    """Settings on the models of :func:`tiny_models`."""
    settings = FmaSettings(
        clip=str(models / "clip"),
        segmenter=str(models / "sam"),
        names={"Red": "cow", "Green": "dog", "Blue": "bus"},
        backgrounds=("grass", "tree"),
        masks=MASKS,
        views=VIEWS,
        classification=CLASSIFICATION,
        segmentation=SEGMENTATION,
        clip_es=ClipEsSettings(templates=("a clean origami {}.",)),
        deeplab=DEEPLAB,
        augmentation=Augmentation(crop=32, short=32, long=64),
        inference=Inference(short=32, long=64),
    )
    return replace(settings, **changes)


def tiny_models(folder: Path) -> Path:
    """A folder with ``clip/`` and ``sam/``."""
    tiny_clip_folder(folder / "clip")
    tiny_sam_folder(folder / "sam")
    return folder


def tagged(dataset: Dataset) -> Dataset:
    """The same images with tags instead of boxes."""
    records = []
    for record in dataset.records:
        labels = np.zeros(0, np.int64) if record.sample.boxes is None else record.sample.boxes.labels
        records.append(Record(replace(record.sample, boxes=None, tags=Tags(labels)), record.truth))
    return replace(dataset, records=tuple(records))


__all__ = ["NAMES", "tagged", "tiny_models", "tiny_settings"]
