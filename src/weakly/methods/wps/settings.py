"""The settings of WPS-SAM and the presets that reproduce the paper and the released code."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

from weakly.errors import UserError
from weakly.foundation.promptable import Pad
from weakly.methods.wps.losses import RegNorm

Supervision = Literal["box", "point", "point+box"]
PointSource = Literal["box_center", "given", "mask_centroid", "inner_point"]
Fusion = Literal["argmax", "soft_sum"]
Position = Literal["zeros", "tokens"]

TOKENS: dict[str, int] = {"box": 2, "point": 2, "point+box": 3}
"""T, the tokens per prompt of each supervision."""


@dataclass(frozen=True)
class WpsSettings:
    """The ``settings:`` section of a WPS-SAM recipe; the defaults are the paper's.

    Attributes:
        segmenter: the promptable segmenter: ``"bundled"``, a Hugging Face id, a folder or a ``.pth`` file.
        supervision: ``box``, ``point`` or ``point+box`` (an extension of ours).
        queries: S. More than the fullest image has instances.
        alpha: weight of the class probability in the matching (paper Table C: cost of the class).
        beta: weight of the token distance in the matching.
        lambda_cls: weight of the cross-entropy.
        lambda_reg: weight of the smooth-L1 regression.
        eos_weight: weight of "no part" in the cross-entropy; DETR uses 0.1, WPS-SAM 1.
        aux_weight: weight of the losses of the earlier decoder layers; DETR has them, WPS-SAM does not.
        reg_norm: ``matched`` (released code) or ``queries`` (paper, Eq. 4).
        width: d of the prompter.
        heads: attention heads.
        layers: encoder layers, and as many decoder layers.
        ffn: hidden units of the feed-forward blocks.
        downsamples: stride-2 convolutions; 2 for SAM's 64x64 embedding.
        position: ``zeros``: learned positions that start at zero and only steer the attention (WPS-SAM). ``tokens``:
            they start as the segmenter's own encoding of the cells' centres and are part of the cells' content (ours).
        dropout: in the transformer.
        score_threshold: keep a query only if its class probability reaches this; None: argmax alone decides.
        fusion: ``argmax``: one mask per query and one label map. ``soft_sum``: one mask per category, where the
            probabilities of its queries sum to 0.5 or more (released code).
        pad: ``sam`` (bottom and right) or ``center_black`` (released code).
        strict: refuse images with more instances than queries instead of warning.
        point_source: where points come from: ``box_center`` (the paper; clicks where a sample has no boxes),
            ``given`` (clicks of the dataset), or ``mask_centroid`` and ``inner_point``, which read truth masks.
        flip: also train on mirrored images; doubles the features.
        max_prompts: prompts decoded at once; bounds the memory of prediction.
    """

    segmenter: str = "bundled"
    supervision: Supervision = "box"
    queries: int = 25
    alpha: float = 10.0
    beta: float = 1.0
    lambda_cls: float = 5.0
    lambda_reg: float = 20.0
    eos_weight: float = 1.0
    aux_weight: float = 0.0
    reg_norm: RegNorm = "matched"
    width: int = 256
    heads: int = 8
    layers: int = 6
    ffn: int = 1024
    downsamples: int = 2
    position: Position = "zeros"
    dropout: float = 0.0
    score_threshold: float | None = None
    fusion: Fusion = "argmax"
    pad: Pad = "sam"
    strict: bool = False
    point_source: PointSource = "box_center"
    flip: bool = False
    max_prompts: int = 64

    def __post_init__(self) -> None:
        for name in ("queries", "width", "heads", "layers", "ffn", "max_prompts"):
            if getattr(self, name) < 1:
                raise UserError(f"settings.{name} is {getattr(self, name)}; give a number of at least 1.")
        if self.width % self.heads:
            raise UserError(f"settings.width is {self.width}, no multiple of settings.heads={self.heads}; change one.")
        if self.supervision not in TOKENS:
            raise UserError(f"settings.supervision is {self.supervision!r}; give one of {', '.join(TOKENS)}.")
        if self.score_threshold is not None and not 0 <= self.score_threshold <= 1:
            raise UserError(f"settings.score_threshold is {self.score_threshold}; give a probability in [0, 1].")

    @property
    def tokens(self) -> int:
        """T."""
        return TOKENS[self.supervision]


PRESETS: dict[str, dict[str, dict[str, Any]]] = {
    "default": {},
    # What the text says: 150 epochs, batch 8 per GPU, one learning rate.
    "paper": {
        "optimisation": {"epochs": 150, "batch_size": 8, "schedule": "constant", "warmup_steps": 0},
    },
    # What the released code does, oddities included.
    "official": {
        "data": {"bad_polygons": "annotation"},
        "settings": {"fusion": "soft_sum", "pad": "center_black"},
        "optimisation": {
            "epochs": 149,
            "batch_size": 8,
            "schedule": "cosine_unclamped",
            "t_total": 38_370,
            "warmup_steps": 250,
            "sampler_seed": "per_rank",
        },
    },
}
"""Sections of a recipe by preset; only what departs from the defaults. Scoring is not part of a preset: every
evaluation reports the released code's own protocol, ``official_rowwise``, beside the others."""


def preset(name: str) -> dict[str, dict[str, Any]]:
    """The sections of a preset: ``settings``, ``optimisation`` and ``data``.

    Raises:
        UserError: there is none of that name.
    """
    if name not in PRESETS:
        raise UserError(f"There is no WPS-SAM preset {name!r}; give one of {', '.join(PRESETS)}.")
    return {section: dict(values) for section, values in PRESETS[name].items()}
