"""The settings of WPS-SAM and the presets that reproduce the paper and the released code."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from weakly.errors import UserError
from weakly.foundation.promptable import Pad
from weakly.methods.wps.losses import RegNorm

Supervision = Literal["box", "point", "point+box"]
PointSource = Literal["box_center", "given", "mask_centroid", "inner_point"]
Fusion = Literal["argmax", "soft_sum"]
Position = Literal["zeros", "tokens"]
Answer = Literal["tokens", "boxes"]


@dataclass(frozen=True)
class Jitter:
    """How far a view may depart from the image.

    Attributes:
        shift: up and down, left and right, as a share of the frame's side; drawn uniformly, in whole cells.
        zoom: factor about the frame's centre, drawn log-uniformly from 1 / zoom to zoom; 1: none.
        visible: parts of which less than this share of the box is left are no parts of the view.
    """

    shift: float = 0.0
    zoom: float = 1.0
    visible: float = 0.3

    def __post_init__(self) -> None:
        if not 0 <= self.shift < 1:
            raise UserError(f"settings.jitter.shift is {self.shift}; give a share of the frame's side, 0 to below 1.")
        if not self.zoom >= 1:
            raise UserError(f"settings.jitter.zoom is {self.zoom}; give a factor of at least 1.")
        if not 0 <= self.visible <= 1:
            raise UserError(f"settings.jitter.visible is {self.visible}; give a share from 0 to 1.")

    @property
    def moves(self) -> bool:
        """Whether views differ from images at all."""
        return self.shift > 0 or self.zoom > 1


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
        lambda_box: weight of the boxes that the student answers beside tokens, in the loss (ours); 0: it answers none.
        gamma: weight of these boxes in the matching.
        lambda_mask: weight of the difference between the masks that student and teacher get from the decoder (ours).
        mask_pairs: most prompts of a batch that are decoded for it.
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
        answer: what the segmenter is asked with: the student's ``tokens``, or the tokens of its ``boxes`` (ours).
        refine: times that every prompt is replaced by the box of the mask it got (ours); needs boxes.
        fusion: ``argmax``: one mask per query and one label map. ``soft_sum``: one mask per category, where the
            probabilities of its queries sum to 0.5 or more (released code).
        pad: ``sam`` (bottom and right) or ``center_black`` (released code).
        strict: refuse images with more instances than queries instead of warning.
        point_source: where points come from: ``box_center`` (the paper; clicks where a sample has no boxes),
            ``given`` (clicks of the dataset), or ``mask_centroid`` and ``inner_point``, which read truth masks.
        flip: also train on mirrored images, whose names swap left and right; doubles the features.
        jitter: train on moved and zoomed views of the stored embeddings (ours).
        max_prompts: prompts decoded at once; bounds the memory of prediction.
    """

    segmenter: str = "bundled"
    supervision: Supervision = "box"
    queries: int = 25
    alpha: float = 10.0
    beta: float = 1.0
    lambda_cls: float = 5.0
    lambda_reg: float = 20.0
    lambda_box: float = 0.0
    gamma: float = 0.0
    lambda_mask: float = 0.0
    mask_pairs: int = 8
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
    answer: Answer = "tokens"
    refine: int = 0
    fusion: Fusion = "argmax"
    pad: Pad = "sam"
    strict: bool = False
    point_source: PointSource = "box_center"
    flip: bool = False
    jitter: Jitter = field(default_factory=Jitter)
    max_prompts: int = 64

    def __post_init__(self) -> None:
        for name in ("queries", "mask_pairs", "width", "heads", "layers", "ffn", "max_prompts"):
            if getattr(self, name) < 1:
                raise UserError(f"settings.{name} is {getattr(self, name)}; give a number of at least 1.")
        if self.width % self.heads:
            raise UserError(f"settings.width is {self.width}, no multiple of settings.heads={self.heads}; change one.")
        if self.supervision not in get_args(Supervision):
            given = ", ".join(get_args(Supervision))
            raise UserError(f"settings.supervision is {self.supervision!r}; give one of {given}.")
        if self.lambda_box and self.supervision != "box":
            raise UserError(f"settings.lambda_box needs boxes, but settings.supervision is {self.supervision}; set 0.")
        if self.answer == "boxes" and not self.lambda_box:
            raise UserError("settings.answer is boxes, but with settings.lambda_box 0 the student has none; raise it.")
        if self.refine and self.supervision != "box":
            raise UserError(
                f"settings.refine re-prompts with boxes, but settings.supervision is {self.supervision}; set 0."
            )
        if self.score_threshold is not None and not 0 <= self.score_threshold <= 1:
            raise UserError(f"settings.score_threshold is {self.score_threshold}; give a probability in [0, 1].")


PRESETS: dict[str, dict[str, dict[str, Any]]] = {
    "default": {},
    # The same labels and the same frozen segmenter, a better student (docs/methods/wps.md says what each part brings).
    "plus": {
        "settings": {
            "position": "tokens",
            "aux_weight": 1.0,
            "eos_weight": 0.3,
            "jitter": {"shift": 0.12, "zoom": 1.12},
            "lambda_box": 2.0,
            "answer": "boxes",
        },
    },
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
