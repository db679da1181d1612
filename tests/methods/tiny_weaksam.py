"""WeakSAM on models with random weights: settings that run in a second."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import tiny_students
import tiny_wsod
from tiny_fma import tagged
from tiny_segmenter import rectangle_dataset

from weakly.data.dataset import Dataset, Instance
from weakly.methods.weaksam.augment import Augmentation
from weakly.methods.weaksam.class_tokens import VitSettings
from weakly.methods.weaksam.clue_data import ClueAugmentation
from weakly.methods.weaksam.clue_training import ClueTraining
from weakly.methods.weaksam.clues import ClueSettings
from weakly.methods.weaksam.peaks import CrossRule, PeakRule, PeakSettings
from weakly.methods.weaksam.predictor import Inference
from weakly.methods.weaksam.proposal_settings import GridSettings, LoadSettings, ProposalSettings
from weakly.methods.weaksam.settings import WeakSamSettings
from weakly.methods.weaksam.wsod_inference import WsodInference

CLUES = ClueSettings(
    vit=VitSettings(width=24, depth=2, heads=2, patch=8, image=16),
    scales=(1.0,),
    train=ClueTraining(
        epochs=2, batch=4, lr=0.01, lr_base_batch=4, warmup=1, augmentation=ClueAugmentation(crop=16, scale=(0.5, 1.0))
    ),
)
PEAKS = PeakSettings(PeakRule(kernel=9), CrossRule(kernel=17))
PROPOSALS = ProposalSettings(
    level_of="area", grid=GridSettings(side=3, pred_iou=0.0, stability=0.0, nms=0.9), prompts_per_batch=16
)
"""So permissive that a SAM with random weights proposes something."""


def tiny_settings(models: Path, **changes: Any) -> WeakSamSettings:
    """Settings on the segmenter in ``sam/`` of a folder."""
    settings = WeakSamSettings(
        segmenter=str(models / "sam"),
        clues=CLUES,
        peaks=PEAKS,
        proposals=PROPOSALS,
        load=LoadSettings(min_side=4),
        wsod=tiny_wsod.SETTINGS,
        wsod_training=tiny_wsod.TRAINING,
        wsod_inference=WsodInference(sizes=(48,), max_size=96, flip=False),
        detector=tiny_students.RCNN,
        augmentation=Augmentation(side=64, scale=(0.8, 1.4)),
        inference=Inference(short=(64,), long=64),
    )
    return replace(settings, **changes)


def tagged_objects(folder: Path, images: int = 6, **options: Any) -> Dataset:
    """Coloured rectangles with tags to learn from, and boxes and masks to score."""
    boxed = rectangle_dataset(folder, images, **options)
    records = []
    for given, record in zip(boxed.records, tagged(boxed).records, strict=True):
        boxes = given.sample.boxes
        instances = (
            ()
            if boxes is None
            else tuple(
                Instance(label, tuple(box), number=number, segmentation=segmentation)
                for number, (box, (label, segmentation)) in enumerate(
                    zip(boxes.xyxy.tolist(), given.truth, strict=True), 1
                )
            )
        )
        records.append(replace(record, truth=(), instances=instances))
    return replace(boxed, records=tuple(records))
