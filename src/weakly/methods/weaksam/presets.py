"""The presets of WeakSAM: what its published figures were made with (spec weaksam, sections 1, 3.4, 5, 6 and 12).

Models and data are the recipe's, but for the weights that networks start from. Published iterations are given as
epochs of 16 images, and the steps of the students' published rates are the cosine that every method shares.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from weakly.methods.weaksam.predictor import PUBLISHED_SHORTS

Values = Mapping[str, Any]

SGD: Values = {
    "optimizer": "sgd",
    "lr": 0.02,
    "momentum": 0.9,
    "weight_decay": 1e-4,
    "grad_clip": None,
    "warmup_steps": 30,
    "batch_size": 16,
}
"""Faster R-CNN on VOC 2007, and Mask R-CNN."""

RT_DETR_ADAMW: Values = {
    "optimizer": "adamw",
    "lr": 9e-5,
    "weight_decay": 1e-4,
    "grad_clip": 0.1,
    "warmup_steps": 0,
    "batch_size": 16,
}
"""DINO's on VOC 2007, for RT-DETR in its place."""

MASK2FORMER_ADAMW: Values = {
    "optimizer": "adamw",
    "lr": 1e-4,
    "weight_decay": 0.05,
    "grad_clip": 0.01,
    "warmup_steps": 0,
    "batch_size": 16,
}
"""Mask2Former."""

ONE_VIEW: Values = {"short": [800], "long": 1333, "flip": False}
"""At which size instance heads look at an image."""

_IMAGENET = "IMAGENET1K_V1"
_TEST_SIZES = [480, 576, 688, 864, 1000, 1200]
_DETR_SIZES = [488, 576, 688, 864, 1200]

# Large-scale jitter that comes close to short sides of 480 to 1,216 (VOC) and of 640 to 800 (COCO).
_VOC_JITTER: Values = {"side": 1333, "scale": [0.5, 1.2]}
_COCO_JITTER: Values = {"side": 1088, "scale": [0.75, 1.0]}

_SHARED: Values = {
    "clues": {
        "vit": {"pretrained": "deit_small_patch16_224"},
        "train": {"augmentation": {"rand_augment": 9}},
    },
    "wsod": {"weights": _IMAGENET},
}

_VOC07: Values = {**_SHARED}
_VOC12: Values = {
    **_SHARED,
    "wsod_training": {"iterations": 32_000, "seed": 1},
    "pseudo_truth": {"tau_score": 0.5},
}
_COCO: Values = {
    **_SHARED,
    "load": {"min_side": 2},
    "wsod_training": {"iterations": 125_000, "steps": [82_500, 115_000], "warmup": 500, "gate_lr": 1e-3},
    "pseudo_truth": {"tau_score": 0.5},
}


def _oicr(data: Values, lr: float, epoch: int, epochs: int, steps: list[int], sizes: list[int]) -> Values:
    """``data`` with WSOD2's OICR, which has no drop block; schedules are published in epochs of 4 images a step."""
    return {
        **data,
        "wsod": {
            "weights": _IMAGENET,
            "head": "oicr",
            "mining": "near_top",
            "branch_weights": [1.0, 1.0, 1.0],
            "drop_block": None,
            "frozen_groups": 0,  # the port means to freeze two groups and freezes none
        },
        "wsod_training": {
            "iterations": epochs * epoch,
            "batch": 4,
            "lr": lr,
            "refine_lr": 10.0,
            "steps": [step * epoch for step in steps],
            "warmup": 500,
            "warmup_factor": 1e-3,
            "sizes": sizes,
        },
        "wsod_inference": {"sizes": sizes, "flip": False},
    }


_VOC07_OICR = _oicr(_VOC07, 8e-6, epoch=1253, epochs=50, steps=[36], sizes=_DETR_SIZES)
_VOC12_OICR = _oicr(_VOC12, 8e-6, epoch=2885, epochs=25, steps=[18], sizes=_DETR_SIZES)
_COCO_OICR = _oicr(_COCO, 1e-5, epoch=20_521, epochs=12, steps=[8, 11], sizes=_TEST_SIZES)


def _faster_rcnn(drop: Values, short: list[int], long: int, jitter: Values) -> Values:
    return {
        "detector": {"weights": _IMAGENET, "drop": dict(drop)},
        "augmentation": dict(jitter),
        "inference": {"short": short, "long": long, "flip": True},
    }


