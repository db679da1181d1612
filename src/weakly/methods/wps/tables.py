"""The tables of WPS-SAM as changes of a recipe (sections 3.1, 4 and A to C of the paper; spec sections 4 to 7).

Numbers are the paper's; P is not in it: the ingredients of ``preset: plus`` one by one. Every row departs from the
recipe in what it names and in nothing else; rows of other methods depart from a recipe of theirs with the same data,
segmenter and seed (:mod:`~weakly.methods.wps.table_recipes`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

from weakly.methods.tables import Measure, Ordering, Row, Table, Tables
from weakly.methods.wps.published import (
    DET_SAM,
    ENCODER,
    MAIN,
    PAPER,
    PARTIMAGENET,
    PASCAL,
    PASCAL_PART,
    PROMPTER,
    PSEUDO_LABELS,
    QUERIES,
    SOURCE,
    SUPERVISION,
    WEIGHTS,
    Figures,
)
from weakly.methods.wps.settings import PRESETS, WpsSettings
from weakly.methods.wps.table_recipes import (
    LIMITS,
    WITHOUT,
    baselines,
    paper_student,
    small_baselines,
    small_student,
)

Changes = dict[str, Any]
Measures = Sequence[Measure | None]

FIGURES = ("mIoU", "mACC")

PROTOCOL = "dataset41"
"""One confusion matrix at original size with the background as a class: the protocol behind the published rows of other
methods, under which wrong categories cost something. The paper's own rows are probably those of ``official_rowwise``
(spec sections 4.2 and 4.4), with which ours do not compare; the record of every run has both."""

SEEDS = ("optimisation.seed",)


def paper_tables(settings: WpsSettings) -> Tables:
    """The tables over these settings."""
    tables = (
        _oracle(),
        _main("2", MAIN, PARTIMAGENET),
        _main("3", PASCAL, PASCAL_PART, "Ours are the runs of Table 2: there is one dataset here."),
        _det_sam(),
        _pseudo_labels(),
        _supervision(settings),
        _queries(),
        _encoder(),
        _prompter(),
        _weights(),
        _plus(),
    )
    return Tables(
        PAPER,
        SOURCE,
        tables,
        small_student(settings),
        limits=LIMITS,
        baselines=baselines(settings),
        small_baselines=small_baselines(settings),
        base=paper_student(settings),
    )


def _oracle() -> Table:
    """SAM itself: true prompts, and automatic masks named by the truth."""
    prompts = {"point": "centres of true boxes", "box": "true boxes", "point+box": "both"}
    masks = {
        "": ("its single mask", "final"),
        ":best-predicted": ("of three, the one it predicts to be best", "best-predicted"),
        ":best-true": ("of three, the one that is best", "best-true"),
    }
    rows = [
        Row.of(f"{kind}{end}", (words, mask), (), _bound("oracle", row, kind))
        for end, (mask, row) in masks.items()
        for kind, words in prompts.items()
        if kind != "point+box" or not end
    ]
    everything = ("none, named by the true mask that overlaps most", "all that it finds")
    rows.append(Row.of("everything", everything, (), _bound("everything", "oracle-label")))
    return Table(
        "1",
        "SAM with true prompts",
        ("Prompts", "Mask"),
        FIGURES,
        tuple(rows),
        _orderings({"Boxes are the better prompts (Fig. 2).": ("point", "box")}),
        f"{PARTIMAGENET}, lost in the text at hand",
        ("Categories are the true ones: upper bounds of the method. The first two rows are the paper's.",),
    )


def _main(number: str, published: Sequence[tuple[str, str, str, str, str, Figures]], data: str, *notes: str) -> Table:
    return _compared(
        number,
        f"Parts from boxes beside parts from masks and from tags, {data}",
        ("Method", "Venue", "Backbone", "Annotation"),
        published,
        {"maskformer": _maskformer("mask"), "wps": _ours()},
        {"WPS-SAM, from boxes, beats MaskFormer, from masks.": ("maskformer", "wps")},
        *notes,
        "Ours has the backbone of the baseline's recipe. Some figures of BECO and MaskFormer are hard to read.",
        data=data,
    )


def _det_sam() -> Table:
    return _compared(
        "4",
        "Boxes of a detector as prompts",
        ("Framework", "Detector", "Its backbone"),
        DET_SAM,
        {**{key: _detector(key) for key, *_ in DET_SAM if key != "wps"}, "wps": (None, *_ours())},
        {
            "WPS-SAM beats Det-SAM, Faster R-CNN on a ResNet.": ("faster-rcnn", "wps"),
            "WPS-SAM beats Det-SAM, DETR on a ResNet.": ("detr", "wps"),
            "WPS-SAM beats Det-SAM, Faster R-CNN on SAM's encoder.": ("faster-rcnn-sam", "wps"),
            "WPS-SAM beats Det-SAM, DETR on SAM's encoder.": ("detr-sam", "wps"),
            "SAM's encoder makes the worse Faster R-CNN.": ("faster-rcnn-sam", "faster-rcnn"),
            "SAM's encoder makes the worse DETR.": ("detr-sam", "detr"),
        },
        "The paper does not say how its detectors are trained, nor at which IoU their mAP is; ours is COCO's.",
        figures=("mAP", *FIGURES),
    )


def _pseudo_labels() -> Table:
    return _compared(
        "5",
        "SAM's masks as pseudo-labels",
        ("Method", "Backbone", "Supervision"),
        PSEUDO_LABELS,
        {"masks": _maskformer("mask"), "pseudo-masks": _maskformer("box"), "wps": _ours()},
        {
            "WPS-SAM beats MaskFormer on SAM's pseudo-masks.": ("pseudo-masks", "wps"),
            "True masks teach MaskFormer more than pseudo-masks.": ("pseudo-masks", "masks"),
        },
        "Ours has the backbone of the baseline's recipe.",
    )


def _supervision(settings: WpsSettings) -> Table:
    """All rows without what needs boxes, so that they differ in their supervision alone."""
    sources = {"point": "box_center", "mask-centroid": "mask_centroid", "inner-point": "inner_point"}
    more = (
        ("mask-centroid", "point", "centroid of the mask, which is read", ()),
        ("inner-point", "point", "innermost point of the mask, which is read", ()),
        ("point-box", "point and box", "centre of the box", ()),
    )
    paper = WpsSettings()
    alike = {n: getattr(paper, n) for n in _OF_BOXES if getattr(settings, n) != getattr(paper, n)}
    return _compared(
        "6",
        "Points and boxes",
        ("Supervision", "Points"),
        (*SUPERVISION, *more),
        {
            **{key: _ours(supervision="point", point_source=source, **alike) for key, source in sources.items()},
            "box": _ours(**alike),
            "point-box": _ours(supervision="point+box", point_source="box_center", **alike),
        },
        {"Boxes teach more than points.": ("point", "box")},
        "The last three rows are not the paper's.",
    )


_OF_BOXES = ("prompter", "lambda_box", "answer", "refine")
"""Ingredients of ours that need boxes."""


def _queries() -> Table:
    few, *more = map(str, QUERIES)
    return _compared(
        "7",
        "Number of queries",
        ("Queries",),
        [(str(number), str(number), figures) for number, figures in QUERIES.items()],
        {str(number): _ours(queries=number) for number in QUERIES},
        {f"{few} queries beat {number}.": (number, few) for number in more},
    )


def _encoder() -> Table:
    return _compared(
        "A",
        "SAM's encoder, fine-tuned or frozen",
        ("Encoder", "Training, published"),
        ENCODER,
        {"fine-tuned": _student("fine-tuned"), "frozen": _ours()},
        {"The frozen encoder beats the fine-tuned one.": ("fine-tuned", "frozen")},
        "Our own times are in the reports of the runs.",
    )


def _prompter() -> Table:
    return _compared(
        "B",
        "Architecture of the prompter",
        ("Prompter",),
        PROMPTER,
        {"anchors": _student("anchors"), "queries": _ours()},
        {"Queries beat anchors.": ("anchors", "queries")},
        "The paper does not describe its anchor-based prompter; ours is another one.",
    )


def _weights() -> Table:
    names = ("lambda_cls", "lambda_reg", "alpha", "beta")
    keyed = {"-".join(map(str, weights)): (weights, figures) for weights, figures in WEIGHTS}
    equal, heavier, chosen_cost, ten, best, fifty = keyed
    return _compared(
        "C",
        "Weights of losses and costs",
        names,
        [(key, *map(str, weights), figures) for key, (weights, figures) in keyed.items()],
        {key: _ours(**dict(zip(names, map(float, weights), strict=True))) for key, (weights, _) in keyed.items()},
        {
            "A heavier class beats equal weights, in loss and in matching.": (equal, heavier, chosen_cost),
            "A heavier regression beats a light one, up to 20.": (chosen_cost, ten, best),
            "Beyond 20 it gets worse.": (fifty, best),
        },
        "The printed heading has the columns in another order, which contradicts the text.",
    )


def _plus() -> Table:
    """Each ingredient of the preset alone replaced, all of them, and none."""
    paper, plus = asdict(WpsSettings()), PRESETS["plus"]["settings"]
    named = {*plus, *(name for _, changes in WITHOUT.values() for name in changes)}
    defaults = {name: paper[name] for name in sorted(named)}
    both = {**defaults, **plus}
    rows = (
        Row.of("paper", ("all", "the paper's settings"), (), _either(defaults)),
        *(Row.of(name, (name, words), (), _either({**both, **changes})) for name, (words, changes) in WITHOUT.items()),
        Row.of("plus", ("none", "preset plus"), (), _either(both)),
    )
    claims = {
        "All ingredients together beat the paper's settings.": ("paper", "plus"),
        **{f"{name} is better than without.": (name, "plus") for name in WITHOUT},
    }
    return Table(
        "P",
        "Ingredients of preset plus, one replaced at a time",
        ("Replaced", "By"),
        FIGURES,
        rows,
        _orderings(claims),
        notes=("Not in the paper, whose authors do not claim these orderings.",),
    )


def _compared(
    number: str,
    title: str,
    head: tuple[str, ...],
    published: Iterable[tuple[Any, ...]],
    measures: Mapping[str, Measures],
    claims: Mapping[str, Sequence[str]],
    *notes: str,
    data: str = PARTIMAGENET,
    figures: tuple[str, ...] = FIGURES,
) -> Table:
    """A table of published rows (key, words, figures), of which some are measured here."""
    rows = tuple(Row.of(key, words, found, measures.get(key)) for key, *words, found in published)
    return Table(number, title, head, figures, rows, _orderings(claims), data, notes)


def _ours(**settings: Any) -> Measures:
    """WPS-SAM from boxes, but for ``settings``."""
    return _student(None, **{"supervision": "box", **settings})


def _either(settings: Changes) -> Measures:
    """WPS-SAM from boxes; regions have sizes of their own, which a small budget lowers."""
    return (
        _ours(**settings) if settings["prompter"] == "queries" else _student("regions", supervision="box", **settings)
    )


def _detector(baseline: str) -> Measures:
    """Average precision of its boxes, then mIoU and mACC of the masks that they prompt."""
    masks = _student(baseline)
    return (replace(masks[0], figure="ap", setting="boxes"), *masks)


def _maskformer(supervision: str) -> Measures:
    return _student("maskformer", supervision=supervision)


def _student(baseline: str | None, **settings: Any) -> tuple[Measure, ...]:
    """The last student of a run: nothing is chosen on the images that are scored."""
    changes = {"evaluation.student": "last", **{f"settings.{name}": value for name, value in settings.items()}}
    return _both(Measure(changes, seeds=SEEDS, baseline=baseline))


def _bound(*reference: str) -> Measures:
    """A score without any training, on the images that students are scored on."""
    return _both(Measure({}, "reference", reference, split="evaluated", baseline="sam"))


def _both(measure: Measure) -> tuple[Measure, ...]:
    """Both figures of one run."""
    return tuple(replace(measure, figure=f"{PROTOCOL}.{name.lower()}") for name in FIGURES)


def _orderings(claims: Mapping[str, Sequence[str]]) -> tuple[Ordering, ...]:
    """{claim: rows from the lowest to the highest}, by mIoU."""
    return tuple(Ordering(claim, tuple(f"{row}:mIoU" for row in rows)) for claim, rows in claims.items())
