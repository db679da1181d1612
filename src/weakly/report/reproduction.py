"""A paper's tables as a Markdown page and an HTML page: the paper's layout, its figures, and ours beside them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import jinja2

from weakly.engine.orderings import Judgement, Measured, Step
from weakly.engine.reproduce import Reproduction, TableResult
from weakly.evaluation.records import Record
from weakly.files import write_atomic
from weakly.methods.tables import Table
from weakly.report.run_report import build_run_report

NOTHING = "-"


@dataclass(frozen=True)
class _Cell:
    """Ready to print.

    Attributes:
        published: the paper's figure.
        ours: ours, with its spread; empty where nothing is measured.
        folder: run behind it, relative to the page; empty where there is none.
        reason: why it is missing.
    """

    published: str
    ours: str
    folder: str = ""
    reason: str = ""


class _Column(NamedTuple):
    figure: int
    name: str
    side: str


@dataclass(frozen=True)
class _View:
    """A table ready to print.

    Attributes:
        number: as printed.
        title: what it compares.
        head: headings of the words.
        columns: number and name of a figure, and its side: "published" or "here".
        rows: words and cells.
        on: data of the paper; ours: data, split, images and resolution of the first figure, and the protocol where it
            has a name.
        notes: where ours departs.
    """

    number: str
    title: str
    head: tuple[str, ...]
    columns: tuple[_Column, ...]
    rows: tuple[tuple[tuple[str, ...], tuple[_Cell, ...]], ...]
    on: str
    notes: tuple[str, ...]


def write_reproduction(found: Reproduction) -> Path:
    """Write ``tables.md`` and ``tables.html`` into the folder of a reproduction; returns the HTML page."""
    write_atomic(found.folder / "tables.md", reproduction_text(found))
    page = found.folder / "tables.html"
    write_atomic(page, _page(found))
    return page


def build_cell_reports(found: Reproduction) -> None:
    """The ordinary report of every run behind a figure, where it is not written yet; the HTML page links to them."""
    folders = {measured.folder for result in found.results for measured in result.figures.values() if measured.values}
    for folder in sorted(folders - {""}):  # figures of another machine have none
        if not (found.folder / folder / "report.html").is_file():
            build_run_report(found.folder / folder)


def reproduction_text(found: Reproduction) -> str:
    """The Markdown page."""
    lines = [f"# {found.paper.paper}", "", *(f"- {label}: {value}" for label, value in _facts(found)), ""]
    for result in found.results:
        lines += _table_lines(_view(result))
    lines += ["## The paper's orderings", "", "| table | claim | here | margins |", "|---|---|---|---|"]
    for judgement in _judgements(found):
        steps = "; ".join(_step(step) for step in judgement.steps)
        lines.append(f"| {judgement.table} | {judgement.ordering.claim} | {_verdict(judgement)} | {steps} |")
    lines += ["", _HOW, ""]
    if found.missing:
        lines += ["## Not measured", "", *(f"- {place}: {reason}" for place, reason in found.missing.items()), ""]
    return "\n".join(lines)


_HOW = (
    "Margins are in points of the figure, higher minus lower. With several runs per figure an ordering is not "
    "decidable where the mean difference is within the standard deviation of the differences; a single run has no "
    "spread, and its small margins may be chance."
)


def _page(found: Reproduction) -> str:
    return _environment().get_template("reproduction.html.jinja").render(
        title=found.paper.paper,
        facts=_facts(found),
        tables=[_view(result) for result in found.results],
        judgements=[(j, _verdict(j), [_step(step) for step in j.steps]) for j in _judgements(found)],
        how=_HOW,
        missing=found.missing,
        command=found.command,
        recipe=found.recipe.to_yaml(),
    )  # fmt: skip


@lru_cache(maxsize=1)
def _environment() -> jinja2.Environment:
    return jinja2.Environment(
        loader=jinja2.PackageLoader("weakly.report", "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _facts(found: Reproduction) -> list[tuple[str, str]]:
    runs = "1 run per figure" if found.repetitions == 1 else f"up to {found.repetitions} runs per figure"
    facts = [("Published figures", found.paper.source), ("Budget", f"{found.budget}, {runs}")]
    return [*facts, ("Figures", "per cent"), ("Command", found.command)]


def _judgements(found: Reproduction) -> list[Judgement]:
    return [judgement for result in found.results for judgement in result.judgements]


def _view(result: TableResult) -> _View:
    table = result.table
    cells = iter([_cell(cell.published, result.figures.get(place)) for place, cell in table.places()])
    rows = tuple((row.words, tuple(islice(cells, len(row.cells)))) for row in table.rows)
    return _View(table.number, table.title, table.head, _columns(table), rows, _on(result), table.notes)


def _columns(table: Table) -> tuple[_Column, ...]:
    """Two columns per figure; none for what is nowhere published, and none for what is only printed."""
    columns = []
    for figure, name in enumerate(table.figures):
        cells = [row.cells[figure] for row in table.rows]
        if any(cell.published is not None for cell in cells):
            columns.append(_Column(figure, name, "published"))
        if any(cell.measure is not None for cell in cells):
            columns.append(_Column(figure, name, "here"))
    return tuple(columns)


def _on(result: TableResult) -> str:
    parts = [f"Published: {result.table.data}."] if result.table.data else []
    if any(cell.measure is not None for _, cell in result.table.places()):
        records = [record for measured in result.figures.values() for record in measured.records.values()]
        measured_on = _measured_on(records[0]) + _protocol(result.table) if records else "nothing measured"
        parts.append(f"Here: {measured_on}.")
    return " ".join(parts)


def _cell(published: float | None, measured: Measured | None) -> _Cell:
    theirs = NOTHING if published is None else f"{100 * published:.1f}"
    if measured is None:
        return _Cell(theirs, "")
    if measured.mean is None:
        return _Cell(theirs, NOTHING, reason=measured.missing)
    spread = f" ± {100 * measured.spread:.1f}" if measured.spread else ""
    return _Cell(theirs, f"{100 * measured.mean:.1f}{spread}", measured.folder, measured.missing)


def _measured_on(record: Record) -> str:
    return f"{record.data} {record.split}, {record.images} images at {record.resolution}"


def _protocol(table: Table) -> str:
    figures = {cell.measure.figure for _, cell in table.places() if cell.measure is not None}
    named = sorted({figure.partition(".")[0] for figure in figures if "." in figure} - {"details"})
    return f", {' and '.join(named)}" if named else ""


def _step(step: Step) -> str:
    if step.margin is None:
        return f"{step.lower} < {step.higher}: not measured"
    spread = "" if step.spread is None else f" ± {100 * step.spread:.1f}"
    return f"{step.lower} < {step.higher}: {100 * step.margin:+.1f}{spread}"


def _verdict(judgement: Judgement) -> str:
    """A verdict on single runs says so."""
    single = judgement.verdict != "not decidable here" and all(step.spread is None for step in judgement.steps)
    return f"{judgement.verdict} (one run)" if single else judgement.verdict


def _table_lines(view: _View) -> list[str]:
    figures = [f"{column.name}, {column.side}" for column in view.columns]
    lines = [f"## Table {view.number}: {view.title}", "", *([view.on, ""] if view.on else [])]
    lines.append(f"| {' | '.join([*view.head, *figures])} |")
    lines.append("|" + "---|" * len(view.head) + "--:|" * len(figures))
    for words, cells in view.rows:
        shown = [(cells[column.figure], column.side) for column in view.columns]
        numbers = [cell.published if side == "published" else cell.ours for cell, side in shown]
        lines.append(f"| {' | '.join([*words, *numbers])} |")
    return [*lines, "", *(f"- {note}" for note in view.notes), *([""] if view.notes else [])]
