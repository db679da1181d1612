"""What the paper of FMA-WSSS prints in Tables 1 to 6: mIoU in per cent, by table, row and column."""

from __future__ import annotations

from collections.abc import Mapping

PAPER = "Foundation Model Assisted Weakly Supervised Semantic Segmentation (Yang and Gong, WACV 2024)"
SOURCE = "Tables 1 to 6 of arXiv 2312.03585; PASCAL VOC 2012"

PUBLISHED: Mapping[str, Mapping[str, float]] = {
    "1": {"clip-es": 68.7, "m0": 68.2, "m1": 71.5, "m2": 71.6, "m3": 74.2},
    "2": {"unified": 72.6, "append": 73.3, "prepend": 73.6, "nameless": 74.2},
    "3": {
        "deeplab-none": 75.9,
        "deeplab-crf": 75.5,
        "deeplab-sams": 77.3,
        "mask2former-none": 82.6,
        "mask2former-crf": 81.4,
        "mask2former-sams": 82.2,
    },
    "4": {
        "cam": 60.7,
        "caa": 69.1,
        "voting": 69.5,
        "caa-voting": 72.3,
        "plain": 71.0,
        "more-whole": 71.2,
        "priority": 71.5,
        "both": 72.0,
        "filter": 73.5,
        "caa-sams": 74.2,
    },
    "5": {"bce": 65.9, "mcl": 71.5, "mcl-ce": 52.1, "mcl-cal": 74.2},
}
"""Table and row; rows are named as in :mod:`~weakly.methods.fma.tables`."""

SEEDS_OF_OTHERS: tuple[tuple[str, str, float, float], ...] = (
    ("AdvCAM", "RW+CRF", 55.6, 69.9),
    ("MCTformer", "RW+CRF", 61.7, 69.1),
    ("CLIMS", "RW+CRF", 56.6, 70.5),
    ("ViT-PCM", "CRF", 67.7, 71.4),
    ("AdvCAM+W-OoD", "RW+CRF", 59.1, 72.1),
    ("CLIP-ES", "CAA+CRF", 58.6, 75.0),
    ("Jiang et al.", "SAM", 47.1, 61.9),
    ("WeakTr", "CRF", 66.2, 68.7),
    ("FMA-WSSS", "CAA+SAM", 62.6, 80.4),
)
"""Table 6: method, post-processing, and mIoU of activation maps and of seeds."""
