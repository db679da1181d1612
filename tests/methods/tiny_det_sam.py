"""Det-SAM's four detectors at the size of tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from weakly.methods.baselines.det_sam.settings import DetrSettings, DetSamSettings, RcnnSettings

KINDS = [
    ("faster-rcnn", "resnet18"),
    ("faster-rcnn", "segmenter"),
    ("detr", "resnet18"),
    ("detr", "segmenter"),
]

RCNN: dict[str, Any] = {
    "width": 32,
    "hidden": 32,
    "pre_nms": 60,
    "proposals": 30,
    "anchors_per_image": 32,
    "rois": 16,
    "roi_scale": 32,
}


def tiny_settings(segmenter: Path, detector: str, backbone: str, **changes: Any) -> DetSamSettings:
    """Of the tiny SAM's 64 px, with an embedding of stride 8."""
    pyramid = (
        {"anchors": (8, 16, 32), "scales": (2, 1, 0.5)} if backbone == "segmenter" else {"anchors": (4, 8, 16, 32, 64)}
    )
    values: dict[str, Any] = {
        "segmenter": str(segmenter),
        "detector": detector,
        "backbone": backbone,
        "side": 64,
        "faster_rcnn": RcnnSettings(**RCNN, **pyramid),
        "detr": DetrSettings(
            queries=6, width=32, heads=4, layers=2, ffn=32, dropout=0.0, downsamples=1, position="tokens"
        ),
        "score_threshold": 0.3,
        "detections": 5,
    }
    return DetSamSettings(**{**values, **changes})
