"""The settings of WPS-SAM and the presets that reproduce the paper and the released code."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any, Literal, get_args

from weakly.errors import UserError
from weakly.foundation.promptable import Pad
from weakly.methods.baselines.references import check_references
from weakly.methods.wps.losses import RegNorm

Supervision = Literal["box", "point", "point+box"]
PointSource = Literal["box_center", "given", "mask_centroid", "inner_point"]
Fusion = Literal["argmax", "soft_sum"]
Position = Literal["zeros", "tokens"]
Answer = Literal["tokens", "boxes"]
PrompterKind = Literal["queries", "regions"]


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
class RegionSettings:
    """A prompter of regions (:mod:`weakly.methods.wps.regions`); its sizes are ours, the paper states none.

    Attributes:
        width: channels of the pyramid.
        hidden: units of the two layers that all heads share.
        anchors: sides of the anchors of the four levels, finest first, as shares of the frame's side.
        ratios: of the anchors' height to width.
        anchors_per_image: sampled to train the proposals, half of them on parts where there are as many.
        pre_nms: proposals of a level before suppression.
        proposals: regions of an image after suppression, which the second stage looks at.
        rois: regions of an image sampled to train the second stage, a quarter of them on parts where there are as many.
        nms: regions of one category that overlap a better one with a larger IoU do not ask.
        detections: regions of an image that ask, at most.
        looks: times that regions are examined in prediction, from the second on where the look before moved them.
        samples: points along a side of each of a region's 7 x 7 cells, of which the cell is the mean. One is
            faster to train on a CPU.
    """

    width: int = 256
    hidden: int = 1024
    anchors: tuple[float, float, float, float] = (0.0625, 0.125, 0.25, 0.5)
    ratios: tuple[float, ...] = (0.5, 1.0, 2.0)
    anchors_per_image: int = 256
    pre_nms: int = 500
    proposals: int = 250
    rois: int = 128
    nms: float = 0.5
    detections: int = 100
    looks: int = 3
    samples: int = 2

    def __post_init__(self) -> None:
        for name in (each.name for each in fields(self) if each.type == "int"):
            if getattr(self, name) < 1:
                raise UserError(f"regions.{name} is {getattr(self, name)}; give a number of at least 1.")
        if len(self.anchors) != 4 or list(self.anchors) != sorted(self.anchors) or min(self.anchors) <= 0:
            raise UserError(
                f"regions.anchors is {list(self.anchors)}; give four ascending shares of the frame's side, above 0."
            )
        if not self.ratios or min(self.ratios) <= 0:
            raise UserError(f"regions.ratios is {list(self.ratios)}; give at least one number, all above 0.")
        if not 0 <= self.nms <= 1:
            raise UserError(f"regions.nms is {self.nms}; give a number in [0, 1].")


PREDICTS_WITH = (
    *("score_threshold", "answer", "refine", "fusion", "max_prompts"),
    *(f"regions.{name}" for name in ("nms", "detections", "looks")),
)
"""Settings that a trained student takes other values of."""


@dataclass(frozen=True)
class WpsSettings:
    """The ``settings:`` section of a WPS-SAM recipe; the defaults are the paper's.

    Attributes:
        segmenter: the promptable segmenter: ``"bundled"``, a Hugging Face id, a folder or a ``.pth`` file.
        supervision: ``box``, ``point`` or ``point+box`` (an extension of ours).
        prompter: ``queries`` of a transformer, the paper's, or ``regions`` from anchors (its baseline in Table B).
        regions: of a prompter of regions. What is said below of queries, layers and aux_weight is of queries alone.
        queries: S. More than the fullest image has instances.
        alpha: weight of the class probability in the matching (paper Table C: cost of the class).
        beta: weight of the token distance in the matching.
        lambda_cls: weight of the cross-entropy.
        lambda_reg: weight of the smooth-L1 regression.
        lambda_box: weight of the boxes that the student answers beside tokens, in the loss (ours); 0: queries answer
            none, regions need it.
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
            Under regions they are part of it either way: pooling forgets where a region lies, and prompts are places.
        dropout: in the transformer.
        score_threshold: keep a query only if its class probability reaches this; None: argmax alone decides.
        answer: what the segmenter is asked with: the student's ``tokens``, or the tokens of its ``boxes`` (ours).
        refine: times that every prompt is replaced by the box of the mask it got (ours); needs boxes.
        fusion: ``argmax``: one mask per query and one label map. ``soft_sum``: one mask per category, where the
            probabilities of its queries sum to 0.5 or more (released code).
        pad: ``sam`` (bottom and right), ``center_black`` (released code), or ``stretch`` (both sides, no padding: where
            training images were made square by stretching them).
        strict: refuse images with more instances than queries instead of warning.
        point_source: where points come from: ``box_center`` (the paper; clicks where a sample has no boxes),
            ``given`` (clicks of the dataset), or ``mask_centroid`` and ``inner_point``, which read truth masks.
        flip: also train on mirrored images, whose names swap left and right; doubles the features.
        jitter: train on moved and zoomed views of the stored embeddings (ours).
        max_prompts: prompts decoded at once; bounds the memory of prediction.
        references: upper bounds that come with every evaluation; see :mod:`weakly.methods.baselines.references`.
    """

    segmenter: str = "bundled"
    supervision: Supervision = "box"
    prompter: PrompterKind = "queries"
    regions: RegionSettings = field(default_factory=RegionSettings)
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
    references: tuple[str, ...] = ("box", "point")

    def __post_init__(self) -> None:
        for name in ("queries", "mask_pairs", "width", "heads", "layers", "ffn", "max_prompts"):
            if getattr(self, name) < 1:
                raise UserError(f"settings.{name} is {getattr(self, name)}; give a number of at least 1.")
        if self.width % self.heads:
            raise UserError(f"settings.width is {self.width}, no multiple of settings.heads={self.heads}; change one.")
        if self.supervision not in get_args(Supervision):
            given = ", ".join(get_args(Supervision))
            raise UserError(f"settings.supervision is {self.supervision!r}; give one of {given}.")
        if self.lambda_box and self.supervision == "point":
            raise UserError("settings.lambda_box needs boxes, but settings.supervision is point; set 0.")
        if self.prompter not in get_args(PrompterKind):
            raise UserError(f"settings.prompter is {self.prompter!r}; give one of {', '.join(get_args(PrompterKind))}.")
        if self.prompter == "regions":
            self._check_regions()
        if self.answer == "boxes" and not self.lambda_box:
            raise UserError("settings.answer is boxes, but with settings.lambda_box 0 the student has none; raise it.")
        if self.refine and self.supervision != "box":
            raise UserError(
                f"settings.refine re-prompts with boxes, but settings.supervision is {self.supervision}; set 0."
            )
        check_references(self.references)
        if self.score_threshold is not None and not 0 <= self.score_threshold <= 1:
            raise UserError(f"settings.score_threshold is {self.score_threshold}; give a probability in [0, 1].")

    def _check_regions(self) -> None:
        """Regions find parts by their boxes, and are not trained through layers or masks."""
        if self.supervision == "point":
            raise UserError("settings.prompter is regions, which need boxes, but settings.supervision is point.")
        if not self.lambda_box > 0:
            raise UserError(
                "settings.prompter is regions, whose boxes have to be trained; set settings.lambda_box to 1."
            )
        for name in ("aux_weight", "gamma", "lambda_mask"):
            if getattr(self, name):
                raise UserError(f"settings.{name} is of queries, but settings.prompter is regions; set it to 0.")


PRESETS: dict[str, dict[str, dict[str, Any]]] = {
    "default": {},
    # The same labels and the same frozen segmenter, a better student (docs/methods/wps.md says what each part brings).
    "plus": {
        "settings": {
            "prompter": "regions",
            "position": "tokens",
            "answer": "boxes",
            "lambda_cls": 1.0,
            "lambda_reg": 0.0,  # tokens are those of the boxes
            "lambda_box": 1.0,
            "jitter": {"shift": 0.12, "zoom": 1.12},
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
