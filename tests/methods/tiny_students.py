"""The four students of WeakSAM at the size of tests, and images of coloured rectangles with pseudo instances."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from weakly.methods.weaksam.augment import Augmentation
from weakly.methods.weaksam.detectors import Detector, DetectorSettings
from weakly.methods.weaksam.mask2former import Mask2FormerSettings
from weakly.methods.weaksam.query_detectors import ResNetSettings
from weakly.methods.weaksam.roi_drop import DropSettings
from weakly.methods.weaksam.rt_detr import RtDetrSettings
from weakly.methods.weaksam.students import StudentSettings, build_student
from weakly.methods.weaksam.targets import PseudoInstances, WeakSamData
from weakly.segmentation import encode_masks

COLOURS = ((220, 30, 30), (30, 200, 40), (40, 50, 230))
SIZES = ((40, 64), (64, 48), (50, 90), (64, 64), (64, 64))
RESNET = ResNetSettings(block="basic", channels=(8, 8, 16, 16), depths=(1, 1, 1, 1), stem=8)
RCNN = DetectorSettings(
    backbone="resnet18",
    width=32,
    hidden=32,
    anchors=(8, 16, 32, 64, 128),
    pre_nms=100,
    proposals=50,
    rois=32,
    roi_scale=56,
    mask_width=16,
    min_score=0.0,
    detections=5,
    drop=DropSettings(start=1),
)
STUDENTS: dict[str, StudentSettings] = {
    "faster_rcnn": RCNN,
    "mask_rcnn": RCNN,
    "rt_detr": RtDetrSettings(
        RESNET, queries=20, width=32, ffn=32, heads=4, decoder_layers=2, denoising=8, min_score=0.0, detections=5
    ),
    "mask2former": Mask2FormerSettings(
        RESNET,
        queries=8,
        width=64,
        encoder_layers=1,
        encoder_ffn=32,
        decoder_layers=2,
        decoder_ffn=32,
        heads=4,
        points=64,
        min_score=0.0,
        detections=5,
    ),
}


def tiny_student(kind: str, classes: int = 3, seed: int = 0) -> Detector:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build_student(kind, STUDENTS[kind], classes)  # type: ignore[arg-type]


def rectangles(folder: Path, *, masks: bool, side: int = 64) -> WeakSamData:
    """Five images: 1, 2, 3, 1 and 0 rectangles whose colours are their categories."""
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True, exist_ok=True)
    images, instances = [], []
    for index, (size, count) in enumerate(zip(SIZES, (1, 2, 3, 1, 0), strict=True)):
        pixels = np.full((*size, 3), 110, np.uint8)
        found = np.zeros((count, *size), bool)
        labels, boxes = rng.integers(0, 3, count), np.zeros((count, 4), np.float32)
        for i in range(count):
            x0, y0 = int(rng.integers(0, size[1] - 24)), int(rng.integers(0, size[0] - 24))
            boxes[i] = (x0, y0, x0 + 24, y0 + 20)
            pixels[y0 : y0 + 20, x0 : x0 + 24] = COLOURS[labels[i]]
            found[i, y0 : y0 + 20, x0 : x0 + 24] = True
        images.append(folder / f"{index}.png")
        Image.fromarray(pixels).save(images[-1])
        instances.append(PseudoInstances(boxes, labels, encode_masks(found) if masks else None))
    return WeakSamData(tuple(images), tuple(instances), Augmentation(side=side, scale=(0.8, 1.4)))
