"""What the paper of PartCLIPSeg prints, in per cent (spec partclipseg, section 8).

``PartCLIPSeg`` is the mean of five runs. Rows are named as in :mod:`~weakly.methods.partclip.tables`.
"""

from __future__ import annotations

from collections.abc import Mapping

PAPER = "Understanding Multi-Granularity for Open-Vocabulary Part Segmentation (Choi et al., NeurIPS 2024)"
SOURCE = "Tables 1 to 7 and A4 to A8 of arXiv 2406.11384, and the README of OV-PARTS (table O)"

PASCAL, ADE, PARTIMAGENET = "Pascal-Part-116", "ADE20K-Part-234", "PartImageNet-40"

Figures = tuple[float | None, ...]

MAIN: Mapping[str, tuple[tuple[str, str, str, Figures], ...]] = {
    "1": (
        ("zsseg", "ZSSeg+", "ResNet-50", (38.05, 3.38, 6.20, 54.43, 19.04, 28.21)),
        ("vlpart", "VLPart", "ResNet-50", (35.21, 9.04, 14.39, 42.61, 18.70, 25.99)),
        ("clipseg", "CLIPSeg", "ViT-B/16", (27.79, 13.27, 17.96, 48.91, 27.54, 35.24)),
        ("cat-seg", "CAT-Seg", "ViT-B/16", (28.17, 25.42, 26.72, 36.20, 28.72, 32.03)),
        ("partclip", "PartCLIPSeg", "ViT-B/16", (43.91, 23.56, 30.67, 50.02, 31.67, 38.79)),
    ),
    "2": (
        ("zsseg", "ZSSeg+", "ResNet-50", (32.20, 0.89, 1.74, 43.19, 27.84, 33.85)),
        ("clipseg", "CLIPSeg", "ViT-B/16", (3.14, 0.55, 0.93, 38.15, 30.92, 34.15)),
        ("cat-seg", "CAT-Seg", "ViT-B/16", (7.02, 2.36, 3.53, 33.80, 25.93, 29.34)),
        ("partclip", "PartCLIPSeg", "ViT-B/16", (14.15, 9.52, 11.38, 38.37, 38.82, 38.60)),
    ),
    "3": (
        ("clipseg", "CLIPSeg", "ViT-B/16", (32.39, 12.27, 17.80, 53.91, 37.17, 44.00)),
        ("partclip", "PartCLIPSeg", "ViT-B/16", (38.82, 19.47, 25.94, 56.26, 51.65, 53.85)),
    ),
}
"""Key, method, backbone; seen, unseen and harmonic mIoU in Pred-All, then in Oracle-Obj."""

STANDARD_ERRORS: Mapping[str, Figures] = {
    "1": (0.45, 0.21, 0.09, 0.51, 0.29, 0.13),
    "2": (0.51, 0.13, 0.10, 0.14, 0.31, 0.08),
    "3": (0.74, 0.45, 0.32, 0.29, 0.62, 0.37),
}
"""Of PartCLIPSeg in the tables above."""

CROSS_DATASET: tuple[tuple[str, str, str, Figures], ...] = (
    ("partimagenet-clipseg", PARTIMAGENET, "CLIPSeg", (11.72, 14.87)),
    ("partimagenet-partclip", PARTIMAGENET, "PartCLIPSeg", (14.74, 19.86)),
    ("ade-clipseg", ADE, "CLIPSeg", (5.41, 17.82)),
    ("ade-partclip", ADE, "PartCLIPSeg", (10.37, 17.94)),
)
"""Table 4: key, trained on, method; one figure in Pred-All and one in Oracle-Obj on Pascal-Part-116."""

ATTENTION_LOSSES: tuple[tuple[str, str, str, str, Figures], ...] = (
    ("none", PASCAL, "", "", (43.86, 21.89, 29.20, 49.09, 31.26, 38.20)),
    ("separation", PASCAL, "x", "", (44.01, 23.18, 30.37, 50.37, 31.45, 38.72)),
    ("both", PASCAL, "x", "x", (43.91, 23.56, 30.67, 50.02, 31.67, 38.79)),
    ("none-ade", ADE, "", "", (10.86, 8.33, 9.43, 37.39, 36.49, 36.93)),
    ("separation-ade", ADE, "x", "", (12.78, 9.38, 10.82, 39.46, 36.04, 37.67)),
    ("both-ade", ADE, "x", "x", (14.15, 9.52, 11.38, 38.37, 38.82, 38.60)),
)
"""Table 5: key, data, L_sep, L_enh; figures as in the main tables."""

BOUNDARIES: tuple[tuple[str, str, Figures], ...] = (
    ("zsseg", "ZSSeg+", (33.01, 26.76, 29.56)),
    ("clipseg", "CLIPSeg", (34.67, 32.20, 33.39)),
    ("cat-seg", "CAT-Seg", (34.17, 30.14, 32.03)),
    ("partclip", "PartCLIPSeg", (36.15, 39.07, 37.55)),
)
"""Table 6: key, method; seen, unseen and harmonic "Boundary IoU" in Oracle-Obj."""

