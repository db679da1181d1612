"""Tables 1 to 6 of FMA-WSSS as changes of a recipe's settings (section 5.3; spec fma-wsss, section 9).

Every row departs from the recipe in what the paper names and in nothing else. Tables 1, 2, 4, 5 and 6 score seeds on
the training split, where the tags are known; Table 3 scores networks.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Any

from weakly.errors import UserError
from weakly.methods.fma.presets import DEEPLAB_SGD, SWIN_ADAMW
from weakly.methods.fma.published import PAPER, PUBLISHED, SEEDS_OF_OTHERS, SOURCE
from weakly.methods.fma.settings import FmaSettings, PromptSettings
from weakly.methods.fma.superpixels import OCCUPATION_RATIO
from weakly.methods.tables import Cell, Measure, Ordering, Row, Table, Tables

Changes = dict[str, Any]

TRAINAUG, TRAIN, VAL = "PASCAL VOC 2012 trainaug", "PASCAL VOC 2012 train", "PASCAL VOC 2012 val"
MIOU = "mIoU"

_FIRST = ("settings.classification.seed", "settings.classification.order_seed")
_BOTH = (*_FIRST, "settings.segmentation.seed", "settings.segmentation.order_seed")
_PLAIN_CAM: Changes = {"spread": "none", "finish": "argmax"}

SMALL_UPDATES = 600
"""Updates of each prompt set within a small budget."""


def paper_tables(settings: FmaSettings) -> Tables:
    """The tables over these settings, which are the full model, M3.

    Raises:
        UserError: the settings have no segmentation prompts.
    """
    if settings.segmentation is None:
        raise UserError(
            "settings.segmentation is null, but the full model of the tables has segmentation prompts; remove that key."
        )
    tables = (_table_1, _table_2, _table_3, _table_4, _table_5, _table_6)
    return Tables(PAPER, SOURCE, tuple(make(settings) for make in tables), _small(settings))


def _table_1(settings: FmaSettings) -> Table:
    crf = {"settings.coarse.finish": "crf", "settings.coarse.confidence": settings.clip_es.confidence}
    rows = (
        _row("1", "clip-es", ("CLIP-ES", "x", "", "", "x", ""), _clip_es()),
        _row("1", "m0", ("M0", "", "x", "", "x", ""), _first_alone(settings, finish="crf")),
        _row("1", "m1", ("M1", "", "x", "", "", "x"), _first_alone(settings)),
        _row("1", "m2", ("M2", "", "x", "x", "x", ""), _full({**crf, "settings.fine.finish": "crf"})),
        _row("1", "m3", ("M3", "", "x", "x", "", "x"), _full()),
    )
    return Table(
        "1",
        "The coarse-to-fine framework and its variants",
        ("Model", "Manual", "Cls.", "Seg.", "CRF", "SAMS"),
        (MIOU,),
        rows,
        (
            Ordering(
                "Learned classification prompts with SAMS beat manual ones with CRF; the full model beats both.",
                ("clip-es", "m1", "m3"),
            ),
            Ordering("SAMS beats CRF with classification prompts alone.", ("m0", "m1")),
            Ordering("SAMS beats CRF with both prompt sets.", ("m2", "m3")),
            Ordering("Segmentation prompts help with CRF.", ("m0", "m2")),
            Ordering("Segmentation prompts help with SAMS.", ("m1", "m3")),
        ),
        TRAINAUG,
        ("M2 trains its segmentation prompts on coarse seeds that the CRF made, whose uncertain pixels are void.",),
    )


def _table_2(settings: FmaSettings) -> Table:  # noqa: ARG001 - one form for all tables
    def design(per_class: bool, position: str, named: bool) -> Measure:
        values = {"per_class": per_class, "position": position, "named_backgrounds": named}
        return _full({f"settings.segmentation.{key}": value for key, value in values.items()})

    rows = (
        _row("2", "unified", ("Unified context",), design(False, "append", True)),
        _row("2", "append", ("CSC + append + with bg.",), design(True, "append", True)),
        _row("2", "prepend", ("CSC + prepend + with bg.",), design(True, "prepend", True)),
        _row("2", "nameless", ("CSC + prepend + without bg.",), design(True, "prepend", False)),
    )
    claim = "Own contexts beat a shared one, names first beat names last, nameless backgrounds beat named ones."
    ascending = tuple(row.key for row in rows)
    notes = ("The unified context has its names last and named backgrounds, as the classification prompts.",)
    head = ("Segmentation prompts",)
    return Table(
        "2", "Designs of the segmentation prompts", head, (MIOU,), rows, (Ordering(claim, ascending),), TRAINAUG, notes
    )


def _table_3(settings: FmaSettings) -> Table:
    networks = {
        "deeplab": ("DeepLabV3+", {**DEEPLAB_SGD, "grad_clip": None}),
        "mask2former": ("Mask2Former", SWIN_ADAMW),
    }
    rows = []
    for network, (name, published) in networks.items():
        optimisation = {} if network == settings.network else {f"optimisation.{k}": v for k, v in published.items()}
        changes = {"settings.network": network, "settings.refine.by": "none", "evaluation.student": "last"}
        for by, word in (("none", "-"), ("crf", "CRF"), ("sams", "SAMS")):
            after = {} if by == "none" else {"settings.refine.by": by}
            measure = Measure(
                {**_AS_PUBLISHED, **changes, **optimisation}, after=after, seeds=(*_BOTH, "optimisation.seed")
            )
            rows.append(_row("3", f"{network}-{by}", (name, word), measure))
    return Table(
        "3",
        "Post-processing of the network's results",
        ("Network", "Post-processing"),
        (MIOU,),
        tuple(rows),
        (
            Ordering("With DeepLabV3+ SAMS helps and CRF harms.", ("deeplab-crf", "deeplab-none", "deeplab-sams")),
            Ordering(
                "With Mask2Former neither helps, and SAMS harms less than CRF.",
                ("mask2former-crf", "mask2former-sams", "mask2former-none"),
            ),
        ),
        VAL,
        (
            "A network is trained once; the rows of its post-processing share its last checkpoint.",
            "The network that the recipe does not choose is optimised as published for it.",
        ),
    )


def _table_4(settings: FmaSettings) -> Table:
    masks, thinned = settings.for_fine.masks, settings.for_fine.superpixels
    caa = "score" if settings.fine.spread == "none" else settings.fine.spread

    def seeds(spread: str, finish: str, more: Mapping[str, Any] | None = None) -> Measure:
        return _full({"settings.fine.spread": spread, "settings.fine.finish": finish, **(more or {})})

    def masked(**changes: Any) -> Changes:
        return {"settings.fine_masks": asdict(replace(masks, **changes))} if changes else {}

    unfiltered: Changes = {"settings.fine_superpixels": asdict(replace(thinned, ratio=None))}
    filtered: Changes = (
        {} if thinned.ratio else {"settings.fine_superpixels": asdict(replace(thinned, ratio=OCCUPATION_RATIO))}
    )
    plain = {**masked(whole_iou_offset=0.0, whole_nms_offset=0.0), **unfiltered}
    rows = (
        _row("4", "cam", ("Baseline",), seeds("none", "argmax")),
        _row("4", "caa", ("+ CAA",), seeds(caa, "argmax")),
        _row("4", "voting", ("+ Voting",), seeds("none", "voting", plain)),
        _row("4", "caa-voting", ("+ CAA + Voting",), seeds(caa, "voting", plain)),
        _row("4", "plain", ("+ SAMS",), seeds("none", "sams", plain)),
        _row(
            "4",
            "more-whole",
            ("+ SAMS + more whole",),
            seeds("none", "sams", {**masked(whole_nms_offset=0.0), **unfiltered}),
        ),
        _row(
            "4",
            "priority",
            ("+ SAMS + NMS priority",),
            seeds("none", "sams", {**masked(whole_iou_offset=0.0), **unfiltered}),
        ),
        _row("4", "both", ("+ SAMS + more whole + NMS priority",), seeds("none", "sams", unfiltered)),
        _row("4", "filter", ("+ SAMS + more whole + NMS priority + filter",), seeds("none", "sams", filtered)),
        _row("4", "caa-sams", ("+ CAA + SAMS",), seeds(caa, "sams", filtered)),
    )
    return Table(
        "4",
        "From activation maps to seeds",
        ("Seeds",),
        (MIOU,),
        rows,
        (
            Ordering(
                "CAA improves activation maps, voting improves them more, SAMS most.",
                ("cam", "caa", "caa-voting", "caa-sams"),
            ),
            Ordering("Without CAA, too, SAMS beats voting, which beats plain maps.", ("cam", "voting", "filter")),
            Ordering(
                "Every change to SAM's masks helps: more wholes, wholes first, both, and the filter.",
                ("plain", "more-whole", "priority", "both", "filter", "caa-sams"),
            ),
        ),
        TRAINAUG,
        (
            "All rows share the prompts of the full model; masks and filter change for the fine seeds alone.",
            "Voting: a mask takes the label of most of its pixels; SAM's masks are plain there, and all stay.",
            "Without masks the background scores (1 - best class)^p at the recipe's p, not the best p on true masks.",
        ),
    )


def _table_5(settings: FmaSettings) -> Table:
    rows = (
        _row("5", "bce", ("x", "", "", ""), _first_alone(settings, **{"settings.classification.loss": "bce"})),
        _row("5", "mcl", ("", "x", "", ""), _first_alone(settings)),
        _row("5", "mcl-ce", ("", "x", "x", ""), _full({"settings.segmentation.loss": "ce"})),
        _row("5", "mcl-cal", ("", "x", "", "x"), _full()),
    )
    return Table(
        "5",
        "Losses of the prompts",
        ("L_BCE", "L_MCL", "L_CE", "L_CAL"),
        (MIOU,),
        rows,
        (
            Ordering("The contrastive loss beats BCE, and the activation loss adds to it.", ("bce", "mcl", "mcl-cal")),
            Ordering("Pixel-wise cross-entropy of maps is worst.", ("mcl-ce", "bce")),
        ),
        TRAINAUG,
    )


def _table_6(settings: FmaSettings) -> Table:  # noqa: ARG001 - one form for all tables
    ours = {
        "CLIP-ES": (_clip_es({f"settings.clip_es.{key}": value for key, value in _PLAIN_CAM.items()}), _clip_es()),
        "FMA-WSSS": (_full({f"settings.fine.{key}": value for key, value in _PLAIN_CAM.items()}), _full()),
    }
    rows = []
    for name, post, cam, seed in SEEDS_OF_OTHERS:
        measures = ours.get(name, (None, None))
        cells = tuple(Cell.of(value, each) for value, each in zip((cam, seed), measures, strict=True))
        rows.append(Row(name, (name, post), cells))
    return Table(
        "6",
        "Activation maps and seeds of several methods",
        ("Method", "Post."),
        ("CAM", "Seed"),
        tuple(rows),
        (
            Ordering("The activation maps are better than those of CLIP-ES.", ("CLIP-ES:CAM", "FMA-WSSS:CAM")),
            Ordering("The seeds are better than those of CLIP-ES.", ("CLIP-ES:Seed", "FMA-WSSS:Seed")),
            Ordering("The seeds are better than the activation maps.", ("FMA-WSSS:CAM", "FMA-WSSS:Seed")),
        ),
        TRAIN,
        (
            "The other methods are not part of this package: nothing of them is measured here.",
            "CAM: before the affinity, against a background of (1 - best class)^p at the recipe's p.",
        ),
    )


_AS_PUBLISHED: Changes = {
    "settings.classification.loss": "mcl",
    "settings.segmentation.loss": "cal",
    "settings.coarse.finish": "sams",
    "settings.fine.finish": "sams",
}
"""What makes the full model, M3, of any recipe."""


def _full(changes: Mapping[str, Any] | None = None) -> Measure:
    """Fine seeds of both prompt sets: M3 but for ``changes``."""
    return _seeds({**_AS_PUBLISHED, **(changes or {})})


def _seeds(changes: Mapping[str, Any], seeds: tuple[str, ...] = _BOTH) -> Measure:
    return Measure(changes, "targets", ("fma", "seeds"), seeds=seeds)


def _first_alone(settings: FmaSettings, finish: str = "sams", **changes: Any) -> Measure:
    """Seeds of the classification prompts alone, made as the coarse seeds are."""
    coarse = {**asdict(settings.coarse), "finish": finish}
    alone = {"settings.segmentation": None, "settings.fine": coarse, "settings.classification.loss": "mcl"}
    return _seeds({**alone, "settings.fine_masks": None, "settings.fine_superpixels": None, **changes}, _FIRST)


def _clip_es(changes: Mapping[str, Any] | None = None) -> Measure:
    """Seeds of CLIP-ES: nothing is learned."""
    return Measure(changes or {}, "reference", ("clip-es", "seeds"))


def _row(table: str, key: str, words: tuple[str, ...], measure: Measure) -> Row:
    return Row.of(key, words, (PUBLISHED[table][key],), (measure,))


def _small(settings: FmaSettings) -> Changes:
    """Fewer views and updates, and a small Mask2Former where its weights are random."""
    changes: Changes = {"settings.views.count": min(2, settings.views.count)}
    for stage, prompts in (("classification", settings.classification), ("segmentation", settings.segmentation)):
        if prompts is not None:
            changes |= {f"settings.{stage}.{key}": value for key, value in _fewer_updates(prompts).items()}
    sizes = settings.mask2former
    if sizes.pretrained is None:
        most = {"embed_dim": 48, "width": 64, "encoder_layers": 2, "decoder_layers": 3, "points": 2048}
        changes |= {f"settings.mask2former.{key}": min(getattr(sizes, key), value) for key, value in most.items()}
    return changes


def _fewer_updates(prompts: PromptSettings) -> Changes:
    iterations = min(prompts.iterations, SMALL_UPDATES)
    stop = None if prompts.stop is None else min(prompts.stop, iterations)
    return {"iterations": iterations, "stop": stop, "warmup": min(prompts.warmup, iterations // 9)}
