"""The tables of PartCLIPSeg as changes of a recipe's settings (sections 4, C and D of the paper; spec section 8).

Numbers are the paper's; B, S and O are not in it: boundaries by the definition, the switches between paper and release,
and what the authors of the benchmark print. Every row departs from the recipe in what it names and in nothing else, and
one run stands behind all figures of its row, in whichever table.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

from weakly.errors import UserError
from weakly.methods.partclip.presets import OFFICIAL_SWITCHES
from weakly.methods.partclip.published import (
    ADE,
    ANIMALS,
    ATTENTION_LOSSES,
    BOUNDARIES,
    CROSS_DATASET,
    GUIDANCE,
    MAIN,
    OV_PARTS,
    PAPER,
    PARTIMAGENET,
    PASCAL,
    RECALL,
    RESOURCES,
    SMALL_PARTS,
    SOURCE,
    STANDARD_ERRORS,
    THRESHOLDS,
    Figures,
)
from weakly.methods.partclip.settings import LossWeights, PartClipSettings, Switches
from weakly.methods.tables import Measure, Ordering, Row, Table, Tables

Changes = dict[str, Any]

PRED_ALL, ORACLE_OBJ = "Pred-All", "Oracle-Obj"

GROUPS = ("seen", "unseen", "harmonic")

SIX = tuple(f"{setting} {group}" for setting in (PRED_ALL, ORACLE_OBJ) for group in GROUPS)
"""Columns of figures of most tables."""

WEIGHTED = ("objects", "parts", "separation", "enhancement")

SWITCHES: Mapping[str, tuple[str, str]] = {
    "obj_text_index": ("D1", "An object's own text beats that of a part with its number"),
    "train_channel_order": ("D11", "Training in RGB beats training in BGR"),
    "label_path": ("D11, D19", "Labels resized once beat labels that went through 800 pixels"),
    "unseen_pixels": ("D9", "Leaving pixels of unseen objects out beats training them as background"),
    "background_vector": ("D10", "A background that learns beats one that stays as it was drawn"),
    "sep_loss": ("D2", "A separation loss with a gradient beats one without"),
    "enh_loss": ("D3", "Enhancement over each part's own tokens beats that over the whole map"),
    "part_scope": ("D3, D6", "Comparing the parts of each object beats comparing all parts of the image"),
    "empty_term": ("spec 3.2", "Leaving out a mean over no pixel beats making the whole loss zero"),
    "none_entries": ("D20", "Leaving out images without a seen part beats replacing them at random"),
    "composition": ("spec 1.8", "Starting as the mean of part and object beats starting at random"),
}
"""Difference between paper and release (spec section 12), and what one expects of the switch, by field."""


def paper_tables(settings: PartClipSettings) -> Tables:
    """The tables over these settings.

    Raises:
        UserError: no object is unseen.
    """
    if not settings.unseen:
        raise UserError(
            "settings.unseen is empty, but the tables compare seen with unseen objects; name some objects of the data."
        )
    tables = (
        *(_main(number, data, settings) for number, data in (("1", PASCAL), ("2", ADE), ("3", PARTIMAGENET))),
        _cross_dataset(),
        _attention_losses(settings),
        _boundaries(settings),
        _small_parts(),
        _resources(),
        *(_recall(number, data, settings) for number, data in (("A5", PASCAL), ("A6", ADE))),
        _guidance(settings),
        _thresholds(settings),
        _true_boundaries(settings),
        _switches(settings),
        _ov_parts(),
    )
    return Tables(PAPER, SOURCE, tables, {"settings.flip": False})


def _main(number: str, data: str, settings: PartClipSettings) -> Table:
    measures = _two_methods(settings)
    spread = ", ".join(f"{error:.2f}" for error in STANDARD_ERRORS[number])
    return Table(
        number,
        f"Parts of seen and unseen objects, {data}",
        ("Method", "Backbone"),
        SIX,
        tuple(Row.of(key, words, figures, measures.get(key)) for key, *words, figures in MAIN[number]),
        (
            *_orderings({"PartCLIPSeg has a higher harmonic mean than CLIPSeg": _BOTH}),
            *_orderings({"PartCLIPSeg is better than CLIPSeg on unseen objects": _BOTH}, group="unseen"),
        ),
        data,
        (f"Published figures of PartCLIPSeg are means of five runs, with standard errors {spread}.", _TWO_SETTINGS),
    )


def _cross_dataset() -> Table:
    return _printed(
        "4",
        "Trained on one dataset, scored on another",
        ("Trained on", "Method"),
        (PRED_ALL, ORACLE_OBJ),
        CROSS_DATASET,
        f"{PASCAL}; one figure per cell, presumably the mIoU of all its classes",
        "Printed, not measured here: `weakly evaluate RUN --data.root OTHER` scores a run on other data.",
    )


def _attention_losses(settings: PartClipSettings) -> Table:
    rows = {
        "none": _six(_ours(settings, separation=0.0, enhancement=0.0)),
        "separation": _six(_ours(settings, enhancement=0.0)),
        "both": _six(_ours(settings)),
    }
    measures = {f"{key}{data}": measured for key, measured in rows.items() for data in ("", "-ade")}
    return Table(
        "5",
        "Losses of attention",
        ("Data", "L_sep", "L_enh"),
        SIX,
        tuple(Row.of(key, words, figures, measures[key]) for key, *words, figures in ATTENTION_LOSSES),
        _orderings({"Separation helps, and enhancement adds to it": tuple(rows)}),
        f"{PASCAL} and {ADE}",
        ("Our figures of the second dataset's rows are those of the first's: there is one dataset here.",),
    )


def _boundaries(settings: PartClipSettings) -> Table:
    measures = _two_methods(settings, "details.boundary_iou_compat.")
    return Table(
        "6",
        "What the paper calls Boundary IoU",
        ("Method",),
        SIX,
        tuple(Row.of(key, words, _oracle(figures), measures.get(key)) for key, *words, figures in BOUNDARIES),
        _orderings({"PartCLIPSeg has better boundaries": _BOTH}, settings=(ORACLE_OBJ,)),
        PASCAL,
        ("It compares differences of class numbers near borders (D17); table B has Boundary IoU by its definition.",),
    )


def _small_parts() -> Table:
    note = "Printed, not measured here: the IoU of every class is in the records of `weakly evaluate`."
    return _printed("7", f"Small parts, {ORACLE_OBJ}", ("Part", "Method"), ANIMALS, SMALL_PARTS, PASCAL, note)


def _resources() -> Table:
    title, head = "Parameters, and memory of training at batch 8", ("Method", "Parameters", "Memory")
    rows = [(*words, ()) for words in RESOURCES]
    return _printed("A4", title, head, (), rows, PASCAL, "Printed, not measured here.")


def _recall(number: str, data: str, settings: PartClipSettings) -> Table:
    prefix = "details.recall."
    unguided = _ours(settings, separation=0.0, enhancement=0.0)
    measures = {**_two_methods(settings, prefix), "no-attention": _six(unguided, prefix)}
    ascending = ("clipseg", "no-attention", "partclip")
    claim = "PartCLIPSeg finds more of the parts than CLIPSeg, and more with the losses of attention"
    return Table(
        number,
        f"Recall, {data}",
        ("Method",),
        SIX,
        tuple(Row.of(key, words, _oracle(figures), measures.get(key)) for key, *words, figures in RECALL[number]),
        (
            *_orderings({claim: ascending}, settings=(ORACLE_OBJ,)),
            *_orderings({f"{claim}, of unseen objects too": ascending}, settings=(ORACLE_OBJ,), group="unseen"),
        ),
        data,
    )


def _guidance(settings: PartClipSettings) -> Table:
    changes = {
        "neither": _ours(settings, objects=0.0, parts=0.0),
        "objects": _ours(settings, parts=0.0),
        "parts": _ours(settings, objects=0.0),
        "no-attention": _ours(settings, separation=0.0, enhancement=0.0),
        "full": _ours(settings),
    }
    claims = {
        "Masks of objects help, and masks of parts add to them": ("neither", "objects", "full"),
        "Masks of parts help, and masks of objects add to them": ("neither", "parts", "full"),
        "The losses of attention help": ("no-attention", "full"),
    }
    return Table(
        "A7",
        "Masks of objects and of generalised parts as further targets",
        ("lambda_obj", "lambda_part", "L_sep and L_enh"),
        SIX,
        tuple(Row.of(key, words, _oracle(figures), _six(changes[key])) for key, *words, figures in GUIDANCE),
        _orderings(claims, settings=(ORACLE_OBJ,)),
        PASCAL,
    )


def _thresholds(settings: PartClipSettings) -> Table:
    best = f"{LossWeights().threshold}"
    rows = {str(gamma): (figures, _ours(settings, threshold=gamma)) for gamma, figures in THRESHOLDS.items()}
    return Table(
        "A8",
        "Threshold of the separation loss",
        ("gamma",),
        SIX,
        tuple(Row.of(key, (key,), _oracle(figures), _six(changes)) for key, (figures, changes) in rows.items()),
        _orderings({f"{best} beats {key}": (key, best) for key in rows if key != best}, settings=(ORACLE_OBJ,)),
        PASCAL,
        ("With `sep_loss: hard`, as released, the threshold has no gradient: all rows train the same student.",),
    )


def _true_boundaries(settings: PartClipSettings) -> Table:
    measures = _two_methods(settings, "details.boundary_iou.")
    words = {"clipseg": "CLIPSeg", "partclip": "PartCLIPSeg"}
    return Table(
        "B",
        "Boundary IoU by its definition (Cheng et al., 2021)",
        ("Method",),
        SIX,
        tuple(Row.of(key, (name,), (), measures[key]) for key, name in words.items()),
        _orderings({"PartCLIPSeg has better boundaries": _BOTH}),
    )


def _switches(settings: PartClipSettings) -> Table:
    """Each switch alone back to what was released, all of them, and none."""
    columns = {
        f"{PRED_ALL} unseen": (PRED_ALL, "unseen"),
        f"{PRED_ALL} harmonic": (PRED_ALL, "harmonic"),
        "Strict harmonic": (PRED_ALL, "details.strict.miou.harmonic"),
        f"{ORACLE_OBJ} unseen": (ORACLE_OBJ, "unseen"),
        f"{ORACLE_OBJ} harmonic": (ORACLE_OBJ, "harmonic"),
    }

    def row(key: str, words: tuple[str, ...], changes: Changes) -> Row:
        return Row.of(key, words, (), [_measure(changes, *column) for column in columns.values()])

    def switched(official: Mapping[str, str]) -> Changes:
        return {**_ours(settings), "settings.switches": asdict(replace(Switches(), **official))}  # type: ignore[arg-type]

    back = {name: switched({name: OFFICIAL_SWITCHES[name]}) for name in SWITCHES}
    rows = (
        row("clipseg", ("CLIPSeg, the baseline", "", ""), {**_CLIPSEG, "settings.switches": asdict(Switches())}),
        row("compat", ("all", "as released", ""), switched(OFFICIAL_SWITCHES)),
        *(row(name, (name, OFFICIAL_SWITCHES[name], SWITCHES[name][0]), changes) for name, changes in back.items()),
        row("fixed", ("none", "", ""), switched({})),
    )
    claims = {
        "PartCLIPSeg as the paper means it beats CLIPSeg": ("clipseg", "fixed"),
        "PartCLIPSeg as the paper means it beats what was released": ("compat", "fixed"),
        **{claim: (name, "fixed") for name, (_, claim) in SWITCHES.items()},
    }
    return Table(
        "S",
        "One switch at a time back to what was released",
        ("Switch", "Value", "Difference"),
        tuple(columns),
        rows,
        _orderings(claims),
        notes=(
            "Not in the paper, whose authors do not claim these orderings: differences are numbered as in the docs.",
            "Strict: every pixel counts but void, so that parts on background cost something.",
        ),
    )


def _ov_parts() -> Table:
    title, data = f"The benchmark's own figures, {ORACLE_OBJ}", f"{PASCAL} and {ADE}"
    note = "Printed for comparison with Tables 1 and 2. Training on all objects is a bound, not a method."
    return _printed("O", title, ("Data", "Method"), GROUPS, OV_PARTS, data, note)


def _printed(
    number: str,
    title: str,
    head: tuple[str, ...],
    figures: tuple[str, ...],
    rows: Iterable[tuple[Any, ...]],
    data: str,
    note: str,
) -> Table:
    """A table of published figures alone."""
    printed = tuple(Row.of(key, words, published) for key, *words, published in rows)
    return Table(number, title, head, figures, printed, data=data, notes=(note,))


_TWO_SETTINGS = "Both settings score pixels with a true part label alone; Oracle-Obj is told the object of each pixel."

_CLIPSEG: Changes = {"settings.architecture": "clipseg"}

_BOTH = ("clipseg", "partclip")


def _ours(settings: PartClipSettings, **losses: float) -> Changes:
    """PartCLIPSeg with all the losses of the paper, but for ``losses``."""
    whole = {name: getattr(settings.losses, name) or getattr(LossWeights(), name) for name in WEIGHTED}
    weights = {f"settings.losses.{name}": value for name, value in {**whole, **losses}.items()}
    return {"settings.architecture": "partclip", **weights}


def _two_methods(settings: PartClipSettings, prefix: str = "") -> dict[str, list[Measure]]:
    return {"clipseg": _six(_CLIPSEG, prefix), "partclip": _six(_ours(settings), prefix)}


def _six(changes: Changes, prefix: str = "") -> list[Measure]:
    """One run in the columns of :data:`SIX`; ``prefix`` says which figure of its record, by default mIoU."""
    return [_measure(changes, setting, f"{prefix}{group}") for setting in (PRED_ALL, ORACLE_OBJ) for group in GROUPS]


def _measure(changes: Changes, setting: str, figure: str) -> Measure:
    made = {"evaluation.student": "last", **changes}
    return Measure(made, seeds=("optimisation.seed",), figure=figure, setting=setting.lower())


def _orderings(
    claims: Mapping[str, Sequence[str]],
    *,
    settings: Iterable[str] = (PRED_ALL, ORACLE_OBJ),
    group: str = "harmonic",
) -> tuple[Ordering, ...]:
    """{claim: rows from the lowest to the highest}, in each of the settings."""
    return tuple(
        Ordering(f"{claim} ({setting}).", tuple(f"{row}:{setting} {group}" for row in rows))
        for claim, rows in claims.items()
        for setting in settings
    )


def _oracle(figures: Figures) -> Figures:
    """Figures of Oracle-Obj in the columns of :data:`SIX`."""
    return (*(None for _ in GROUPS), *figures)