SMALL_PARTS: tuple[tuple[str, str, str, Figures], ...] = (
    ("eye-clipseg", "eye", "CLIPSeg", (3.33, 18.77, 3.65, 16.05, 0.00, 15.30)),
    ("eye-partclip", "eye", "PartCLIPSeg", (1.95, 31.01, 28.16, 32.79, 0.67, 29.16)),
    ("neck-clipseg", "neck", "CLIPSeg", (19.09, 6.57, 0.78, 8.12, 8.47, 30.93)),
    ("neck-partclip", "neck", "PartCLIPSeg", (32.51, 12.00, 2.75, 16.37, 18.80, 50.71)),
    ("leg-clipseg", "leg", "CLIPSeg", (19.61, 38.62, 27.85, 39.34, 52.63, 52.67)),
    ("leg-partclip", "leg", "PartCLIPSeg", (31.12, 44.82, 63.78, 41.55, 54.73, 55.35)),
)
"""Table 7: key, part, method; IoU in Oracle-Obj of :data:`ANIMALS`."""

ANIMALS = ("bird", "cat", "cow", "dog", "sheep", "person")

RESOURCES: tuple[tuple[str, str, str, str], ...] = (
    ("zsseg", "ZSSeg+", "191.6 M", "11.1 GB"),
    ("clipseg", "CLIPSeg", "151.7 M", "25.5 GB"),
    ("cat-seg", "CAT-Seg", "180.6 M", "29.0 GB"),
    ("partclip", "PartCLIPSeg", "152.4 M", "24.4 GB"),
)
"""Table A4: key, method, parameters, memory of training at batch 8."""

RECALL: Mapping[str, tuple[tuple[str, str, Figures], ...]] = {
    "A5": (
        ("zsseg", "ZSSeg+", (65.47, 32.13, 43.10)),
        ("clipseg", "CLIPSeg", (55.71, 43.35, 48.76)),
        ("cat-seg", "CAT-Seg", (56.00, 43.20, 48.77)),
        ("no-attention", "PartCLIPSeg without L_sep and L_enh", (58.97, 46.47, 51.98)),
        ("partclip", "PartCLIPSeg", (58.46, 47.93, 52.67)),
    ),
    "A6": (
        ("zsseg", "ZSSeg+", (55.78, 40.71, 47.07)),
        ("clipseg", "CLIPSeg", (49.59, 48.11, 48.84)),
        ("cat-seg", "CAT-Seg", (43.48, 39.87, 41.60)),
        ("no-attention", "PartCLIPSeg without L_sep and L_enh", (51.64, 50.99, 51.31)),
        ("partclip", "PartCLIPSeg", (53.31, 51.52, 52.40)),
    ),
}
"""Key, method; seen, unseen and harmonic recall in Oracle-Obj."""

GUIDANCE: tuple[tuple[str, str, str, str, Figures], ...] = (
    ("neither", "0", "0", "x", (48.36, 29.42, 36.58)),
    ("objects", "1", "0", "x", (48.61, 31.28, 38.07)),
    ("parts", "0", "1", "x", (48.94, 31.68, 38.46)),
    ("no-attention", "1", "1", "", (49.09, 31.26, 38.20)),
    ("full", "1", "1", "x", (50.02, 31.67, 38.79)),
)
"""Table A7: key, lambda_obj, lambda_part, attention losses; seen, unseen and harmonic mIoU in Oracle-Obj."""

THRESHOLDS: Mapping[float, Figures] = {
    0.1: (47.34, 32.24, 38.35),
    0.2: (47.45, 32.20, 38.37),
    0.3: (50.02, 31.67, 38.79),
    0.4: (51.10, 31.18, 38.73),
    0.5: (48.71, 31.16, 38.01),
}
"""Table A8: gamma; likewise."""

OV_PARTS: tuple[tuple[str, str, str, Figures], ...] = (
    ("pascal-clipseg", PASCAL, "CLIPSeg, VA+L+F+D", (48.68, 27.37, 35.04)),
    ("pascal-clipseg-frozen", PASCAL, "CLIPSeg, frozen", (22.33, 19.73, 20.95)),
    ("pascal-cat-seg", PASCAL, "CAT-Seg, B+D", (43.97, 26.11, 32.76)),
    ("pascal-zsseg", PASCAL, "ZSSeg+ ResNet-50, CPTCoOp", (55.33, 19.17, 28.48)),
    ("pascal-supervised", PASCAL, "MaskFormer, trained on all objects", (55.28, 52.14, None)),
    ("ade-clipseg", ADE, "CLIPSeg, VA+L+F+D", (38.96, 29.65, 33.67)),
    ("ade-cat-seg", ADE, "CAT-Seg, B+D", (31.40, 25.77, 28.31)),
)
"""Key, data, method; seen, unseen and harmonic mIoU in Oracle-Obj, as the benchmark's own authors print them."""
