"""What the paper of WPS-SAM prints, in per cent (spec wps-sam, section 7).

Figures are mIoU and mACC. Rows are named as in :mod:`~weakly.methods.wps.tables`. Table 1 is lost in the text at hand.
"""

from __future__ import annotations

PAPER = "WPS-SAM: Towards Weakly-Supervised Part Segmentation with Foundation Models (Wu et al., ECCV 2024)"
SOURCE = (
    "Tables 2 to 7 and A to C of arXiv 2407.10131; those of WPS-SAM and of its variants are probably by the released "
    "evaluator (official_rowwise in our records), with which ours do not compare"
)

PARTIMAGENET, PASCAL_PART = "PartImageNet val", "Pascal-Part val"

Figures = tuple[float | None, ...]

MAIN: tuple[tuple[str, str, str, str, str, Figures], ...] = (
    ("deeplab", "DeepLabv3+", "ECCV 2018", "ResNet-50", "mask", (60.57, 71.07)),
    ("maskformer-r50", "MaskFormer", "NeurIPS 2021", "ResNet-50", "mask", (60.3, 72.70)),
    ("compositor-r50", "Compositor", "CVPR 2023", "ResNet-50", "mask", (61.44, 73.41)),
    ("segformer", "SegFormer", "NeurIPS 2021", "MiT-B2", "mask", (61.97, 73.77)),
    ("maskformer-swin-t", "MaskFormer", "NeurIPS 2021", "Swin-T", "mask", (63.96, 77.37)),
    ("maskformer-dual-swin-t", "MaskFormer-Dual", "NeurIPS 2021", "Swin-T", "mask", (61.69, 75.64)),
    ("compositor-swin-t", "Compositor", "CVPR 2023", "Swin-T", "mask", (64.64, 78.31)),
    ("maskformer", "MaskFormer", "NeurIPS 2021", "Swin-B", "mask", (65.24, 78.84)),
    ("wps", "WPS-SAM", "", "ViT-B", "box", (68.93, 79.53)),
    ("sim", "SIM", "CVPR 2023", "ResNet-101", "tags", (49.51, 63.27)),
    ("beco", "BECO", "CVPR 2023", "ResNet-101", "tags", (42.37, 53.07)),
    ("fma", "FMA-WSSS", "WACV 2024", "ResNet-101", "tags", (None, None)),
)
"""Table 2: key, method, venue, backbone, annotation."""

PASCAL: tuple[tuple[str, str, str, str, str, Figures], ...] = (
    ("maskformer-r50", "MaskFormer", "NeurIPS 2021", "ResNet-50", "mask", (47.61, 58.59)),
    ("maskformer-dual-r50", "MaskFormer-Dual", "NeurIPS 2021", "ResNet-50", "mask", (46.60, 57.96)),
    ("compositor-r50", "Compositor", "CVPR 2023", "ResNet-50", "mask", (48.01, 58.83)),
    ("maskformer-swin-t", "MaskFormer", "NeurIPS 2021", "Swin-T", "mask", (55.42, 67.21)),
    ("maskformer-dual-swin-t", "MaskFormer-Dual", "NeurIPS 2021", "Swin-T", "mask", (54.21, 66.42)),
    ("compositor-swin-t", "Compositor", "CVPR 2023", "Swin-T", "mask", (55.92, 67.63)),
    ("maskformer", "MaskFormer", "NeurIPS 2021", "Swin-B", "mask", (56.83, 68.46)),
    ("wps", "WPS-SAM", "", "ViT-B", "box", (60.49, 71.25)),
    ("sim", "SIM", "CVPR 2023", "ResNet-101", "tags", (37.82, 49.56)),
    ("beco", "BECO", "CVPR 2023", "ResNet-101", "tags", (34.53, 46.66)),
    ("fma", "FMA-WSSS", "WACV 2024", "ResNet-101", "tags", (None, 54.3)),
)
"""Table 3: likewise."""

DET_SAM: tuple[tuple[str, str, str, str, Figures], ...] = (
    ("faster-rcnn", "Det-SAM", "Faster R-CNN", "ResNet-50", (35.0, 63.7, 74.8)),
    ("detr", "Det-SAM", "DETR", "ResNet-50", (31.0, 61.4, 70.2)),
    ("faster-rcnn-sam", "Det-SAM", "Faster R-CNN", "SAM encoder", (24.2, 54.6, 65.2)),
    ("detr-sam", "Det-SAM", "DETR", "SAM encoder", (26.3, 56.3, 68.6)),
    ("wps", "WPS-SAM", "", "", (None, 68.93, 79.53)),
)
"""Table 4: key, framework, detector, its backbone; mAP of the boxes first."""

PSEUDO_LABELS: tuple[tuple[str, str, str, str, Figures], ...] = (
    ("masks", "MaskFormer", "Swin-B", "true masks", (65.24, 78.84)),
    ("pseudo-masks", "MaskFormer", "Swin-B", "boxes, as SAM's pseudo-masks", (56.83, 69.57)),
    ("wps", "WPS-SAM", "ViT-B", "boxes", (68.93, 79.53)),
)
"""Table 5: key, method, backbone, supervision."""

SUPERVISION: tuple[tuple[str, str, str, Figures], ...] = (
    ("point", "point", "centre of the box", (52.28, 66.85)),
    ("box", "box", "", (68.93, 79.53)),
)
"""Table 6: key, supervision, where points are."""

QUERIES: dict[int, Figures] = {
    25: (68.93, 79.53),
    50: (64.74, 75.07),
    75: (62.93, 72.40),
    100: (62.71, 71.80),
}
"""Table 7: S."""

ENCODER: tuple[tuple[str, str, str, Figures], ...] = (
    ("fine-tuned", "fine-tuned", "127 h", (65.16, 75.79)),
    ("frozen", "frozen", "59 h", (68.93, 79.53)),
)
"""Table A: key, SAM's encoder, training time."""

PROMPTER: tuple[tuple[str, str, Figures], ...] = (
    ("anchors", "anchor-based, CNN", (57.23, 68.11)),
    ("queries", "query-based, transformer", (68.93, 79.53)),
)
"""Table B: key, architecture of the prompter."""

WEIGHTS: tuple[tuple[tuple[float, float, float, float], Figures], ...] = (
    ((1, 1, 1, 1), (39.35, 47.40)),
    ((5, 1, 5, 1), (56.94, 69.59)),
    ((5, 1, 10, 1), (61.93, 77.07)),
    ((5, 10, 10, 1), (67.24, 78.49)),
    ((5, 20, 10, 1), (68.93, 79.53)),
    ((5, 50, 10, 1), (67.82, 77.54)),
)
"""Table C: lambda_cls, lambda_reg, alpha, beta; the printed heading has them in another order than the text."""
