"""The settings of Det-SAM: a part detector whose boxes prompt the frozen segmenter (WPS-SAM, 3.1 and Table 4)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from weakly.errors import UserError
from weakly.foundation.promptable import Pad
from weakly.methods.baselines.references import check_references
from weakly.methods.decoding import Fusion
from weakly.methods.two_stage import TwoStageSettings

DetectorName = Literal["faster-rcnn", "detr"]
Backbone = Literal["resnet18", "resnet34", "resnet50", "segmenter"]


@dataclass(frozen=True)
class RcnnSettings(TwoStageSettings):
    """Sizes of Faster R-CNN."""

    section: ClassVar[str] = "settings.faster_rcnn"


@dataclass(frozen=True)
class DetrSettings:
    """Sizes and losses of DETR; the defaults are those of ``facebook/detr-resnet-50``.

    Attributes:
        queries: S. More than the fullest image has instances.
        width: d of the transformer.
        heads: attention heads.
        layers: encoder layers, and as many decoder layers.
        ffn: hidden units of the feed-forward blocks.
        dropout: in the transformer.
        downsamples: stride-2 convolutions on the segmenter's embedding; 2 for SAM's 64x64. ResNets need none.
        position: on the segmenter's embedding, as in WPS-SAM: ``zeros`` or ``tokens``.
        eos_weight: weight of "no part" in the cross-entropy.
        l1: weight of the distance of boxes, in matching and loss; that of the class is 1.
        giou: weight of their generalised IoU, likewise.
    """

    queries: int = 100
    width: int = 256
    heads: int = 8
    layers: int = 6
    ffn: int = 2048
    dropout: float = 0.1
    downsamples: int = 2
    position: Literal["zeros", "tokens"] = "zeros"
    eos_weight: float = 0.1
    l1: float = 5.0
    giou: float = 2.0

    def __post_init__(self) -> None:
        for name in ("queries", "width", "heads", "layers", "ffn"):
            if getattr(self, name) < 1:
                raise UserError(f"settings.detr.{name} is {getattr(self, name)}; give a number of at least 1.")
        if self.width % self.heads or self.width % 4:
            raise UserError(f"settings.detr.width is {self.width}; give a multiple of 4 and of its {self.heads} heads.")
        if not self.eos_weight > 0:
            raise UserError(f"settings.detr.eos_weight is {self.eos_weight}; give a number above 0.")


@dataclass(frozen=True)
class DetSamSettings:
    """The ``settings:`` section of a Det-SAM recipe. The paper names detectors and backbones and nothing else.

    Attributes:
        segmenter: the promptable segmenter: ``"bundled"``, a Hugging Face id, a folder or a ``.pth`` file.
        detector: ``faster-rcnn`` or ``detr``.
        backbone: a ResNet that looks at images, or ``segmenter``: the detector looks at the stored embeddings of the
            frozen segmenter.
        weights: of a ResNet. Faster R-CNN: torchvision's name for the ResNet's, e.g. ``IMAGENET1K_V1`` (fetched from
            the network), or a ``.pth`` or ``.safetensors`` file. DETR: hub id or folder of a whole DETR, e.g.
            ``facebook/detr-resnet-50``, whose backbone and sizes replace those given here. None: random ones.
        backbone_lr: learning rate of the ResNet over that of the rest.
        side: of the square frame in pixels in which a ResNet sees an image, whose longest side is resized to it.
        flip: also train on mirrored images, whose names swap left and right.
        faster_rcnn: sizes of Faster R-CNN.
        detr: sizes of DETR.
        score_threshold: detections prompt the segmenter from this score on. ``auto``: the one that gives the best F1 of
            boxes on training images; see :mod:`weakly.methods.baselines.det_sam.threshold`.
        threshold_images: training images that ``auto`` looks at.
        min_score: detections with a lower score do not exist, for average precision either.
        nms: of Faster R-CNN: detections of one category that overlap a better one with a larger IoU are left out. DETR
            is trained to need none.
        detections: of an image at most.
        fusion: how masks become a label map; see :func:`weakly.methods.decoding.fuse`.
        pad: of the segmenter.
        max_prompts: prompts decoded at once; bounds the memory of prediction.
        references: upper bounds that come with every evaluation; see :mod:`weakly.methods.baselines.references`.
    """

    segmenter: str = "bundled"
    detector: DetectorName = "faster-rcnn"
    backbone: Backbone = "resnet50"
    weights: str | None = None
    backbone_lr: float = 1.0
    side: int = 256
    flip: bool = False
    faster_rcnn: RcnnSettings = field(default_factory=RcnnSettings)
    detr: DetrSettings = field(default_factory=DetrSettings)
    score_threshold: float | Literal["auto"] = "auto"
    threshold_images: int = 200
    min_score: float = 0.05
    nms: float = 0.5
    detections: int = 100
    fusion: Fusion = "argmax"
    pad: Pad = "sam"
    max_prompts: int = 64
    references: tuple[str, ...] = ("box", "point")

    def __post_init__(self) -> None:
        for name in ("threshold_images", "detections", "max_prompts"):
            if getattr(self, name) < 1:
                raise UserError(f"settings.{name} is {getattr(self, name)}; give a number of at least 1.")
        check_references(self.references)
        if self.side < 32 or self.side % 32:
            raise UserError(f"settings.side is {self.side}; give a multiple of 32, the stride of a ResNet.")
        for name in ("min_score", "nms"):
            if not 0 <= getattr(self, name) <= 1:
                raise UserError(f"settings.{name} is {getattr(self, name)}; give a number in [0, 1].")
        if self.score_threshold != "auto" and not 0 <= self.score_threshold <= 1:
            raise UserError(f"settings.score_threshold is {self.score_threshold}; give a number in [0, 1], or auto.")
        if self.on_embeddings and self.weights is not None:
            raise UserError(
                "settings.weights are of a ResNet, but settings.backbone is segmenter; leave one of them out."
            )
        if self.detector == "faster-rcnn":
            self.faster_rcnn.check_levels(self.backbone)

    @property
    def on_embeddings(self) -> bool:
        """Whether the detector looks at the segmenter's embeddings instead of images."""
        return self.backbone == "segmenter"


PRESETS: dict[str, dict[str, dict[str, Any]]] = {
    "default": {},
    # What the paper names, and the usual training of each detector, since it gives none.
    "paper-faster-rcnn": {
        "settings": {"segmenter": "facebook/sam-vit-base", "weights": "IMAGENET1K_V1", "side": 1024},
        "optimisation": {
            "optimizer": "sgd",
            "lr": 0.01,
            "weight_decay": 1e-4,
            "warmup_steps": 500,
            "epochs": 24,
            "batch_size": 8,
        },
    },
    "paper-detr": {
        "settings": {
            "segmenter": "facebook/sam-vit-base",
            "detector": "detr",
            "weights": "facebook/detr-resnet-50",
            "backbone_lr": 0.1,
            "side": 1024,
        },
        "optimisation": {
            "optimizer": "adamw",
            "lr": 1e-4,
            "weight_decay": 1e-4,
            "warmup_steps": 250,
            "grad_clip": 0.1,
            "epochs": 50,
            "batch_size": 8,
        },
    },
}
"""Sections of a recipe by preset; only what departs from the defaults."""
