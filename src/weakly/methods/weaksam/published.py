"""What the paper of WeakSAM prints of detection and instance segmentation, in per cent (spec weaksam, section 8).

Recall of proposals and the ablations are not among the figures at hand; their tables have none.
"""

from __future__ import annotations

PAPER = "WeakSAM: Segment Anything Meets Weakly-supervised Instance-level Recognition (Zhu et al., ACM MM 2024)"
SOURCE = "project page of arXiv 2402.14812; PASCAL VOC 2007 and 2012, COCO 2014 and 2017"

Figures = tuple[float | None, ...]

DETECTION: tuple[tuple[str, str, str, str, str, Figures], ...] = (
    ("true-boxes", "Faster R-CNN", "RPN", "boxes", "", (69.9, 21.2, None, 41.5, None)),
    ("p2bnet", "P2BNet", "RPN", "points", "", (60.2, 19.4, None, 43.5, None)),
    ("c-midn", "C-MIDN", "SS+MCG", "tags", "", (52.6, 9.6, 50.2, 21.4, None)),
    ("wsod2", "WSOD2", "SS", "tags", "", (53.6, 10.8, 47.2, 22.7, None)),
    ("slv", "SLV", "SS", "tags", "", (53.5, None, 49.2, None, None)),
    ("casd", "CASD", "SS", "tags", "", (56.8, 12.8, 53.6, 26.4, None)),
    ("im-cfb", "IM-CFB", "SS", "tags", "", (54.3, None, 49.4, None, None)),
    ("od-wscl", "OD-WSCL", "SS+MCG", "tags", "", (56.4, 13.7, 54.6, 27.7, 11.9)),
    ("wsod-cbl", "WSOD-CBL", "SS", "tags", "", (57.4, 13.6, 53.5, 27.6, None)),
    ("wsovod", "WSOVOD", "LO-WSRPN+SAM", "tags", "", (59.1, 18.8, 59.8, 27.1, 19.7)),
    ("wsovod-hvy", "WSOVOD, heavier backbone", "LO-WSRPN+SAM", "tags", "", (63.4, 20.5, 62.1, 29.1, 21.4)),
    ("oicr-ss", "OICR", "SS+MCG", "tags", "", (41.2, 8.0, 37.9, 18.9, 7.0)),
    ("oicr", "WeakSAM (OICR)", "WeakSAM", "tags", "", (58.9, 19.9, 58.4, 32.1, 20.6)),
    ("mist-ss", "MIST", "SS+MCG", "tags", "", (54.9, 11.4, 52.1, 24.3, 9.4)),
    ("mist", "WeakSAM (MIST)", "WeakSAM", "tags", "", (67.4, 22.9, 66.9, 35.2, 24.6)),
    ("w2f", "W2F", "RPN", "tags", "Faster R-CNN", (52.4, None, 47.8, None, None)),
    ("sos-wsod", "SoS-WSOD", "RPN", "tags", "Faster R-CNN", (64.4, 16.6, 61.9, 32.8, 15.2)),
    ("w2n", "W2N", "RPN", "tags", "Faster R-CNN", (65.4, 15.9, 60.8, 33.3, 13.4)),
    ("oicr-faster-rcnn", "WeakSAM (OICR)", "RPN", "tags", "Faster R-CNN", (65.7, 22.3, 62.9, 36.5, 23.0)),
    ("mist-faster-rcnn", "WeakSAM (MIST)", "RPN", "tags", "Faster R-CNN", (71.8, 23.8, 69.2, 38.5, 25.1)),
    ("oicr-detr", "WeakSAM (OICR)", "", "tags", "DINO", (66.1, 24.9, 63.7, 36.9, 26.8)),
    ("mist-detr", "WeakSAM (MIST)", "", "tags", "DINO", (73.4, 26.6, 70.2, 39.3, 29.0)),
)
"""Key, method, proposals, supervision, retraining; AP50 on VOC 2007, AP on COCO 2014, AP50 on VOC 2012, AP50 and AP75
on COCO 2014."""

VOC_INSTANCES: tuple[tuple[str, str, str, str, str, Figures], ...] = (
    ("true-masks", "Mask R-CNN", "ResNet-101", "masks", "", (67.9, 76.7, 52.5, 44.9)),
    ("wise", "WISE", "ResNet-50", "tags", "Mask R-CNN", (41.7, 49.2, None, 23.7)),
    ("irnet", "IRNet", "ResNet-50", "tags", "Mask R-CNN", (46.7, None, 23.5, None)),
    ("liid", "LIID", "ResNet-50", "tags, saliency", "Mask R-CNN", (48.4, None, None, 24.9)),
    ("arun", "Arun et al.", "ResNet-50", "tags", "Mask R-CNN", (50.9, 59.7, 30.2, 28.5)),
    ("ws-rcnn", "WS-RCNN", "VGG-16", "tags", "Mask R-CNN", (47.3, 62.2, None, 19.8)),
    ("bestie", "BESTIE", "HRNet-W48", "tags", "Mask R-CNN", (51.0, 61.2, 31.9, 26.6)),
    ("cim", "CIM", "ResNet-50", "tags", "Mask R-CNN", (55.9, 68.7, 37.1, 30.9)),
    ("mask-rcnn", "WeakSAM", "ResNet-50", "tags, SAM", "Mask R-CNN", (59.6, 70.3, 43.1, 36.2)),
    ("mask2former", "WeakSAM", "ResNet-50", "tags, SAM", "Mask2Former", (64.4, 73.4, 49.7, 45.3)),
)
"""Key, method, backbone, supervision, retraining; AP50, AP25, AP70 and AP75 of masks on VOC 2012."""

COCO_INSTANCES: tuple[tuple[str, str, str, str, str, Figures], ...] = (
    ("true-masks", "Mask R-CNN", "ResNet-50", "masks", "", (34.4, 55.1, 36.7, 33.6, 55.2, 35.3)),
    ("ws-jds", "WS-JDS", "VGG-16", "tags", "", (6.1, 11.7, 5.5, None, None, None)),
    ("pdsl", "PDSL", "ResNet18-WS", "tags", "", (6.3, 13.1, 5.0, None, None, None)),
    ("fan", "Fan et al.", "ResNet-101", "tags, saliency", "Mask R-CNN", (None, None, None, 13.7, 25.5, 13.5)),
    ("liid", "LIID", "ResNet-50", "tags, saliency", "Mask R-CNN", (None, None, None, 16.0, 27.1, 16.5)),
    ("bestie", "BESTIE", "HRNet-W48", "tags", "Mask R-CNN", (14.3, 28.0, 13.2, 14.4, 28.0, 13.5)),
    ("cim", "CIM", "ResNet-50", "tags", "Mask R-CNN", (17.0, 29.4, 17.0, 17.2, 29.7, 17.3)),
    ("mask-rcnn", "WeakSAM", "ResNet-50", "tags, SAM", "Mask R-CNN", (20.6, 33.9, 22.0, 21.0, 34.5, 22.2)),
    ("mask2former", "WeakSAM", "ResNet-50", "tags, SAM", "Mask2Former", (25.2, 38.4, 27.0, 25.9, 39.9, 27.9)),
)
"""Key, method, backbone, supervision, retraining; AP, AP50 and AP75 of masks on COCO 2017 val, and on its test-dev."""
