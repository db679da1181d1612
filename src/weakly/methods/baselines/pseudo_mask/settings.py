"""The settings of the pseudo-mask baseline, and the presets that name the published ones."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

from weakly.errors import UserError
from weakly.foundation.promptable import Pad
from weakly.methods.baselines.everything import EverythingSettings
from weakly.methods.baselines.pseudo_mask.model import MaskFormerSettings
from weakly.methods.baselines.references import check_references
from weakly.methods.image_views import Augmentation
from weakly.methods.semantic_predictor import Inference

Supervision = Literal["box", "mask"]


@dataclass(frozen=True)
class PseudoMaskSettings:
    """The ``settings:`` section of a pseudo-mask recipe; the defaults are MaskFormer with Swin-B (WPS-SAM, Table 5).

    Attributes:
        segmenter: makes the pseudo-masks: ``"bundled"``, a Hugging Face id, a folder or a ``.pth`` file.
        supervision: ``box``: the segmenter's masks of true boxes. ``mask``: the true masks themselves, strong labels,
            which is the fully supervised MaskFormer of Tables 2 and 5 (``gt-mask``).
        pad: ``sam`` (bottom and right), ``center_black`` or ``stretch``.
        max_prompts: boxes decoded at once; bounds the memory of making pseudo-masks.
        maskformer: the network.
        augmentation: of its training views.
        inference: sizes at which images are predicted.
        references: upper bounds that come with every evaluation; see :mod:`weakly.methods.baselines.references`.
        automatic_masks: those of the reference ``everything``; SAM's own thresholds.
    """

    segmenter: str = "bundled"
    supervision: Supervision = "box"
    pad: Pad = "sam"
    max_prompts: int = 64
    maskformer: MaskFormerSettings = field(default_factory=MaskFormerSettings)
    augmentation: Augmentation = field(default_factory=Augmentation)
    inference: Inference = field(default_factory=Inference)
    references: tuple[str, ...] = ("box", "point")
    automatic_masks: EverythingSettings = field(default_factory=EverythingSettings)

    def __post_init__(self) -> None:
        if self.supervision not in ("box", "mask"):
            raise UserError(f"settings.supervision is {self.supervision!r}; give box or mask.")
        if self.max_prompts < 1:
            raise UserError(f"settings.max_prompts is {self.max_prompts}; give a number of at least 1.")
        check_references(self.references)


PRESETS: dict[str, dict[str, dict[str, Any]]] = {
    "default": {},
    # 90,000 steps of 16 of PartImageNet's 20,460 training images, as Compositor trains its MaskFormer.
    "paper": {
        "settings": {
            "segmenter": "facebook/sam-vit-base",
            "maskformer": {"pretrained": "microsoft/swin-base-patch4-window12-384-in22k"},
            # Crops of 512 px from images of 512 to 2048 px on their short side.
            "augmentation": {"crop": 512, "short": 1024, "long": 4096, "ratio": [0.5, 2.0], "cat_max_ratio": 1.0},
            "inference": {"short": 1024, "long": 2048},
        },
        "optimisation": {
            "optimizer": "adamw",
            "lr": 1e-4,
            "weight_decay": 0.05,
            "schedule": "poly",
            "power": 0.9,
            "lr_end": 0.0,
            "warmup_steps": 0,
            "grad_clip": 0.01,
            "batch_size": 16,
            "epochs": 70,
            "precision": "bf16-mixed",
        },
    },
    # Images of 256 px on a CPU, random weights: views a quarter of the paper's, a small network, a higher rate.
    "small": {
        "settings": {
            "maskformer": {
                "backbone": "resnet",
                "embed_dim": 32,
                "depths": [1, 1, 1, 1],
                "queries": 50,
                "width": 64,
                "decoder_layers": 3,
                "decoder_ffn": 256,
                "attention_heads": 4,
                "dropout": 0.0,
                "label_stride": 4,
                "backbone_lr": 1.0,
            },
            "augmentation": {"crop": 128, "short": 192, "long": 768, "ratio": [0.67, 1.33]},
            "inference": {"short": 192, "long": 768},  # as large as the views: what is seen at no other size
            # The bundled SAM is less sure of itself: with SAM's own thresholds it has no automatic mask at all.
            "automatic_masks": {"points_per_side": 16, "iou_threshold": 0.5, "stability_threshold": 0.7},
        },
        "optimisation": {
            "optimizer": "adamw",
            "lr": 1e-3,
            "weight_decay": 0.05,
            "schedule": "poly",
            "power": 0.9,
            "lr_end": 0.0,
            "warmup_steps": 50,
            "grad_clip": 1.0,
            "batch_size": 8,
            "epochs": 8,
        },
    },
}
"""Sections of a recipe by preset; only what departs from the defaults. Data are the recipe's."""
