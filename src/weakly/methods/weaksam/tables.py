"""The tables of WeakSAM as changes of a recipe's settings (spec weaksam, sections 2 to 6 and 8).

Tables 1 to 3 are the published results; A to C take the method apart, for which no published figure is at hand. Every
row departs from the recipe in what it names and in nothing else. Proposals, weakly supervised detectors and pseudo
truth are scored on the training split, where the tags are known, students on the validation split.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, replace
from typing import Any

from weakly.methods.tables import Cell, Measure, Ordering, Row, Table, Tables
from weakly.methods.weaksam.drop_block import DropBlockSettings
from weakly.methods.weaksam.presets import MASK2FORMER_ADAMW, ONE_VIEW, RT_DETR_ADAMW, SGD
from weakly.methods.weaksam.published import (
    COCO_INSTANCES,
    DETECTION,
    PAPER,
    SOURCE,
    VOC_INSTANCES,
    Figures,
)
from weakly.methods.weaksam.settings import WeakSamSettings

Changes = dict[str, Any]

SMALL_UPDATES = 600
"""Updates of the weakly supervised detector within a small budget."""

SMALL_EPOCHS = 20
"""Epochs of the clue network within a small budget."""

SMALL_START = 30
"""Update of the student from which on RoIs are dropped, likewise; the published start is at a fifth of the training."""

SMALL_SIDE = 12
"""Points along a side of the grid, likewise."""

CLUE_SEED, DETECTOR_SEED, STUDENT_SEED = (
    "settings.clues.train.seed",
    "settings.wsod_training.seed",
    "optimisation.seed",
)

_HEADS: Mapping[str, Changes] = {
    "oicr": {"head": "oicr", "mining": "near_top", "branch_weights": [1.0, 1.0, 1.0], "drop_block": None},
    "mist": {
        "head": "mist",
        "mining": "spread",
        "branch_weights": [3.0, 1.0, 1.0],
        "drop_block": asdict(DropBlockSettings()),
    },
}
"""Weakly supervised detectors as published."""

_OPTIMISED: Mapping[str, Mapping[str, Any]] = {
    "faster_rcnn": SGD,
    "mask_rcnn": SGD,
    "rt_detr": RT_DETR_ADAMW,
    "mask2former": MASK2FORMER_ADAMW,
}

_WEAKSAM: Changes = {
    "settings.truth": "pseudo",
    "settings.proposals_by": "weaksam",
    "settings.pseudo_truth.mode": "adaptive",
    "evaluation.student": "last",
}
"""What makes the full method of any recipe; RoI drop is the recipe's, as VOC 2012's published recipe has none."""


def paper_tables(settings: WeakSamSettings) -> Tables:
    """The tables over these settings."""
    makers = (_detection, _voc_instances, _coco_instances, _proposals, _pseudo_truth, _roi_drop)
    return Tables(PAPER, SOURCE, tuple(make(settings) for make in makers), _small(settings))


def _detection(settings: WeakSamSettings) -> Table:
    measures: dict[str, tuple[Measure, Measure]] = {"true-boxes": _both(_true_student(settings, "faster_rcnn"))}
    for head in ("oicr", "mist"):
        chosen = _head(settings, head)
        measures[f"{head}-ss"] = _both(_stage("wsod", "selective-search", chosen))
        measures[head] = _both(_stage("wsod", "weaksam", chosen))
        measures[f"{head}-faster-rcnn"] = _both(_student(settings, "faster_rcnn", chosen))
        measures[f"{head}-detr"] = _both(_student(settings, "rt_detr", chosen))
    more = "WeakSAM's proposals teach {} more than Selective Search's."
    return Table(
        "1",
        "Detection from image tags",
        ("Method", "Proposals", "Supervision", "Retraining"),
        ("AP50", "AP", "AP50, VOC 2012", "AP50, COCO 2014", "AP75, COCO 2014"),
        _rows(DETECTION, measures),
        (
            Ordering(more.format("OICR"), ("oicr-ss:AP50", "oicr:AP50")),
            Ordering(more.format("MIST"), ("mist-ss:AP50", "mist:AP50")),
            Ordering("MIST is the better detector.", ("oicr:AP50", "mist:AP50")),
            Ordering("It also makes the better Faster R-CNN.", ("oicr-faster-rcnn:AP50", "mist-faster-rcnn:AP50")),
            Ordering(
                "A detector of the DETR family learns more from the pseudo truth than Faster R-CNN.",
                ("mist-faster-rcnn:AP50", "mist-detr:AP50"),
            ),
        ),
        "PASCAL VOC 2007 test (AP50), COCO 2014 (AP) and those that the columns name",
        (
            "Weakly supervised detectors, told no tag, are scored on the training split, retrained ones on validation.",
            "Selective Search stands for SS and MCG; RT-DETR stands for DINO.",
            "The head that the recipe does not choose is trained at the recipe's rates. " + _OTHER_STUDENTS,
        ),
    )


def _voc_instances(settings: WeakSamSettings) -> Table:
    measures = {key: (measure,) for key, measure in _instance_heads(settings, "ap50").items()}
    return Table(
        "2",
        "Instance segmentation from image tags, VOC",
        ("Method", "Backbone", "Supervision", "Retraining"),
        ("AP50", "AP25", "AP70", "AP75"),
        _rows(VOC_INSTANCES, measures),
        (
            Ordering(
                "Mask2Former learns more from the pseudo masks than Mask R-CNN.", ("mask-rcnn:AP50", "mask2former:AP50")
            ),
        ),
        "PASCAL VOC 2012 val",
        ("AP at the other thresholds is in the details of the runs' records.", _OTHER_STUDENTS),
    )


def _coco_instances(settings: WeakSamSettings) -> Table:
    by_figure = [_instance_heads(settings, figure) for figure in ("ap", "ap50")]
    measures = {key: tuple(figures[key] for figures in by_figure) for key in by_figure[0]}
    return Table(
        "3",
        "Instance segmentation from image tags, COCO",
        ("Method", "Backbone", "Supervision", "Retraining"),
        ("AP", "AP50", "AP75", "AP, test-dev", "AP50, test-dev", "AP75, test-dev"),
        _rows(COCO_INSTANCES, measures),
        (
            Ordering(
                "Mask2Former learns more from the pseudo masks than Mask R-CNN.", ("mask-rcnn:AP", "mask2former:AP")
            ),
        ),
        "COCO 2017 val and test-dev",
        ("Our AP50 is VOC's, with the area under the curve; the runs are those of Table 2.", _OTHER_STUDENTS),
    )


def _proposals(settings: WeakSamSettings) -> Table:
    weaksam: dict[str, tuple[str, Changes]] = {
        "clues": ("Clues, no grid", {"settings.proposals.grid.side": 0}),
        "no-cross": ("Grid, coarse and fine maps", {"settings.clues.cross_layers": []}),
        "alone": ("All, no joint prompts of a class", {"settings.proposals.class_joint": []}),
        "unclustered": ("All, attention peaks not clustered", {"settings.peaks.cross.clustered": False}),
        **{
            model: (f"All, clues of {name}", {"settings.clues.model": model})
            for model, name in (("weaktr", "WeakTr"), ("mctformer", "MCTformer"), ("clip-es", "CLIP-ES"))
            if model != settings.clues.model
        },
        "all": ("All", {}),
    }
    rows = [_proposal_row("selective-search", "Selective Search", "selective-search", {})]
    rows += [_proposal_row(key, words, "weaksam", changes) for key, (words, changes) in weaksam.items()]
    return Table(
        "A",
        "Proposals, and what a detector learns from them",
        ("Proposals",),
        ("Recall", "AP50"),
        tuple(rows),
        (
            Ordering(
                "WeakSAM's proposals find more objects than Selective Search's.",
                ("selective-search:Recall", "all:Recall"),
            ),
        ),
        notes=(
            "Recall of all proposals at IoU 0.5; by their number and at other IoU it is in the details of the records.",
            "Every row trains the recipe's detector on its proposals.",
            "CLIP-ES has no attention maps of classes.",
        ),
    )


def _pseudo_truth(settings: WeakSamSettings) -> Table:
    forms: dict[str, tuple[str, Changes]] = {
        "top1": ("Best detection of every tag", {"mode": "top1"}),
        "threshold": ("Fixed threshold", {"mode": "threshold"}),
        "released": ("Adaptive, released code", {"mode": "released"}),
        "published": ("Adaptive, Algorithm 2", {"mode": "published"}),
        "range": ("Adaptive, divided by the range", {"norm": "range"}),
        "adaptive": ("Adaptive", {"norm": "minmax"}),
    }
    rows = []
    for key, (words, form) in forms.items():
        changes = {f"settings.pseudo_truth.{name}": value for name, value in form.items()}
        stage = [_stage("pseudo-truth", "weaksam", changes, figure) for figure in ("ap50", "corloc")]
        rows.append(_row(key, (words,), (), [*stage, _student(settings, "faster_rcnn", changes)]))
    claim = "Retrained on adaptive pseudo truth, a detector beats one on {}."
    return Table(
        "B",
        "Pseudo truth, and what Faster R-CNN learns from it",
        ("Pseudo truth",),
        ("AP50", "CorLoc", "Retrained"),
        tuple(rows),
        (
            Ordering(claim.format("the best detections"), ("top1:Retrained", "adaptive:Retrained")),
            Ordering(claim.format("detections above a fixed score"), ("threshold:Retrained", "adaptive:Retrained")),
        ),
        notes=(
            "Pseudo truth knows the tags of the training images that it is scored on; the retrained detector none.",
        ),
    )


def _roi_drop(settings: WeakSamSettings) -> Table:
    modes = {
        "none": "None",
        "joint": "Joint, as the released code means it",
        "independent": "Independent, as the paper's figure shows it",
    }
    rows = [
        _row(mode, (words,), (), _both(_student(settings, "faster_rcnn", {"settings.detector.drop.mode": mode})))
        for mode, words in modes.items()
    ]
    return Table(
        "C",
        "RoI drop",
        ("RoI drop",),
        ("AP50", "AP"),
        tuple(rows),
        (Ordering("RoI drop beats none.", ("none:AP50", "independent:AP50")),),
    )


_OTHER_STUDENTS = "A student that the recipe does not choose is optimised as published for it."


def _instance_heads(settings: WeakSamSettings, figure: str) -> dict[str, Measure]:
    return {
        "true-masks": _true_student(settings, "mask_rcnn", figure),
        "mask-rcnn": _student(settings, "mask_rcnn", {}, figure),
        "mask2former": _student(settings, "mask2former", {}, figure),
    }


def _both(measure: Measure) -> tuple[Measure, Measure]:
    """AP50 and AP of one run."""
    return replace(measure, figure="ap50"), replace(measure, figure="ap")


def _stage(stage: str, source: str, changes: Mapping[str, Any], figure: str = "ap50") -> Measure:
    """A stage on the training split. Its student is never trained, so it is the same for all."""
    seeds = (DETECTOR_SEED,) if source == "selective-search" else (CLUE_SEED, DETECTOR_SEED)
    made = {**_WEAKSAM, "settings.student": "faster_rcnn", "settings.proposals_by": source, **changes}
    return Measure(made, "targets", (source, stage), seeds=seeds, figure=figure)


def _student(settings: WeakSamSettings, student: str, changes: Mapping[str, Any], figure: str = "ap50") -> Measure:
    """A student on the pseudo truth of WeakSAM."""
    made = {**_WEAKSAM, **_made_for(settings, student), **changes}
    return Measure(made, seeds=(CLUE_SEED, DETECTOR_SEED, STUDENT_SEED), figure=figure)


def _true_student(settings: WeakSamSettings, student: str, figure: str = "ap50") -> Measure:
    """The same student on true boxes or masks, without RoI drop."""
    true = {"settings.truth": "true-boxes", "settings.detector.drop.mode": "none"}
    made = {"evaluation.student": "last", **_made_for(settings, student), **true}
    return Measure(made, seeds=(STUDENT_SEED,), figure=figure)


def _made_for(settings: WeakSamSettings, student: str) -> Changes:
    """The student, optimised as published for it unless the recipe's is of its family; masks are of one view."""
    changes: Changes = {"settings.student": student}
    if _OPTIMISED[student] is not _OPTIMISED[settings.student]:
        changes |= {f"optimisation.{key}": value for key, value in _OPTIMISED[student].items()}
    if student in ("mask_rcnn", "mask2former") and settings.inference.views > 1:
        changes |= {f"settings.inference.{key}": value for key, value in ONE_VIEW.items()}
    return changes