_FASTER_RCNN_VOC07 = _faster_rcnn({}, list(PUBLISHED_SHORTS), 2000, _VOC_JITTER)
# The released configuration of VOC 2012 trains without RoI drop.
_FASTER_RCNN_VOC12 = _faster_rcnn({"mode": "none", "start": 4000}, _TEST_SIZES, 2000, _VOC_JITTER)
_FASTER_RCNN_COCO = _faster_rcnn(
    {"cls": 5.0, "reg": 4.0, "start": 10_000}, list(range(480, 1217, 32)), 4000, _COCO_JITTER
)
_VOC07_SGD = {**SGD, "epochs": 29}  # 9,000 steps
_VOC12_SGD = {**SGD, "lr": 0.015, "warmup_steps": 60, "epochs": 22}  # 16,000 steps
_COCO_SGD = {**SGD, "warmup_steps": 1000, "epochs": 17}  # 85,000 steps

_RT_DETR: Values = {
    "student": "rt_detr",
    "rt_detr": {"resnet": {"pretrained": "microsoft/resnet-50"}, "detections": 300},
}
_RT_DETR_VOC: Values = {
    **_RT_DETR,
    "augmentation": dict(_VOC_JITTER),
    "inference": {"short": _DETR_SIZES, "long": 2000, "flip": True, "nms": 0.6, "detections": 300},
}
_RT_DETR_COCO: Values = {
    **_RT_DETR,
    "augmentation": dict(_COCO_JITTER),
    "inference": {**ONE_VIEW, "detections": 300},
}

_MASK_RCNN: Values = {
    "student": "mask_rcnn",
    "detector": {"weights": _IMAGENET, "drop": {"mode": "none"}},  # its published settings state none
    "augmentation": dict(_COCO_JITTER),
    "inference": dict(ONE_VIEW),
}
_MASK2FORMER: Values = {
    "student": "mask2former",
    "mask2former": {"resnet": {"pretrained": "microsoft/resnet-50"}},
    "augmentation": {"side": 1024, "scale": [0.1, 2.0]},
    "inference": dict(ONE_VIEW),
}


def _preset(data: Values, student: Values, optimisation: Values) -> Values:
    return {"settings": {**data, **student}, "optimisation": dict(optimisation)}


PRESETS: dict[str, Values] = {
    "default": {},
    # MIST and Faster R-CNN.
    "voc07": _preset(_VOC07, _FASTER_RCNN_VOC07, _VOC07_SGD),
    "voc12": _preset(_VOC12, _FASTER_RCNN_VOC12, _VOC12_SGD),
    "coco14": _preset(_COCO, _FASTER_RCNN_COCO, _COCO_SGD),
    # OICR and Faster R-CNN.
    "voc07_oicr": _preset(_VOC07_OICR, _FASTER_RCNN_VOC07, _VOC07_SGD),
    "voc12_oicr": _preset(_VOC12_OICR, _FASTER_RCNN_VOC12, _VOC12_SGD),
    "coco14_oicr": _preset(_COCO_OICR, _FASTER_RCNN_COCO, _COCO_SGD),
    # MIST and RT-DETR in the place of DINO; VOC 2007 is gone through three times in a published epoch.
    "voc07_rt_detr": _preset(_VOC07, _RT_DETR_VOC, {**RT_DETR_ADAMW, "epochs": 42}),
    "voc12_rt_detr": _preset(_VOC12, _RT_DETR_VOC, {**RT_DETR_ADAMW, "lr": 8e-5, "weight_decay": 3e-4, "epochs": 12}),
    "coco14_rt_detr": _preset(_COCO, _RT_DETR_COCO, {**RT_DETR_ADAMW, "lr": 1e-4, "epochs": 12}),
    # Instance masks: 9,000 and 33,069 steps on the 10,582 images of VOC's trainaug, 90,000 and 368,750 on COCO 2017.
    "voc12_mask_rcnn": _preset(_VOC12, _MASK_RCNN, {**SGD, "epochs": 14}),
    "voc12_mask2former": _preset(_VOC12, _MASK2FORMER, {**MASK2FORMER_ADAMW, "epochs": 50}),
    "coco17_mask_rcnn": _preset(_COCO, _MASK_RCNN, {**SGD, "warmup_steps": 1000, "epochs": 12}),
    "coco17_mask2former": _preset(_COCO, _MASK2FORMER, {**MASK2FORMER_ADAMW, "epochs": 50}),
}
"""Sections of a recipe by preset; only what departs from the defaults."""
