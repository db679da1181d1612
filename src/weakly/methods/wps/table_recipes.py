"""What the cells of WPS-SAM's tables depart from: the other methods' recipes, and what a small budget lowers.

A small budget trains some 25 students of 1,250 updates each, on a world of few kinds.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from weakly.foundation.weights import is_bundled
from weakly.methods.tables import Baseline, Limits
from weakly.methods.wps.settings import Jitter, WpsSettings

Changes = dict[str, Any]

KINDS = ("sedan", "van", "truck", "beetle", "sailboat", "schooner", "airliner", "propplane", "winebottle", "flask")
"""Of a small budget's world, as in the demo: 12 parts of four super-categories, of which 1,250 updates teach enough for
rows to differ."""

LIMITS = Limits(train=1000, val=200, epochs=10, warmup_steps=100, kinds=KINDS)

SMALL_STUDENT: Mapping[str, int] = {"width": 128, "layers": 3, "ffn": 384}
"""Most of each within a small budget."""

ALIKE = ("settings.segmenter", "settings.pad", "optimisation.seed")
"""What every baseline has from the recipe of WPS-SAM."""

BOUNDS = ("point", "box", "point+box", "point:best-predicted", "box:best-predicted", "point:best-true", "box:best-true")
"""What SAM makes of true prompts, as :mod:`weakly.methods.baselines.references` names it."""

_SAM: Changes = {"settings.references": [*BOUNDS, "everything"]}
"""SAM alone: a method that scores all its bounds; nothing is trained."""

LOSSES: Changes = {name: getattr(WpsSettings(), name) for name in ("lambda_cls", "lambda_reg")}
"""Weights of the paper's losses."""

HELPED: Changes = {"aux_weight": 1.0, "eos_weight": 0.3, "lambda_box": 2.0}
"""What helps queries most: every decoder layer answers, "no part" weighs less, boxes are trained beside tokens."""

WITHOUT: Mapping[str, tuple[str, Changes]] = {
    "prompter": ("queries, with what helps them most", {"prompter": "queries", **LOSSES, **HELPED}),
    "answer": ("tokens", {"answer": "tokens", **LOSSES}),
    "position": ("cells do not say where they are", {"position": "zeros"}),
    "jitter": ("images as they are", {"jitter": asdict(Jitter())}),
}
"""Ingredients of ``preset: plus``, by setting: what stands in the place of each, in words and as settings."""


def paper_student(settings: WpsSettings) -> Changes:
    """Queries in the place of regions, with the paper's losses; what the paper does not say stays as it is."""
    if settings.prompter == "queries":
        return {}
    paper = WpsSettings()
    return {f"settings.{name}": getattr(paper, name) for name in ("prompter", "answer", "lambda_box", *LOSSES)}


def small_student(settings: WpsSettings) -> Changes:
    """A student of the bundled recipe's size; the number of heads must divide its width."""
    changes: Changes = {f"settings.{name}": min(getattr(settings, name), most) for name, most in SMALL_STUDENT.items()}
    narrower = settings.width > SMALL_STUDENT["width"]
    return {**changes, "settings.heads": min(settings.heads, 4)} if narrower else changes


def baselines(settings: WpsSettings) -> dict[str, Baseline]:
    """The other methods as they are published; beside the bundled segmenter at sizes that suit it."""
    regions = Baseline("wps", ("settings", "optimisation"))
    if is_bundled(settings.segmenter):
        return {**small_baselines(settings), "regions": regions}
    on_sam = {"settings.backbone": "segmenter", "settings.weights": None}
    return {
        "sam": Baseline("pseudo-mask", ALIKE, _SAM),
        "faster-rcnn": Baseline("det-sam", ALIKE, {"preset": "paper-faster-rcnn"}),
        "faster-rcnn-sam": Baseline("det-sam", ALIKE, {"preset": "paper-faster-rcnn", **on_sam}),
        "detr": Baseline("det-sam", ALIKE, {"preset": "paper-detr"}),
        "detr-sam": Baseline("det-sam", ALIKE, {"preset": "paper-detr", **on_sam, **_as_we_see(settings)}),
        "maskformer": Baseline("pseudo-mask", ALIKE, {"preset": "paper"}),
        "fine-tuned": Baseline("fine-tuned", ("settings", "optimisation")),
        "anchors": Baseline("anchor-prompter", (*ALIKE, "settings.position", "optimisation")),
        "regions": regions,
    }


def small_baselines(settings: WpsSettings) -> dict[str, Baseline]:
    """The other methods at sizes that two cores train in minutes: for images of 256 pixels, with our epochs."""
    keeps = (*ALIKE, "optimisation")
    rcnn = {"width": 64, "hidden": 256, "anchors_per_image": 128, "pre_nms": 200, "proposals": 100, "rois": 64}
    on_image = {**rcnn, "anchors": [8, 16, 32, 64, 128], "roi_scale": 56}
    on_sam = {**rcnn, "anchors": [24, 64, 128], "roi_scale": 112, "scales": [1, 0.5, 0.25]}
    detr = {"queries": settings.queries, "width": 128, "heads": 4, "layers": 3, "ffn": 384, "dropout": 0.0}
    regions = _in("settings.regions", {"width": 128, "hidden": 256, "pre_nms": 200, "proposals": 100, "rois": 32})
    clipped: Changes = {"optimisation.grad_clip": 1.0}
    resnet: Changes = {**clipped, "settings.backbone": "resnet18", "settings.side": 128}
    sam: Changes = {**clipped, "settings.backbone": "segmenter"}
    as_detr: Changes = {"settings.detector": "detr", **_in("settings.detr", detr)}
    modest: Changes = {"preset": "small"} if is_bundled(settings.segmenter) else {}  # about its masks
    return {
        "sam": Baseline("pseudo-mask", ALIKE, {**_SAM, **modest}),
        "faster-rcnn": Baseline("det-sam", keeps, {**resnet, **_in("settings.faster_rcnn", on_image)}),
        "faster-rcnn-sam": Baseline("det-sam", keeps, {**sam, **_in("settings.faster_rcnn", on_sam)}),
        "detr": Baseline("det-sam", keeps, {**resnet, **as_detr}),
        "detr-sam": Baseline("det-sam", keeps, {**sam, **as_detr, **_as_we_see(settings)}),
        "maskformer": Baseline("pseudo-mask", ALIKE, {"preset": "small", "optimisation.epochs": 32}),
        "fine-tuned": Baseline("fine-tuned", ("settings", "optimisation"), {"settings.checkpointing": False}),
        "anchors": Baseline("anchor-prompter", (*keeps, "settings.position"), regions),
        "regions": Baseline("wps", ("settings", "optimisation"), regions),
    }


def _as_we_see(settings: WpsSettings) -> Changes:
    """DETR on the segmenter's embeddings sees them as our prompter does."""
    return _in("settings.detr", {"downsamples": settings.downsamples, "position": settings.position})


def _in(section: str, values: Mapping[str, Any]) -> Changes:
    return {f"{section}.{name}": value for name, value in values.items()}