def _head(settings: WeakSamSettings, head: str) -> Changes:
    """The recipe's own detector where it has that head, else the published one."""
    if settings.wsod.head == head:
        return {}
    changes = {f"settings.wsod.{key}": value for key, value in _HEADS[head].items()}
    return {**changes, "settings.wsod.drop_block": None} if settings.wsod.sees_crops else changes  # no cells to hide


def _proposal_row(key: str, words: str, source: str, changes: Mapping[str, Any]) -> Row:
    return _row(key, (words,), (), (_stage("proposals", source, changes, "recall"), _stage("wsod", source, changes)))


def _rows(
    published: Iterable[tuple[str, str, str, str, str, Figures]], measures: Mapping[str, Iterable[Measure]]
) -> tuple[Row, ...]:
    """Rows of a published table; those without a measure are other authors'."""
    return tuple(_row(key, tuple(words), figures, measures.get(key, ())) for key, *words, figures in published)


def _row(key: str, words: tuple[str, ...], published: Figures, measures: Iterable[Measure]) -> Row:
    """Columns come in the order of both; the longer one decides how many there are."""
    given = list(measures)
    columns = max(len(published), len(given))
    figures = [*published, *[None] * (columns - len(published))]
    known: list[Measure | None] = [*given, *[None] * (columns - len(given))]
    cells = (Cell.of(figure, measure) for figure, measure in zip(figures, known, strict=True))
    return Row(key, words, tuple(cells))


