"""What the report shows of the score records: table, headline and per-class bars.

A record is one flat JSON object of ``metrics.json``: method, preset, supervision, row, setting, segmenter, data,
split, images, resolution, seed, seconds, command, version, published, the figures as fractions, and for part maps
``protocols: {name: {"miou", "macc"}}``, ``per_class: [{"name", "object", "iou", "acc"}]`` and ``null_images``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from weakly.engine.evaluate import WITH
from weakly.evaluation.protocols import PROTOCOLS
from weakly.evaluation.semantic import SEMANTIC_PROTOCOLS
from weakly.report.charts import MISSING, BarRow, percent
from weakly.report.draw import short_name
from weakly.vocabulary import Vocabulary

ScoreRecord = Mapping[str, Any]

PROTOCOL_EXPLANATIONS: dict[str, str] = {
    "dataset41": (
        "One confusion matrix over all pixels of all images, at original size, one category per pixel. Mean over all "
        "part categories and the background. mACC is the mean recall of the categories. The headline protocol."
    ),
    "dataset40": "The same confusion matrix as dataset41, with the mean over the part categories alone, no background.",
    "pair_binary": (
        "Mean over every pair of an image and a category it truly shows: binary IoU and pixel accuracy of that "
        "category's mask; 0 where it was not predicted. Categories predicted but not there cost nothing."
    ),
    "official_rowwise": (
        "What the published evaluation code computes: as pair_binary, but the IoU is taken for every pixel row on its "
        "own, with 1 for rows where nothing is and nothing was predicted. An empty prediction can score above 70. For "
        "comparison with the published figures only."
    ),
    "semantic": (
        "As dataset41, with the mean over the categories that truly occur, the background included: a category that is "
        "only falsely predicted costs the pixels it takes, no more. Images without a true label map and void pixels "
        "are left out. The headline protocol of methods that give every pixel one label."
    ),
}
"""What each protocol measures: those of part maps, headline first, then that of semantic maps."""

FINAL_ROWS = (None, "", "final", "best")
"""Rows of records that are a method's result; others are stages on the way to it."""

FIGURES = ("miou", "ap50", "ap", "corloc", "recall", "seen", "unseen", "harmonic")
"""Figures a record may carry outside ``protocols``."""

UPPER_BOUNDS = frozenset({"oracle", "everything", "true-boxes"})
"""Methods that were given the truth at test time."""


_MOST_HEADLINES = 3


@dataclass(frozen=True)
class ScoreColumn:
    """One column group of the score table; ``measures`` are its sub-columns."""

    name: str
    explanation: str
    measures: tuple[str, ...]


@dataclass(frozen=True)
class ScoreRow:
    """One record, ready to print. ``cells`` follow the columns' measures in order."""

    name: str
    details: str
    context: str
    upper_bound: bool
    cells: tuple[str, ...]
    null_images: str
    seconds: str
    published: str


@dataclass(frozen=True)
class Headline:
    """The number at the top of the page, with everything that makes it a number.

    Attributes:
        protocol: e.g. ``"dataset41"``.
        context: data, split and number of images.
        method: what was measured; ``value`` its mIoU as a fraction.
        reference: the upper bound beside it, if one was measured; ``reference_value`` its mIoU.
    """

    protocol: str
    context: str
    method: str
    value: float | None
    reference: str | None = None
    reference_value: float | None = None

    @property
    def ratio(self) -> float | None:
        """Value over reference value; None where either is missing or the reference is 0."""
        if self.value is None or not self.reference_value:
            return None
        return self.value / self.reference_value


@dataclass(frozen=True)
class ClassGroup:
    """The categories of one object, ready for a bar chart."""

    name: str
    rows: tuple[BarRow, ...]


@dataclass(frozen=True)
class ClassComparison:
    """Per-class IoU of several records on the same data and split."""

    context: str
    series: tuple[str, ...]
    reference: str | None
    groups: tuple[ClassGroup, ...]


