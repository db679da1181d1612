"""One self-contained HTML page of a run: typed parts in, one file out.

The page loads nothing: style, script, charts and pictures are inside it, and its content security policy forbids the
rest. Every text is escaped by the template engine.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from numpy.typing import NDArray

from weakly.files import write_atomic
from weakly.report.charts import MISSING, SERIES_COLOURS, Curve, bar_chart, line_chart, percent, short_number
from weakly.report.curves import group_curves
from weakly.report.draw import picture_uri
from weakly.report.scores import (
    Headline,
    compare_classes,
    headlines,
    score_columns,
    score_rows,
)
from weakly.vocabulary import Vocabulary

MOST_GALLERY_ROWS = 24
MOST_PROBLEMS_SHOWN = 50

__all__ = ["Curve", "GalleryRow", "ProblemLine", "Repeat", "ReportPage", "render_page", "write_report"]


@dataclass(frozen=True, eq=False)
class GalleryRow:
    """One image of the gallery and everything drawn from it.

    Attributes:
        caption: image id, and whatever tells the image apart.
        score: per-image score as a fraction; None where there is no truth.
        panels: (title, (H, W, 3) uint8 RGB picture), left to right.
        legend: (category name, RGB colour) of the categories to be seen.
        group: ``"best"``, ``"median"``, ``"worst"`` or empty.
    """

    caption: str
    score: float | None
    panels: Sequence[tuple[str, NDArray[np.uint8]]]
    legend: Sequence[tuple[str, tuple[int, int, int]]] = ()
    group: str = ""


@dataclass(frozen=True)
class ProblemLine:
    """One thing that went wrong and did not stop the run.

    Attributes:
        kind: groups equal problems, e.g. ``"skipped-image"`` or a dataset check's name.
        severity: ``"error"`` or ``"warning"``.
        where: file and index.
        message: what is wrong and, where there is one, the remedy.
    """

    kind: str
    severity: str
    where: str
    message: str


@dataclass(frozen=True)
class Repeat:
    """How to make the numbers again.

    Attributes:
        commands: exact command lines, in order.
        recipe: the resolved recipe as YAML text.
        versions: (package, version) pairs.
        hashes: (what, digest) pairs.
        seed: the run's seed.
    """

    commands: Sequence[str] = ()
    recipe: str = ""
    versions: Sequence[tuple[str, str]] = ()
    hashes: Sequence[tuple[str, str]] = ()
    seed: int | None = None

    @property
    def is_empty(self) -> bool:
        """Nothing is known."""
        return self == Repeat()


@dataclass(frozen=True, eq=False)
class ReportPage:
    """Everything on the page; every part may be empty.

    Attributes:
        title: name of the run.
        subtitle: one sentence: method, data, split.
        facts: (label, value) pairs under the title: method, data, images, date, version ...
        records: score records, see :mod:`weakly.report.scores`.
        curves: training curves; see :func:`weakly.report.curves.group_curves` for how they share plots.
        gallery: at most :data:`MOST_GALLERY_ROWS` are shown.
        stages: the same of images with what each stage of the method makes of them.
        problems: skipped images and dataset problems.
        repeat: how to repeat the run.
        headline: the numbers at the top; None takes them from the records.
        vocabulary: tells which object a category belongs to where the records do not.
    """

    title: str
    subtitle: str = ""
    facts: Sequence[tuple[str, str]] = ()
    records: Sequence[Mapping[str, Any]] = ()
    curves: Sequence[Curve] = ()
    gallery: Sequence[GalleryRow] = ()
    stages: Sequence[GalleryRow] = ()
    problems: Sequence[ProblemLine] = ()
    repeat: Repeat = field(default_factory=Repeat)
    headline: Sequence[Headline] | None = None
    vocabulary: Vocabulary | None = None


def write_report(page: ReportPage, path: Path) -> Path:
    """Write the page as one HTML file, atomically, and return its path."""
    write_atomic(path, render_page(page))
    return path


def render_page(page: ReportPage) -> str:
    """The page as HTML text, about 40 kB plus 10 to 60 kB a picture."""
    columns = score_columns(page.records)
    classes = compare_classes(page.records, page.vocabulary)
    return _environment().get_template("page.html.jinja").render(
        page=page,
        headline=headlines(page.records) if page.headline is None else page.headline,
        columns=columns,
        rows=score_rows(page.records, columns),
        panels=group_curves(page.curves),
        classes=classes,
        gallery=page.gallery[:MOST_GALLERY_ROWS],
        stages=page.stages[:MOST_GALLERY_ROWS],
        problems=_by_kind(page.problems),
        most_problems=MOST_PROBLEMS_SHOWN,
    )  # fmt: skip


@lru_cache(maxsize=1)
def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("weakly.report", "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(percent=percent, number=_number, uri=picture_uri, colour=_colour)
    environment.globals.update(line_chart=line_chart, bar_chart=bar_chart, series_colours=SERIES_COLOURS)
    return environment


def _by_kind(problems: Sequence[ProblemLine]) -> list[tuple[str, list[ProblemLine]]]:
    """Problems grouped by kind: errors first, then the most frequent."""
    kinds: dict[str, list[ProblemLine]] = {}
    for problem in problems:
        kinds.setdefault(problem.kind, []).append(problem)
    return sorted(kinds.items(), key=lambda item: (all(p.severity != "error" for p in item[1]), -len(item[1])))


def _number(value: float) -> str:
    return short_number(value) if np.isfinite(value) else MISSING


def _colour(rgb: tuple[int, int, int]) -> str:
    red, green, blue = (int(v) for v in rgb)
    return f"rgb({red} {green} {blue})"