def _small(settings: WeakSamSettings) -> Changes:
    """Fewer updates, epochs, points and views; small transformers where their weights are random."""
    training, drop = settings.wsod_training, settings.detector.drop
    updates = min(training.iterations, SMALL_UPDATES)
    shrink = updates / training.iterations
    changes: Changes = {
        "settings.clues.train.epochs": min(settings.clues.train.epochs, SMALL_EPOCHS),
        "settings.proposals.grid.side": min(settings.proposals.grid.side, SMALL_SIDE),
        "settings.wsod_training.iterations": updates,
        "settings.wsod_training.steps": [round(step * shrink) for step in training.steps],
        "settings.wsod_training.warmup": min(training.warmup, updates // 9),
        "settings.wsod_inference.sizes": list(settings.wsod_inference.sizes[:1]),
        "settings.wsod_inference.flip": False,
        "settings.detector.drop.start": min(drop.start, SMALL_START),
        "settings.inference.boxes_to_masks": "box",  # detectors are scored by their boxes
    }
    if settings.rt_detr.resnet.pretrained is None:
        changes |= _at_most(
            "rt_detr", settings.rt_detr, {"queries": 100, "width": 128, "ffn": 256, "decoder_layers": 3}
        )
    if settings.mask2former.resnet.pretrained is None:
        layers = {"encoder_layers": 2, "decoder_layers": 3, "points": 2048}
        changes |= _at_most("mask2former", settings.mask2former, {"queries": 50, "width": 64, **layers})
    return changes


def _at_most(section: str, sizes: Any, most: Mapping[str, int]) -> Changes:
    """Those sizes of a student, and a ResNet-18 under it."""
    resnet = {"block": "basic", "channels": [64, 128, 256, 512], "depths": [2, 2, 2, 2]}
    changes: Changes = {f"settings.{section}.resnet.{key}": value for key, value in resnet.items()}
    return changes | {f"settings.{section}.{key}": min(getattr(sizes, key), value) for key, value in most.items()}