def fraction(value: object) -> float | None:
    """A finite number, or None for anything else (missing, NaN, text)."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return float(value) if math.isfinite(value) else None


def record_name(record: ScoreRecord) -> str:
    """Method and supervision: ``"wps · box"``; the stage too, where it is not the final one."""
    words = [record.get("method"), record.get("supervision")]
    words += [record.get("row")] if record.get("row") not in (None, "", "final") else []
    return " · ".join(str(word) for word in words if word) or "unnamed"


def record_context(record: ScoreRecord) -> str:
    """Data, split and size: ``"menagerie test · 500 images"``."""
    place = " ".join(str(record[key]) for key in ("data", "split") if record.get(key))
    images = record.get("images")
    return " · ".join([place or "unnamed data", *([f"{images} images"] if images is not None else [])])


def is_upper_bound(record: ScoreRecord) -> bool:
    """Whether the method was given the truth at test time."""
    return record.get("method") in UPPER_BOUNDS


def is_result(record: ScoreRecord) -> bool:
    """Whether it is what a method came to, be it with other settings of prediction, not a stage on the way."""
    row = record.get("row")
    return row in FINAL_ROWS or str(row).split(WITH)[0] in FINAL_ROWS


def score_columns(records: Sequence[ScoreRecord]) -> list[ScoreColumn]:
    """The protocols, then what else was measured.

    All four for part maps, where any record has those or there is no record yet; those of semantic maps alone where
    nothing else was measured.
    """
    named = dict.fromkeys(name for record in records for name in _protocols(record))
    semantic = SEMANTIC_PROTOCOLS if "semantic" in named else ()
    parts = PROTOCOLS if not records or (named and not named.keys() <= {*semantic}) else ()
    names = dict.fromkeys([*semantic, *parts, *named])
    columns = [ScoreColumn(name, PROTOCOL_EXPLANATIONS.get(name, ""), ("miou", "macc")) for name in names]
    # The flat mIoU of a record with protocols is that of one of them.
    flat = tuple(name for name in FIGURES if any(name in r and not (name == "miou" and _protocols(r)) for r in records))
    return [*columns, *([ScoreColumn("", "", flat)] if flat else [])]


def score_rows(records: Sequence[ScoreRecord], columns: Sequence[ScoreColumn]) -> list[ScoreRow]:
    """One row per record, in the records' order."""
    return [_score_row(record, columns) for record in records]


def headlines(records: Sequence[ScoreRecord]) -> list[Headline]:
    """The results of the last method measured, each beside its upper bound: semantic, or dataset41 and dataset40.

    Where that method was measured with several supervisions on the same images, each gets its own.
    """
    last = last_measured(records)
    if last is None:
        return []
    alike = [r for r in records if r.get("method") == last.get("method") and same_images(r, last)]
    alike = [r for r in alike if is_result(r)] or alike
    return [
        headline
        for record in alike[-_MOST_HEADLINES:]
        for protocol in (("semantic",) if "semantic" in _protocols(record) else ("dataset41", "dataset40"))
        if (headline := _headline(record, protocol, upper_bound_of(record, records))) is not None
    ]


def compare_classes(records: Sequence[ScoreRecord], vocabulary: Vocabulary | None = None) -> ClassComparison | None:
    """Per-class IoU of all methods on the data of the last record, against its upper bound.

    Objects, and the parts within each, come with the largest gap to the upper bound first.

    Args:
        records: only those with ``per_class`` count.
        vocabulary: tells which object a category belongs to where ``per_class`` does not.
    """
    with_classes = [record for record in records if record.get("per_class")]
    last = last_measured(with_classes)
    if last is None:
        return None
    here = [r for r in with_classes if same_images(r, last)]
    measured = [r for r in here if not is_upper_bound(r)]
    bound = upper_bound_of(measured[0], here)
    ious = [_class_ious(record) for record in measured]
    bound_ious = {} if bound is None else _class_ious(bound)
    objects = _objects(here, vocabulary)
    groups: dict[str, list[BarRow]] = {}
    for name in dict.fromkeys(name for table in [*ious, bound_ious] for name in table):
        whole = objects.get(name) or ""
        row = BarRow(name, short_name(name, whole), tuple(t.get(name) for t in ious), bound_ious.get(name))
        if row.reference is not None or any(value is not None for value in row.values):
            groups.setdefault(whole, []).append(row)  # a part that is nowhere in the split has no bar
    ordered = [ClassGroup(whole, tuple(sorted(rows, key=_by_gap))) for whole, rows in groups.items()]
    ordered.sort(key=lambda group: (group.name == "", -_mean_gap(group)))  # what belongs to no object comes last
    return ClassComparison(
        record_context(last),
        tuple(_distinct_names(measured)),
        None if bound is None else record_name(bound),
        tuple(ordered),
    )


def _headline(record: ScoreRecord, protocol: str, bound: ScoreRecord | None) -> Headline | None:
    if protocol not in _protocols(record):
        return None
    return Headline(
        protocol=protocol,
        context=record_context(record),
        method=record_name(record),
        value=_miou(record, protocol),
        reference=None if bound is None else record_name(bound),
        reference_value=None if bound is None else _miou(bound, protocol),
    )


