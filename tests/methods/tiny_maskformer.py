"""The pseudo-mask baseline at the size of tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from weakly.methods.baselines.pseudo_mask.model import MaskFormerSettings
from weakly.methods.baselines.pseudo_mask.settings import PseudoMaskSettings
from weakly.methods.image_views import Augmentation
from weakly.methods.semantic_predictor import Inference

RESNET = MaskFormerSettings(
    backbone="resnet",
    embed_dim=8,
    depths=(1, 1, 1, 1),
    queries=6,
    width=64,
    decoder_layers=2,
    decoder_ffn=16,
    attention_heads=2,
)
SWIN = MaskFormerSettings(
    embed_dim=8,
    depths=(1, 1, 1, 1),
    heads=(1, 1, 2, 2),
    window=4,
    queries=6,
    width=64,
    decoder_layers=2,
    decoder_ffn=16,
    attention_heads=2,
)


def tiny_settings(segmenter: Path, **changes: Any) -> PseudoMaskSettings:
    values: dict[str, Any] = {
        "segmenter": str(segmenter),
        "maskformer": RESNET,
        "augmentation": Augmentation(crop=32, short=32, long=128),
        "inference": Inference(short=32, long=128),
    }
    return PseudoMaskSettings(**{**values, **changes})