def _score_row(record: ScoreRecord, columns: Sequence[ScoreColumn]) -> ScoreRow:
    cells: list[str] = []
    for column in columns:
        source = _protocols(record).get(column.name, {}) if column.name else record
        cells += [percent(fraction(source.get(measure))) for measure in column.measures]
    details = [record.get(key) for key in ("preset", "setting", "segmenter")]
    resolution = record.get("resolution")
    seed = record.get("seed")
    seconds = fraction(record.get("seconds"))
    context = [
        record_context(record),
        *([_resolution(resolution)] if resolution else []),
        *([f"seed {seed}"] if seed is not None else []),
    ]
    null_images = record.get("null_images")
    return ScoreRow(
        name=record_name(record),
        details=" · ".join(str(detail) for detail in details if detail),
        context=" · ".join(context),
        upper_bound=is_upper_bound(record),
        cells=tuple(cells),
        null_images=MISSING if null_images is None else str(null_images),
        seconds=MISSING if seconds is None else _duration(seconds),
        published=_published(record.get("published")),
    )


def _protocols(record: ScoreRecord) -> Mapping[str, Mapping[str, Any]]:
    protocols = record.get("protocols")
    if not isinstance(protocols, Mapping):
        return {}
    return {name: figures for name, figures in protocols.items() if isinstance(figures, Mapping)}


def _miou(record: ScoreRecord, protocol: str) -> float | None:
    return fraction(_protocols(record).get(protocol, {}).get("miou"))


def last_measured(records: Sequence[ScoreRecord]) -> ScoreRecord | None:
    """The last result of a method that is no upper bound, else the last stage: what the page is about."""
    measured = [record for record in records if not is_upper_bound(record)]
    return next(reversed([r for r in measured if is_result(r)] or measured), None)


def same_images(a: ScoreRecord, b: ScoreRecord) -> bool:
    """Whether two records were measured on the same data and split."""
    return (a.get("data"), a.get("split")) == (b.get("data"), b.get("split"))


def upper_bound_of(record: ScoreRecord, records: Sequence[ScoreRecord]) -> ScoreRecord | None:
    """The upper bound on the same images; the one with the same supervision before any other."""
    bounds = [other for other in records if is_upper_bound(other) and same_images(other, record)]
    same = [other for other in bounds if other.get("supervision") == record.get("supervision")]
    return next(iter([*same, *bounds]), None)


def _class_ious(record: ScoreRecord) -> dict[str, float | None]:
    return {str(entry.get("name")): fraction(entry.get("iou")) for entry in record["per_class"]}


def _objects(records: Sequence[ScoreRecord], vocabulary: Vocabulary | None) -> dict[str, str | None]:
    objects: dict[str, str | None] = {}
    if vocabulary is not None:
        objects = {category.name: category.object for category in vocabulary.categories}
    for record in records:
        for entry in record["per_class"]:
            if entry.get("object"):
                objects[str(entry.get("name"))] = str(entry["object"])
    return objects


def _by_gap(row: BarRow) -> tuple[float, float]:
    value = row.values[0] if row.values else None
    return (-row.gap, value if value is not None else math.inf)


def _mean_gap(group: ClassGroup) -> float:
    gaps = [row.gap for row in group.rows if math.isfinite(row.gap)]
    return sum(gaps) / len(gaps) if gaps else -math.inf


def _distinct_names(records: Sequence[ScoreRecord]) -> list[str]:
    """Record names; the preset or the position is added where two would read the same."""
    names = [record_name(record) for record in records]
    if len(set(names)) < len(names):
        names = [
            f"{name} · {record.get('preset') or i + 1}"
            for i, (name, record) in enumerate(zip(names, records, strict=True))
        ]
    return names


def _resolution(resolution: object) -> str:
    if isinstance(resolution, Sequence) and not isinstance(resolution, str):
        return "\N{MULTIPLICATION SIGN}".join(str(side) for side in resolution) + " px"
    return f"{resolution} px" if str(resolution)[-1:].isdigit() else str(resolution)


def _published(published: object) -> str:
    if isinstance(published, Mapping):
        return ", ".join(f"{key} {_published(value)}" for key, value in published.items())
    value = fraction(published)
    return ("" if published is None else str(published)) if value is None else percent(value)


def _duration(seconds: float) -> str:
    """``75 -> "1 min 15 s"``."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"
